"""How a conversation becomes tokens: the one place where text is formatted, for policies and PMs alike.

A prompt is plain text for one turn, or HH layout (``\\n\\nHuman: ... \\n\\nAssistant:``) for several.
Tokenizers with a chat template use it; the others get the paper's ``Human:`` / ``Assistant:`` turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

Message = dict[str, str]
_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")
_CHAIN_TURN = re.compile(r"\n\n(Human|Assistant|CritiqueRequest|Critique|RevisionRequest|Revision):[ ]?")
_ROLES = {"Human": "user", "CritiqueRequest": "user", "RevisionRequest": "user"}
_SENTINEL = "\u2402mark\u2402"  # a string that no chat template rewrites


def parse(text: str, *, chain: bool = False) -> list[Message]:
    """Messages of a prompt or transcript; with `chain`, critique and revision turns count as turns too.

    An empty last assistant turn (the place of the answer) is left out.
    """
    if not text.startswith("\n\nHuman:"):
        return [{"role": "user", "content": text.strip()}]
    parts = (_CHAIN_TURN if chain else _TURN).split(text)[1:]
    messages = [
        {"role": _ROLES.get(speaker, "assistant"), "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    while messages and not messages[-1]["content"]:
        messages.pop()
    return messages


def messages(prompt: str | Sequence[Message]) -> list[Message]:
    """A prompt as messages, whether it is text or messages already."""
    return parse(prompt) if isinstance(prompt, str) else list(prompt)


def normalise(prompt: str) -> str:
    """Plain text for a single human turn, HH layout ending in ``\\n\\nAssistant:`` otherwise."""
    messages = parse(prompt)
    if len(messages) == 1:
        return messages[0]["content"]
    return to_hh(messages) + "\n\nAssistant:"


def to_hh(messages: Sequence[Message]) -> str:
    """Messages in HH layout, without an opening for the next turn."""
    return "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in messages)


def split_transcript(transcript: str) -> tuple[str, str]:
    """(prompt, last assistant response) of an HH transcript. Raises ValueError when it ends otherwise."""
    messages = parse(transcript)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError("a transcript must end with an assistant turn")
    return normalise(to_hh(messages[:-1])), messages[-1]["content"]


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Text up to the place where the assistant's next answer begins."""
    if tokenizer.chat_template is not None:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    return to_hh(messages) + "\n\nAssistant:"


def encode_messages(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of `render`, with the tokenizer's BOS where its texts begin with one."""
    ids = tokenizer(render(tokenizer, messages), add_special_tokens=False)["input_ids"]
    if tokenizer.chat_template is None and getattr(tokenizer, "add_bos_token", False):
        ids = [tokenizer.bos_token_id, *ids]
    return list(ids)


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt, ready for the assistant's answer."""
    return encode_messages(tokenizer, parse(prompt))


def encode_response(tokenizer: Any, response: str, *, ended: bool = True) -> list[int]:
    """Token ids of an answer, and its end of turn unless it was cut at the length limit (`ended=False`)."""
    text = response if tokenizer.chat_template is not None else f" {response}"
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return [*ids, end_of_turn_id(tokenizer)] if ended else ids


def encode_dialogue(
    tokenizer: Any, prompt: str, response: str, max_length: int | None = None, *, ended: bool = True
) -> list[int]:
    """Token ids of prompt, response and, where it `ended`, its end of turn: what a PM reads, everywhere.

    Longer than `max_length`, the prompt loses its beginning, then the response its last tokens; the end of
    turn, where the PM's score is read, always stays.
    """
    context, answer = encode_prompt(tokenizer, prompt), encode_response(tokenizer, response, ended=ended)
    if max_length is None or len(context) + len(answer) <= max_length:
        return context + answer
    if len(answer) >= max_length:
        return [*answer[: max_length - 1], answer[-1]] if ended else answer[:max_length]
    return context[-(max_length - len(answer)) :] + answer


def encode_next_turn(tokenizer: Any, request: str) -> list[int]:
    """Token ids from the end of an assistant's answer to the place of its next one, `request` between them.

    The first id is the end of turn, so the caller must not have fed it already.
    """
    messages = [
        {"role": "user", "content": "."},
        {"role": "assistant", "content": _SENTINEL},
        {"role": "user", "content": request},
    ]
    if tokenizer.chat_template is None:
        tail = tokenizer(f"\n\nHuman: {request}\n\nAssistant:", add_special_tokens=False)["input_ids"]
        return [tokenizer.eos_token_id, *tail]
    tail_text = render(tokenizer, messages).rsplit(_SENTINEL, 1)[1]
    return list(tokenizer(tail_text, add_special_tokens=False)["input_ids"])


def end_of_turn_id(tokenizer: Any) -> int:
    """The token that closes an assistant's turn: what the chat template writes after it, or EOS."""
    if tokenizer.chat_template is None:
        return int(tokenizer.eos_token_id)
    cached = getattr(tokenizer, "_cai_end_of_turn", None)
    if cached is None:
        messages = [{"role": "user", "content": "."}, {"role": "assistant", "content": _SENTINEL}]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False)).rsplit(_SENTINEL, 1)[1].strip()
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        cached = int(ids[0]) if ids else int(tokenizer.eos_token_id)
        tokenizer._cai_end_of_turn = cached
    return int(cached)


def stop_ids(tokenizer: Any) -> set[int]:
    """Tokens at which generation stops."""
    return {end_of_turn_id(tokenizer), int(tokenizer.eos_token_id)}


def clean(text: str) -> str:
    """A sampled answer without a next human turn that the model wrote itself."""
    return re.split(r"\n\n?Human:", text)[0].strip()
