"""`cai export --rl`: the policy, the PM and the prompts of an arm, as OpenRLHF and verl read them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from harness.models import chat
from harness.models.scorer import PreferenceModel

Cai = Callable[..., tuple[int, str, str]]


def stage(run: Path, name: str) -> Path:
    return next((run / "stages" / name).glob("*/model"))


def test_an_arm_is_handed_over_whole(cai: Cai, tiny_run: Path, tmp_path: Path) -> None:
    code, said, errors = cai("export", tiny_run, "--rl", "rl_cai", "--out", tmp_path / "rl")
    assert code == 0, errors
    folder = tmp_path / "rl"
    assert str(folder / "README.md") in said

    prompts = pd.read_parquet(next((tiny_run / "stages" / "data").glob("*/prompts.parquet")))
    of_split = {split: set(rows["prompt"]) for split, rows in prompts.groupby("split")}
    for file, split in (("prompts", "train"), ("heldout", "heldout")):
        rows = pd.read_parquet(folder / f"{file}.parquet")
        assert {messages[0]["content"] for messages in rows["prompt"]} == of_split[split]
        assert [each["index"] for each in rows["extra_info"]] == list(range(len(rows)))

    ids = torch.tensor([[1, 5, 9]])
    start = AutoModelForCausalLM.from_pretrained(stage(tiny_run, "sl_cai"))
    handed = AutoModelForCausalLM.from_pretrained(folder / "policy")
    with torch.no_grad():
        torch.testing.assert_close(handed(ids).logits, start(ids).logits)

    tokenizer = AutoTokenizer.from_pretrained(folder / "reward_model")
    pm = AutoModelForSequenceClassification.from_pretrained(folder / "reward_model").eval()
    talk = [{"role": "user", "content": "Is tea hot?"}, {"role": "assistant", "content": "At first."}]
    read = tokenizer(tokenizer.apply_chat_template(talk, tokenize=False), return_tensors="pt")
    with torch.no_grad():
        found = pm(**read).logits[:, 0].numpy()
    own = PreferenceModel.load(stage(tiny_run, "pm.rl_cai")).score(["Is tea hot?"], ["At first."])
    np.testing.assert_allclose(found, own, atol=1e-5)

    readme = (folder / "README.md").read_text()
    (coefficient,) = set(re.findall(r"kl_coef=(\S+)|init_coef (\S+)", readme)[0]) - {""}
    assert f"| `rl.kl_coef` | {coefficient} |" in readme
    assert "{" not in readme


def test_a_conversation_stays_one(tmp_path: Path) -> None:
    from pipelines import handover

    dialogue = "\n\nHuman: Is tea hot?\n\nAssistant: At first.\n\nHuman: And then?\n\nAssistant:"
    (messages,) = handover._rows([dialogue], "train")["prompt"]
    assert messages == chat.parse(dialogue)
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("sl_cai", "sl_cai: not trained by RL on prompts against a PM; give an arm that was, such as rl_cai"),
        ("rl_cia", "no trained model 'rl_cia'; there are "),
    ],
)
def test_what_rl_did_not_train_is_refused(cai: Cai, tiny_run: Path, tmp_path: Path, arm: str, expected: str) -> None:
    code, _, errors = cai("export", tiny_run, "--rl", arm, "--out", tmp_path / "rl")
    assert code != 0
    assert expected in errors
    assert not (tmp_path / "rl").exists()
