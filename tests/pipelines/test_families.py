"""Every family through the whole line: tokenizer, SFT, PM, PPO, sampling, saving, loading, merging.

One step of each on a random model of 16 dimensions: what is tested is that nothing of a family's conventions is in the
way. LoRA runs go through the family's chat template, full weights without one, and PPO both ways.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from harness.experiment import Lora, Pm, Sft
from harness.models import chat, checkpoints, scorer
from harness.models.transformers import Generator
from pipelines import ppo, preference_model, sft
from tests.families import FAMILIES, Family, build

LORA = Lora(rank=2, alpha=4, top_layers=1)
PROMPTS = ["Tea?", "Why is the sky blue?"]
EXAMPLES = pd.DataFrame({"prompt": PROMPTS, "response": ["Yes, with milk.", "Light scatters."]})
PAIRS = pd.DataFrame({"prompt": PROMPTS, "chosen": ["Yes.", "Light."], "rejected": ["No", "Paint"], "p": [1.0, 0.7]})
BOTH = [pytest.param(f, t, id=f"{f.name}-{'template' if t else 'plain'}") for f in FAMILIES for t in (True, False)]


class Quiet:
    def advance(self, done: int, total: int, note: str) -> None:
        pass

    def row(self, values: Any) -> None:
        pass


def changed(before: Any, after: Any) -> set[str]:
    old = dict(before.named_parameters())
    return {name for name, weight in after.named_parameters() if not torch.equal(weight, old[name])}


def same_logits(one: Any, other: Any, ids: list[int]) -> None:
    row = torch.tensor([ids])
    torch.testing.assert_close(one(row).logits, other(row).logits, atol=1e-5, rtol=1e-5)


def sampled(model: Any, tokenizer: Any) -> list[str]:
    return [s.text for s in Generator(model, tokenizer).sample(PROMPTS, max_new_tokens=4, keys=PROMPTS)]


@pytest.mark.parametrize(("family", "template"), BOTH)
def test_a_family_goes_through_the_whole_line(family: Family, template: bool, tmp_path: Path) -> None:
    start = build(family, tmp_path / "base", template=template)
    base, tokenizer = checkpoints.load_policy(start)
    # A pad token of its own, with a row in the embeddings, and the same model at each loading.
    assert tokenizer.pad_token in family.special if family.pad else tokenizer.pad_token == "<|pad|>"
    assert not template or tokenizer.pad_token == (family.pad or "<|pad|>")
    assert tokenizer.pad_token_id not in chat.stop_ids(tokenizer) | {tokenizer.bos_token_id}
    assert tokenizer.pad_token_id < base.get_input_embeddings().weight.shape[0] >= len(tokenizer)
    ids = chat.encode_prompt(tokenizer, PROMPTS[1])
    same_logits(base, checkpoints.load_policy(start)[0], ids)
    together, alone = sampled(base, tokenizer), Generator(base, tokenizer, 1)
    assert together == [s.text for s in alone.sample(PROMPTS, max_new_tokens=4, keys=PROMPTS)]

    lora = LORA if template else None
    common: dict[str, Any] = {"lora": lora, "seed": 0, "report_to": "none", "progress": Quiet()}
    sft.train(start, EXAMPLES, tmp_path / "sft", Sft(batch_size=2, learning_rate=0.1), max_length=64, **common)
    tuned, again = checkpoints.load_policy(tmp_path / "sft" / "model")
    assert again.pad_token_id == tokenizer.pad_token_id
    assert again.chat_template == tokenizer.chat_template
    moved = changed(base, tuned)
    assert moved
    assert all(".1." in name for name in moved) == template  # the top one of two blocks

    settings = Pm(epochs=1, batch_size=2, learning_rate=0.1, max_length=64)
    preference_model.train(start, PAIRS, tmp_path / "pm", settings, **common)
    pm = scorer.PreferenceModel.load(tmp_path / "pm" / "model")
    scores = pm.score(PROMPTS, list(PAIRS["chosen"]))
    one_by_one = [pm.score([p], [r])[0] for p, r in zip(PROMPTS, PAIRS["chosen"], strict=True)]
    np.testing.assert_allclose(scores, one_by_one, atol=1e-5)
    assert len(set(scores.round(6))) == 2

    for with_lora in (True, False):
        out = tmp_path / f"ppo-{with_lora}"
        policy, tokens = checkpoints.load_policy(tmp_path / "sft" / "model")
        if with_lora:
            policy = checkpoints.add_lora(policy, checkpoints.LoraSettings(**LORA.model_dump()))
        config = ppo.PPOConfig(
            updates=1, rollouts_per_update=2, minibatch_size=2, epochs=1, max_new_tokens=4, learning_rate=0.1,
            kl_coef=0.1, snapshot_steps=(1,),
        )  # fmt: skip
        log = ppo.train(policy, tokens, PROMPTS, pm.score, config, out)
        assert log["kl"].abs().item() < 1e-4  # sampled, read and read by the reference alike
        final, last = checkpoints.load_policy(out / "model")
        snapshot, _ = checkpoints.load_policy(out / "snapshots" / "step-000001")
        assert (out / "snapshots" / "step-000001" / "adapter_config.json").exists() == with_lora
        same_logits(final, snapshot, ids)
        assert changed(tuned, final)
        assert last.pad_token_id == tokenizer.pad_token_id
        assert sampled(final, last) == sampled(snapshot, last)
