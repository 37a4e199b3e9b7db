"""RL whose rollouts come from an engine: synced weights, no stale rollouts, the gap between the two logged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from harness.experiment import Lora, Rl, Scale
from harness.graph import Silent
from harness.models import checkpoints, vllm, vllm_engine
from pipelines import grouped, ppo, rl
from tests.gang import together
from tests.grouped import LengthScorer

PROMPTS = ["Why is the sky blue?", "Tea?", "Name a tree.", "hello there"]
needs_vllm = pytest.mark.skipif(not vllm_engine.installed(), reason="vLLM is not installed; `tox -e vllm` has it")


def vowels(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    return np.array([sum(c in "aeiou" for c in text) for text in responses], dtype=float)


def train(start: Path, out: Path, engine: Any, *, lora: bool, split: bool = False, **kwargs: Any) -> pd.DataFrame:
    torch.manual_seed(0)
    policy, tokenizer = checkpoints.load_policy(start, dtype=torch.float32, split=split)
    if split and not lora:
        kwargs["reference"] = checkpoints.load_policy(start, dtype=torch.float32, split=True)[0]
    if lora:
        policy = checkpoints.add_lora(policy, checkpoints.LoraSettings(rank=4, alpha=8))
    config = ppo.PPOConfig(
        updates=3,
        rollouts_per_update=6,
        minibatch_size=3,
        epochs=2,
        max_new_tokens=6,
        learning_rate=1e-2,
        kl_coef=0.05,
        temperature=0.7,
    )
    return ppo.train(policy, tokenizer, PROMPTS, vowels, config, out, engine=engine, **kwargs)


class Scripted:
    """An engine that says the same whatever it is asked, and claims a log-probability of -1 for every token."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def sync(self, policy: Any, update: int) -> None:
        self.heard.append(f"sync {update}")

    def rollout(self, contexts: Sequence[Sequence[int]], *, update: int, **settings: Any) -> Any:
        self.heard.append(f"rollout {update} {settings['keys'][-1]} {settings['temperature']}")
        return [[40, 41, 42]] * len(contexts), [[-1.0, -1.0, -1.0]] * len(contexts)

    def rest(self) -> None:
        self.heard.append("rest")


def test_every_update_syncs_samples_and_rests_and_logs_the_gap(tiny_model: Path, tmp_path: Path) -> None:
    engine = Scripted()
    log = train(tiny_model, tmp_path / "run", engine, lora=False)
    assert engine.heard == [x for n in (1, 2, 3) for x in (f"sync {n}", f"rollout {n} {n}/5 0.7", "rest")]
    assert (log["length"] == 3).all()
    assert (log["engine_gap_max"] >= log["engine_gap_mean"]).all()
    assert log["engine_gap_mean"].iloc[0] > 1  # of 600 tokens none has a log-probability of -1


def compared(start: Path, out: Path, algorithm: Any, engine: Any, lora: bool = True, progress: Any = None) -> Any:
    """Three updates of RLOO or GRPO."""
    settings = Rl(algorithm=algorithm, updates=3, rollouts_per_update=8, minibatch_size=4, learning_rate=1e-2)
    policy, tokenizer = rl.start_policy(start, Lora(rank=4, alpha=8) if lora else None, 0, False)
    return grouped.train(
        policy,
        tokenizer,
        PROMPTS,
        LengthScorer(),  # type: ignore[arg-type]  # a stand-in
        out,
        settings,
        Scale(max_new_tokens=6),
        card="step {step}",
        seed=0,
        report_to="none",
        checkpoint_every=1,
        progress=progress or Silent(),
        engine=engine,
    )


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_answers_that_are_compared_come_from_the_engine_too(tiny_model: Path, tmp_path: Path, algorithm: str) -> None:
    engine = Scripted()
    log = compared(tiny_model, tmp_path / "run", algorithm, engine)
    assert engine.heard == [x for n in (1, 2, 3) for x in (f"sync {n}", f"rollout {n} {n}/7 1.0", "rest")]
    assert (log["length"] == 3).all()


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize(("algorithm", "lora"), [("rloo", True), ("grpo", False)])
def test_answers_that_are_compared_and_resume_to_the_same_by_vllm(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, lora: bool
) -> None:
    monkeypatch.setattr(vllm_engine, "_KV_CACHE", 256 << 20)

    class Kill(Silent):
        def advance(self, done: int, total: int, note: str = "") -> None:
            if done == 5:
                raise KeyboardInterrupt

    whole = compared(tiny_model, tmp_path / "whole", algorithm, vllm.load(tiny_model), lora)
    assert whole["kl"].iloc[-1] > 0.05  # the weights moved
    with pytest.raises(KeyboardInterrupt):
        compared(tiny_model, tmp_path / "killed", algorithm, vllm.load(tiny_model), lora, Kill())
    resumed = compared(tiny_model, tmp_path / "killed", algorithm, vllm.load(tiny_model), lora)
    pd.testing.assert_frame_equal(whole, resumed, check_exact=True)
    for file in (tmp_path / "whole" / "model").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "killed" / "model" / file.name).read_bytes()


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize("lora", [True, False])
def test_rollouts_by_vllm_are_those_of_the_policy_and_resume_to_the_same(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    monkeypatch.setattr(vllm_engine, "_KV_CACHE", 256 << 20)

    def kill(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            raise KeyboardInterrupt

    engine = vllm.load(tiny_model)
    whole = train(tiny_model, tmp_path / "whole", engine, lora=lora)
    assert whole["engine_gap_max"].max() < 1e-3
    assert whole["kl"].iloc[-1] > 0.05  # the weights moved, so an engine without them would differ
    with pytest.raises(RuntimeError, match="rollouts of update 4 asked for, but the engine has the weights of 3"):
        engine.rollout([[1]], update=4, keys=["a"], seed=0, max_new_tokens=1, temperature=1.0)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model, tmp_path / "killed", engine, lora=lora, on_update=kill)
    resumed = train(tiny_model, tmp_path / "killed", vllm.load(tiny_model), lora=lora)
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), resumed.drop(columns="seconds"), check_exact=True)
    for file in (tmp_path / "whole" / "model").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "killed" / "model" / file.name).read_bytes()


def sampled_by_vllm(start: Path, out: Path, lora: bool, split: bool) -> pd.DataFrame:
    vllm_engine._KV_CACHE = 256 << 20  # this process's own
    return train(start, out, vllm.load(start), lora=lora, split=split)


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize(("lora", "split"), [(True, False), (False, False), (False, True)])
def test_each_worker_samples_from_an_engine_of_its_own(
    tiny_model: Path, tmp_path: Path, lora: bool, split: bool
) -> None:
    (alone,) = together(sampled_by_vllm, tiny_model, tmp_path / "alone", lora, False, workers=1, start="spawn")
    log, other = together(sampled_by_vllm, tiny_model, tmp_path / "two", lora, split, start="spawn")
    assert log["engine_gap_max"].max() < 1e-3
    assert log["kl"].iloc[-1] > 0.05
    assert (log.drop(columns="seconds") == other.drop(columns="seconds")).all(axis=None)
    first = ["reward", "length", "kl", "entropy"]
    assert log[first].iloc[0].tolist() == pytest.approx(alone[first].iloc[0].tolist(), abs=1e-4)
    both = [float(found["engine_gap_mean"].iloc[0]) for found in (log, alone)]
    assert both[0] == pytest.approx(both[1], abs=1e-6)
