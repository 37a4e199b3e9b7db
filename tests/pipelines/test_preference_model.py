"""The PM: its loss against a float64 reference and against TRL's own, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from trl import RewardConfig, RewardTrainer

from harness.experiment import Lora, Pm
from harness.graph import Silent
from harness.models import chat, scorer
from harness.models.scorer import PreferenceModel
from pipelines import preference_model, soft_label

PAIRS = pd.DataFrame(
    {
        "prompt": [f"Question number {i}?" for i in range(12)],
        "chosen": [f"{w} yes yes" for w in "abcdefghijkl"],
        "rejected": [f"{w} no no" for w in "abcdefghijkl"],
        "p": 1.0,
    }
)


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 1)), min_size=1, max_size=20))
def test_the_soft_label_loss_is_a_cross_entropy(cases: list[tuple[float, float]]) -> None:
    d, p = (np.array(x) for x in zip(*cases, strict=True))
    s = 1 / (1 + np.exp(-d))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(s), 0) + np.where(p < 1, (1 - p) * np.log1p(-s), 0)
    got = soft_label.soft_label_loss(torch.tensor(d), torch.tensor(p))
    assert got.item() == pytest.approx(-terms.mean(), rel=1e-6, abs=1e-9)


def test_its_minimum_is_at_the_labels_log_odds() -> None:
    p = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    d = torch.logit(p).requires_grad_()
    soft_label.soft_label_loss(d, p).backward()
    assert torch.allclose(d.grad, torch.zeros(3, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize(("hard", "centred"), [(0.0, None), (1.0, None), (1.0, 0.3)])
def test_hard_labels_give_reward_trainers_own_loss(
    tiny_model: Path, tmp_path: Path, hard: float, centred: float | None
) -> None:
    model, tokenizer = scorer.load_classifier(tiny_model)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight)
    better, worse = ("chosen", "rejected") if hard == 1 else ("rejected", "chosen")
    rows = [
        {
            "chosen_ids": chat.encode_dialogue(tokenizer, r["prompt"], r[better]),
            "rejected_ids": chat.encode_dialogue(tokenizer, r["prompt"], r[worse]),
        }
        for r in PAIRS.to_dict("records")
    ]
    config = RewardConfig(
        output_dir=str(tmp_path),
        bf16=False,
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        center_rewards_coefficient=centred,
    )
    theirs = RewardTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    expected = theirs.compute_loss(model, theirs.data_collator(rows))
    ours = [
        {"chosen_ids": r["chosen_ids"], "rejected_ids": r["rejected_ids"], "p": 1.0}
        if hard == 1
        else {"chosen_ids": r["rejected_ids"], "rejected_ids": r["chosen_ids"], "p": 0.0}
        for r in rows
    ]
    job = soft_label.SoftLabelRewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(ours),
        processing_class=tokenizer,
        data_collator=soft_label.SoftLabelCollator(pad_token_id=tokenizer.pad_token_id),
    )
    assert job.compute_loss(model, job.data_collator(ours)).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("lora", [Lora(rank=8, alpha=16), None], ids=["lora", "full"])
def test_a_pm_learns_saves_and_loads(tiny_model: Path, tmp_path: Path, lora: Lora | None) -> None:
    settings = Pm(epochs=30, learning_rate=1e-2, batch_size=4, max_length=64)
    tokens = preference_model.train(
        tiny_model, PAIRS, tmp_path, settings, lora=lora, seed=0, report_to="none", progress=Silent()
    )
    assert tokens > 0
    pm = PreferenceModel.load(tmp_path / "model")
    evaluated = preference_model.evaluate(pm, PAIRS)
    assert evaluated["correct"].mean() == 1
    assert preference_model.quality(evaluated)["loss"] < 0.3
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_soft_labels_are_learnt_as_probabilities(tiny_model: Path, tmp_path: Path) -> None:
    settings = Pm(epochs=40, learning_rate=1e-2, batch_size=4, max_length=64)
    soft = PAIRS.assign(p=0.7)
    preference_model.train(tiny_model, soft, tmp_path, settings, lora=None, seed=0, report_to="none", progress=Silent())
    evaluated = preference_model.evaluate(PreferenceModel.load(tmp_path / "model"), PAIRS)
    np.testing.assert_allclose(evaluated["p_chosen"], 0.7, atol=0.08)


def test_gradient_accumulation_equals_one_large_batch(tiny_model: Path, tmp_path: Path) -> None:
    """13 pairs in steps of 8, at once and 4 at a time: the last pair, alone in its micro-batch, weighs as any other."""
    last = pd.DataFrame({"prompt": ["Last?"], "chosen": ["no no no"], "rejected": ["yes"], "p": [0.9]})
    pairs = pd.concat([PAIRS, last], ignore_index=True)
    scores = []
    for micro in (None, 4):
        settings = Pm(epochs=3, learning_rate=1e-3, batch_size=8, micro_batch_size=micro, max_length=64)
        out = tmp_path / str(micro)
        preference_model.train(tiny_model, pairs, out, settings, lora=None, seed=0, report_to="none", progress=Silent())
        pm = PreferenceModel.load(out / "model")
        scores.append(pm.score(pairs["prompt"].tolist(), pairs["chosen"].tolist()))
    assert np.abs(scores[0]).max() > 0.05
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_an_untrained_pm_is_a_coin(tiny_model: Path) -> None:
    model, tokenizer = scorer.load_classifier(tiny_model)
    evaluated = preference_model.evaluate(PreferenceModel(model.eval(), tokenizer), PAIRS)
    assert preference_model.quality(evaluated)["accuracy"] == 0.5
    assert preference_model.quality(evaluated)["loss"] == pytest.approx(np.log(2))
