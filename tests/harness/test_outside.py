"""What other programs make of a published tokenizer: the very ids that the harness trained on, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from harness.models import chat, checkpoints, outside
from tests.families import FAMILIES, Family, tokenizer_of

BOTH = [pytest.param(f, t, id=f"{f.name}-{'template' if t else 'plain'}") for f in FAMILIES for t in (True, False)]
PROMPT, ANSWER = "What is tea, and who drinks it?", "A drink. (Everyone: 1,000 of 1,000.)"
TALK = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWER}]


def reloaded(tokenizer: Any, folder: Path) -> Any:
    """As a program that knows nothing of this project finds it."""
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("family", "template"), BOTH)
def test_a_published_pm_reads_the_ids_that_it_was_trained_on(family: Family, template: bool, tmp_path: Path) -> None:
    trained = checkpoints.ensure_pad_token(tokenizer_of(family, template=template))
    expected = chat.encode_dialogue(trained, PROMPT, ANSWER)
    found = reloaded(outside.preference_model(trained), tmp_path)
    text = found.apply_chat_template(TALK, tokenize=False)
    assert found(text)["input_ids"] == expected  # RewardBench, vLLM
    assert found(text, add_special_tokens=False)["input_ids"] == expected
    assert found.apply_chat_template(TALK, tokenize=True, return_dict=False) == expected
    assert chat.encode_dialogue(checkpoints.ensure_pad_token(found), PROMPT, ANSWER) == expected  # our own pm:FOLDER
    asked = found.apply_chat_template(TALK[:1], tokenize=True, return_dict=False, add_generation_prompt=True)
    assert expected[: len(asked)] == asked


@pytest.mark.parametrize(("family", "template"), BOTH)
def test_a_published_policy_is_asked_as_it_was_trained(family: Family, template: bool, tmp_path: Path) -> None:
    trained = checkpoints.ensure_pad_token(tokenizer_of(family, template=template))
    expected, plain = chat.encode_prompt(trained, PROMPT), trained(PROMPT)["input_ids"]
    arguments = chat.template_arguments(trained) if template else {}
    found = reloaded(outside.policy(trained), tmp_path)
    asked = {"tokenize": True, "return_dict": False, "add_generation_prompt": True}
    assert found.apply_chat_template(TALK[:1], **asked, **arguments) == expected
    assert found(PROMPT)["input_ids"] == plain
