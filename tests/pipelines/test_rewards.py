"""Reward normalisation and value pretraining: their formulas, resuming, and what they do to a known task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.models import checkpoints
from pipelines import ppo, rewards

PROMPTS = ["Why is the sky blue?", "Tea?", "Name a tree.", "hello there"]
SCORES = st.lists(st.lists(st.floats(-50, 50), min_size=1, max_size=6), min_size=1, max_size=5)


@given(SCORES)
def test_running_rewards_are_in_deviations_of_all_scores_so_far(turns: list[list[float]]) -> None:
    running, seen = rewards.Running(), list[float]()
    for scores in turns:
        seen += scores
        expected = (np.array(scores) - np.mean(seen)) / np.sqrt(np.var(seen) + 1e-8)
        resumed = rewards.Running()
        resumed.restore(running.state())
        np.testing.assert_array_equal(resumed(np.array(scores), []), got := running(np.array(scores), []))
        np.testing.assert_allclose(got, expected, atol=1e-6, rtol=1e-6)


def test_reference_rewards_ask_for_each_prompts_answer_once() -> None:
    asked: list[list[int]] = []

    def answered(index: Sequence[int]) -> np.ndarray:
        asked.append(list(index))
        return np.array([10.0 * i for i in index])

    reference = rewards.Reference(answered)
    np.testing.assert_array_equal(reference(np.array([1.0, 2.0, 3.0]), [4, 2, 4]), [-39, -18, -37])
    resumed = rewards.Reference(answered)
    resumed.restore(reference.state())
    np.testing.assert_array_equal(resumed(np.array([1.0, 2.0]), [2, 0]), [-19, 2])
    assert asked == [[2, 4], [0]]


def vowels(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """The share of vowels, and an offset of the prompt that no answer can move."""
    rows = zip(prompts, responses, strict=True)
    return np.array([10 * sum(c in "aeiou" for c in r) / max(len(r), 1) + len(p) for p, r in rows])


def train(start: Path, out: Path, *, lora: bool = False, on_update: Any = None, **changes: Any) -> pd.DataFrame:
    torch.manual_seed(0)
    policy, tokenizer = checkpoints.load_policy(start, dtype=torch.float32)
    if lora:
        policy = checkpoints.add_lora(policy, checkpoints.LoraSettings(rank=4, alpha=8))
    settings: dict[str, Any] = {
        "updates": 3,
        "rollouts_per_update": 6,
        "minibatch_size": 3,
        "epochs": 2,
        "max_new_tokens": 6,
        "learning_rate": 5e-3,
        "kl_coef": 0.05,
    }
    config = ppo.PPOConfig(**settings | changes)
    heard = {} if on_update is None else {"on_update": on_update}
    return ppo.train(policy, tokenizer, PROMPTS, vowels, config, out, **heard)


@pytest.mark.parametrize("lora", [True, False])
def test_reference_rewards_are_centred_on_the_start_policys_answers(
    tiny_model: Path, tmp_path: Path, lora: bool
) -> None:
    """Whatever the prompt adds to a score is gone, and a policy that stands still gains nothing on average."""
    settings = {"updates": 12, "rollouts_per_update": 16, "minibatch_size": 16, "epochs": 1, "learning_rate": 1e-12}
    log = train(tiny_model, tmp_path, lora=lora, reward_normalisation="reference", **settings)
    assert log["reward"].min() > 5
    assert log["reward_normalised"].abs().mean() < 1.5
    assert (log["reward"] - log["reward_normalised"]).round(
        6
    ).nunique() == 1  # 16 rollouts take each of 4 prompts 4 times


@pytest.mark.parametrize("normalisation", ["none", "running", "reference"])
def test_resuming_with_normalisation_and_value_pretraining_ends_equal(
    tiny_model: Path, tmp_path: Path, normalisation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"reward_normalisation": normalisation, "value_pretraining": 2}
    whole = train(tiny_model, tmp_path / "whole", **settings)
    assert whole["step"].tolist() == [1, 2, 3]
    assert len(whole.attrs["value_pretraining"]) == 2

    def kill(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            raise KeyboardInterrupt

    checkpoint = ppo._Run.checkpoint

    def kill_early(run: Any) -> None:
        checkpoint(run)
        if len(run.pretrained) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(ppo._Run, "checkpoint", kill_early)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model, tmp_path / "killed", **settings)
    monkeypatch.setattr(ppo._Run, "checkpoint", checkpoint)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model, tmp_path / "killed", on_update=kill, **settings)
    resumed = train(tiny_model, tmp_path / "killed", **settings)
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), resumed.drop(columns="seconds"), check_exact=True)
    assert whole.attrs == resumed.attrs
    for file in (tmp_path / "whole" / "model").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "killed" / "model" / file.name).read_bytes()


@pytest.mark.parametrize("minibatch", [3, 6])
def test_value_pretraining_moves_the_value_head_and_nothing_else(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minibatch: int
) -> None:
    seen: list[tuple[dict[str, torch.Tensor], torch.Tensor]] = []
    pretrain = ppo._Run.pretrain

    def spy(run: Any, number: int) -> dict[str, float]:
        before = {name: p.detach().clone() for name, p in run.policy.named_parameters()}
        head = run.learner.model.value.weight.detach().clone()
        row = pretrain(run, number)
        assert all(torch.equal(p, before[name]) for name, p in run.policy.named_parameters())
        assert not torch.equal(run.learner.model.value.weight, head)
        seen.append((before, head))
        return row

    monkeypatch.setattr(ppo._Run, "pretrain", spy)
    log = train(tiny_model, tmp_path, value_pretraining=3, updates=1, minibatch_size=minibatch)
    assert len(seen) == 3
    assert log["kl"].iloc[0] == pytest.approx(0, abs=1e-5)  # the policy is still that of the start


def test_value_pretraining_learns_what_answers_are_worth(tiny_model: Path, tmp_path: Path) -> None:
    """Each batch is new answers: what the head explains of them it learned from others. It starts at their mean."""
    settings = {"value_pretraining": 8, "rollouts_per_update": 16, "minibatch_size": 16, "epochs": 4}
    rows = train(tiny_model, tmp_path, updates=1, learning_rate=2e-2, **settings).attrs["value_pretraining"]
    assert rows[0]["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["explained_variance"] > 0.25
    assert rows[-1]["value_loss"] < rows[0]["value_loss"]
