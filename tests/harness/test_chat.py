"""Formatting: prompts of both layouts, end of turn, and truncation that keeps what a PM reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.models import chat, checkpoints

TEXT = st.text(st.characters(codec="ascii", exclude_characters="\n\r\t"), min_size=1).map(str.strip).filter(bool)


@given(st.lists(TEXT, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1))
def test_hh_layout_round_trips(turns: list[str]) -> None:
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(turns)]
    assert chat.parse(chat.to_hh(messages) + "\n\nAssistant:") == messages


def test_a_single_turn_is_plain_text() -> None:
    assert chat.normalise("\n\nHuman: Why is the sky blue?\n\nAssistant:") == "Why is the sky blue?"
    assert chat.normalise(" Why is the sky blue? ") == "Why is the sky blue?"


def test_a_transcript_splits_at_its_last_answer() -> None:
    prompt, answer = chat.split_transcript("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d")
    assert (prompt, answer) == ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "d")
    with pytest.raises(ValueError, match="assistant turn"):
        chat.split_transcript("\n\nHuman: a\n\nAssistant: b\n\nHuman: c")


def test_a_worked_chain_becomes_turns() -> None:
    text = "\n\nHuman: h\n\nAssistant: a\n\nCritiqueRequest: q\n\nCritique: c\n\nRevisionRequest: r\n\nRevision: v"
    assert [(m["role"], m["content"]) for m in chat.parse(text, chain=True)] == [
        ("user", "h"),
        ("assistant", "a"),
        ("user", "q"),
        ("assistant", "c"),
        ("user", "r"),
        ("assistant", "v"),
    ]


def test_dialogue_ends_with_the_end_of_turn_however_short(tiny_model: Path) -> None:
    tokenizer = checkpoints.load_tokenizer(tiny_model)
    whole = chat.encode_dialogue(tokenizer, "A question about tea?", "An answer about tea.")
    for length in range(1, len(whole) + 2):
        cut = chat.encode_dialogue(tokenizer, "A question about tea?", "An answer about tea.", length)
        assert cut[-1] == tokenizer.eos_token_id
        assert len(cut) == min(length, len(whole))
    assert chat.encode_dialogue(tokenizer, "x", "y", 10_000) == chat.encode_prompt(
        tokenizer, "x"
    ) + chat.encode_response(tokenizer, "y")


def test_an_answer_cut_at_the_length_limit_has_no_end_of_turn(tiny_model: Path) -> None:
    tokenizer = checkpoints.load_tokenizer(tiny_model)
    whole = chat.encode_dialogue(tokenizer, "A question about tea?", "An answer about")
    cut = chat.encode_dialogue(tokenizer, "A question about tea?", "An answer about", ended=False)
    assert whole == [*cut, chat.end_of_turn_id(tokenizer)]
    answer = chat.encode_response(tokenizer, "An answer about", ended=False)
    for length in range(1, len(cut) + 1):
        kept = chat.encode_dialogue(tokenizer, "A question about tea?", "An answer about", length, ended=False)
        assert kept == (cut[-length:] if length > len(answer) else answer[:length])


def test_next_turn_continues_the_template(tiny_model: Path) -> None:
    """Answer ids + next-turn ids are the ids of the whole conversation as the template writes it."""
    tokenizer = checkpoints.load_tokenizer(tiny_model)
    messages = [
        {"role": "user", "content": "Tea?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Why?"},
    ]
    answer = tokenizer("Yes.", add_special_tokens=False)["input_ids"]
    pieces = chat.encode_prompt(tokenizer, "Tea?") + answer + chat.encode_next_turn(tokenizer, "Why?")
    assert pieces == chat.encode_messages(tokenizer, messages)


def test_a_tokenizer_without_template_speaks_in_human_and_assistant_turns(tiny_model: Path) -> None:
    tokenizer = checkpoints.load_tokenizer(tiny_model)
    tokenizer.chat_template = None
    assert tokenizer.decode(chat.encode_prompt(tokenizer, "Tea?")) == "\n\nHuman: Tea?\n\nAssistant:"
    assert chat.encode_response(tokenizer, "Yes.")[-1] == tokenizer.eos_token_id


def test_an_invented_human_turn_is_cut() -> None:
    assert chat.clean(" Yes.\n\nHuman: and now?") == "Yes."
    assert chat.clean(" Yes.\nHuman:") == "Yes."
