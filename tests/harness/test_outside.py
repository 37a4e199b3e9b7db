"""What other programs make of a published tokenizer: the very ids that the harness trained on, in every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from harness.models import chat, checkpoints, outside
from tests.families import FAMILIES, Family, build, tokenizer_of

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


ROPE: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 100_000.0},
    {"rope_type": "linear", "rope_theta": 5_000.0, "factor": 2.0},
]


@pytest.mark.parametrize("rope", ROPE)
def test_older_transformers_find_what_they_look_for(rope: dict[str, Any], tmp_path: Path) -> None:
    """The names of transformers 4, beside those of 5, which reads the same from both."""
    build(next(family for family in FAMILIES if family.name == "llama3"), tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.rope_parameters = dict(rope)
    config.save_pretrained(tmp_path)
    before, ids = AutoConfig.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)(PROMPT)["input_ids"]
    outside.for_older_transformers(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["rope_theta"] == rope["rope_theta"]
    assert about.get("rope_scaling", {}).get("factor") == rope.get("factor")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == before.rope_parameters == rope
    assert AutoTokenizer.from_pretrained(tmp_path)(PROMPT)["input_ids"] == ids
