"""A model split over two workers (FSDP2) goes through each training as a whole one does on one worker."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributed.tensor import DTensor

from harness.experiment import Lora, Pm, Rl, Scale, Sft
from harness.graph import Silent
from harness.models import checkpoints, sharded
from harness.models.scorer import PreferenceModel
from harness.models.transformers import Generator
from pipelines import dpo, ppo, preference_model, rl, sft
from pipelines import trainer as trainers
from tests.gang import together
from tests.pipelines.test_training_workers import EXAMPLES, LORA, PAIRS, Curve, compare


def split_of(model: Any) -> set[bool]:
    return {isinstance(parameter, DTensor) for parameter in model.parameters()}


def train(method: str, model: Path, out: Path, lora: Lora | None, split: bool, stop: int | None = None) -> Any:
    """(curve, kinds of parameters that were trained with) of a training of three steps, or the beginning of one."""
    heard, seen = Curve(stop), set()
    run = trainers.run

    def noted(job: Any, *args: Any) -> None:
        seen.update(split_of(job.model))
        run(job, *args)

    trainers.run = noted
    shared: dict[str, Any] = {"lora": lora, "seed": 3, "report_to": "none", "progress": heard, "split": split}
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3}
    with contextlib.suppress(KeyboardInterrupt):
        if method == "sft":
            sft.train(model, EXAMPLES, out, Sft(**settings), max_length=64, **shared)
        elif method == "pm":
            preference_model.train(model, PAIRS, out, Pm(max_length=64, **settings), **shared)
        else:
            given = Rl(algorithm="dpo", updates=3, minibatch_size=4, learning_rate=1e-3, snapshots=1)
            dpo.train(model, PAIRS, out, given, arm="a", max_length=64, **shared)
    return heard.rows, seen


@pytest.mark.parametrize(("method", "lora"), [("sft", None), ("sft", LORA), ("pm", None), ("pm", LORA), ("dpo", LORA)])
def test_a_split_model_has_the_curve_of_a_whole_one(
    tiny_model: Path, tmp_path: Path, method: str, lora: Lora | None
) -> None:
    alone, _ = train(method, tiny_model, tmp_path / "alone", lora, False)
    (curve, seen), _ = together(train, method, tiny_model, tmp_path / "split", lora, True)
    assert True in seen
    assert len(curve) == len(alone) == 3
    for found, expected in zip(curve, alone, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    compare(tmp_path / "alone", tmp_path / "split")
    assert not list((tmp_path / "split").glob("*.adapter"))
    if method == "pm":
        scores = PreferenceModel.load(tmp_path / "split" / "model").score(["Question?"], ["Yes."])
        assert np.isfinite(scores).all()
    else:
        tuned = Generator(*checkpoints.load_policy(tmp_path / "split" / "model"))
        assert tuned.sample(["Question?"], max_new_tokens=4)


@pytest.mark.parametrize(("method", "lora"), [("sft", None), ("pm", LORA), ("dpo", LORA)])
def test_a_split_training_goes_on_whole_and_a_whole_one_split(
    tiny_model: Path, tmp_path: Path, method: str, lora: Lora | None
) -> None:
    alone, _ = train(method, tiny_model, tmp_path / "alone", lora, False)
    together(train, method, tiny_model, tmp_path / "whole", lora, True, 2)
    assert list((tmp_path / "whole").glob("trainer/checkpoint-1"))
    whole, _ = train(method, tiny_model, tmp_path / "whole", lora, False)
    train(method, tiny_model, tmp_path / "split", lora, False, 2)
    (split, seen), _ = together(train, method, tiny_model, tmp_path / "split", lora, True)
    assert True in seen
    for name, curve in (("whole", whole), ("split", split)):
        assert [row["step"] for row in curve] == [2, 3]
        for found, expected in zip(curve, alone[1:], strict=True):
            assert found == pytest.approx(expected, abs=1e-5)
        compare(tmp_path / "alone", tmp_path / name)


def reinforced(model: Path, out: Path, given: Rl, lora: Lora | None, split: bool, heard: Silent) -> pd.DataFrame | None:
    """The log of RL against the model as its own PM; None where `heard` stops it."""
    pm = PreferenceModel.load(model, max_length=64)
    torch.manual_seed(0)
    with torch.no_grad():
        pm.model.score.weight.normal_()  # the head of an untrained PM is zero
    shared: dict[str, Any] = {"arm": "a", "lora": lora, "seed": 0, "report_to": "none", "split": split}
    with contextlib.suppress(KeyboardInterrupt):
        return rl.train(
            model, list(EXAMPLES["prompt"]), pm, out, given, Scale(max_new_tokens=6), progress=heard, **shared
        )
    return None


def rollout(model: Path, out: Path, lora: Lora | None, split: bool, stop: int | None = None) -> Any:
    """A run of PPO, or its beginning: the log without times."""
    settings: dict[str, Any] = {"updates": 2, "rollouts_per_update": 5, "minibatch_size": 2, "gradient_accumulation": 2}
    given = Rl(snapshots=1, value_pretraining=1, learning_rate=1e-3, **settings)
    log = reinforced(model, out, given, lora, split, Updates(stop))
    return None if log is None else log.drop(columns="seconds")


class Updates(Silent):
    def __init__(self, stop: int | None):
        self.stop = stop

    def row(self, values: Any) -> None:
        if values["step"] == self.stop:
            raise KeyboardInterrupt


@pytest.mark.parametrize("lora", [None, LORA])
def test_ppo_of_a_split_policy_is_that_of_a_whole_one(tiny_model: Path, tmp_path: Path, lora: Lora | None) -> None:
    """Begun whole by one worker, ended split by two, and the reverse: checkpoints are the same."""
    alone = rollout(tiny_model, tmp_path / "alone", lora, False)
    split, other = together(rollout, tiny_model, tmp_path / "split", lora, True)
    assert split.equals(other)
    assert rollout(tiny_model, tmp_path / "begun", lora, False, 1) is None
    begun, _ = together(rollout, tiny_model, tmp_path / "begun", lora, True)
    assert together(rollout, tiny_model, tmp_path / "ended", lora, True, 1) == [None, None]
    ended = rollout(tiny_model, tmp_path / "ended", lora, False)
    for name, log in (("split", split), ("begun", begun), ("ended", ended)):
        np.testing.assert_allclose(log.to_numpy(float), alone.to_numpy(float), atol=1e-4, err_msg=name)
        compare(tmp_path / "alone", tmp_path / name)
    assert Generator(*checkpoints.load_policy(tmp_path / "split" / "model")).sample(["Question?"], max_new_tokens=4)


def gradient(model: Path, out: Path, split: bool) -> Any:
    """(kinds of parameters, the first step's gradient) of PPO."""
    policy, tokenizer = checkpoints.load_policy(model, dtype=torch.float32, split=split)
    reference = checkpoints.load_policy(model, dtype=torch.float32, split=True)[0] if split else None
    config = ppo.PPOConfig(
        updates=1, rollouts_per_update=4, minibatch_size=2, epochs=1, max_new_tokens=5, learning_rate=1e-3, kl_coef=0.1
    )

    def lengths(_: Any, answers: Any) -> np.ndarray:
        return np.array([float(len(answer)) for answer in answers])

    run = ppo._Run(policy, tokenizer, list(EXAMPLES["prompt"]), lengths, config, out, None, reference)
    found: dict[str, Any] = {}
    step = run.learner.optimizer.step

    def noted() -> None:
        found.update({name: sharded.whole(p.grad).clone().numpy() for name, p in run.learner.named()})
        step()

    run.learner.optimizer.step = noted
    run.update(1)
    return split_of(policy), found


def test_the_gradient_of_a_split_policy_is_that_of_a_whole_one(tiny_model: Path, tmp_path: Path) -> None:
    kinds, expected = gradient(tiny_model, tmp_path, False)
    assert kinds == {False}
    (kinds, found), _ = together(gradient, tiny_model, tmp_path, True)
    assert kinds == {True}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


def grouped(model: Path, out: Path, algorithm: Any, lora: Lora | None, split: bool, stop: int | None = None) -> Any:
    """The curve of two updates, or the beginning of it; each worker samples its own answers."""
    settings: dict[str, Any] = {"updates": 2, "rollouts_per_update": 8, "minibatch_size": 8, "learning_rate": 1e-3}
    heard = Curve(stop)
    reinforced(model, out, Rl(algorithm=algorithm, snapshots=1, **settings), lora, split, heard)
    return heard.rows


@pytest.mark.parametrize(("algorithm", "lora"), [("rloo", LORA), ("grpo", None)])
def test_groups_of_a_split_policy_have_the_curve_of_a_whole_one(
    tiny_model: Path, tmp_path: Path, algorithm: str, lora: Lora | None
) -> None:
    whole, _ = together(grouped, tiny_model, tmp_path / "whole", algorithm, lora, False)
    split, other = together(grouped, tiny_model, tmp_path / "split", algorithm, lora, True)
    assert split == other
    together(grouped, tiny_model, tmp_path / "killed", algorithm, lora, True, 2)
    (last,), _ = together(grouped, tiny_model, tmp_path / "killed", algorithm, lora, True)
    assert [row["step"] for row in whole] == [1, 2]
    assert min(row["grad_norm"] for row in whole) > 1e-3  # there was something to learn
    for found, expected in zip([*split, last], [*whole, whole[1]], strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    compare(tmp_path / "whole", tmp_path / "split")
    assert Generator(*checkpoints.load_policy(tmp_path / "split" / "model")).sample(["Question?"], max_new_tokens=4)
