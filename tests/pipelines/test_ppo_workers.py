"""PPO over two workers: the same rollouts, gradient and numbers as one, and checkpoints that either goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import UserError
from pipelines import ppo
from tests.gang import together
from tests.pipelines.test_ppo import PROMPTS, config, encouraged_to_end, lively, tiny, vowels
from tests.pipelines.test_ppo import tokenizer as tokenizer  # a fixture


def policy_of(tokenizer: Any, lora: bool) -> Any:
    return lively(tiny(tokenizer, lora=True)) if lora else encouraged_to_end(tokenizer, 4.5)


def first_update(tokenizer: Any, lora: bool, out: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """The rollouts of the first update, the gradient of its first step, and the update's row."""
    run = ppo._Run(policy_of(tokenizer, lora), tokenizer, PROMPTS, vowels, config(**changes), out)
    gradients: list[dict[str, Any]] = []
    step = run.learner.optimizer.step

    def noted() -> None:
        gradients.append({name: p.grad.clone().numpy() for name, p in run.learner.named() if p.grad is not None})
        step()

    run.learner.optimizer.step = noted
    rollouts = run.rollout(config(**changes).value_pretraining + 1)
    row = run.update(1)
    return {
        "responses": rollouts.responses,
        "scores": rollouts.scores.tolist(),
        "floats": [
            x.numpy() for x in (rollouts.logp, rollouts.ref_logp, rollouts.values, rollouts.entropy * rollouts.mask)
        ],
        "gradient": gradients[0],
        "row": {name: value for name, value in row.items() if name != "seconds"},
        "tokens": run.tokens,
    }


@pytest.mark.parametrize(
    ("lora", "changes"),
    [
        (False, {"max_grad_norm": 1e9}),
        (True, {"reward_normalisation": "reference"}),
        # Minibatches of 2 in steps of 4: the last of 7 rollouts leaves one worker with a row less, the second without.
        (False, {"rollouts_per_update": 5, "minibatch_size": 2, "gradient_accumulation": 2}),
    ],
)
def test_two_workers_sample_the_rollouts_of_one_and_take_its_gradient(
    tokenizer: Any, tmp_path: Path, lora: bool, changes: dict[str, Any]
) -> None:
    one = first_update(tokenizer, lora, tmp_path, changes)
    two, other = together(first_update, tokenizer, lora, tmp_path, changes)
    assert two["responses"] == one["responses"] == other["responses"]
    assert len(set(map(len, one["responses"]))) > 1 or lora
    assert (two["scores"], two["tokens"]) == (one["scores"], one["tokens"])
    for found, expected in zip(two["floats"], one["floats"], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    for name, gradient in one["gradient"].items():
        np.testing.assert_allclose(two["gradient"][name], gradient, atol=1e-5)
        np.testing.assert_array_equal(two["gradient"][name], other["gradient"][name])
    assert two["row"] == other["row"]
    assert two["row"] == pytest.approx(one["row"], abs=1e-4)


def whole(tokenizer: Any, lora: bool, out: Path, stop: int | None = None) -> Any:
    """A run with value pretraining and snapshots, or its beginning: (log, the value head's rows, the policy)."""

    def told(row: dict[str, Any]) -> None:
        if row["step"] == stop:
            raise KeyboardInterrupt

    settings = config(updates=3, value_pretraining=1, kl_target=0.5, snapshot_steps=(2,), learning_rate=1e-3)
    policy = policy_of(tokenizer, lora)
    try:
        log = ppo.train(policy, tokenizer, PROMPTS, vowels, settings, out, on_update=told, model_card="step {step}")
    except KeyboardInterrupt:
        return None
    return log.drop(columns="seconds"), log.attrs


def weights(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    files = sorted(out.glob("**/*.safetensors"))
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("lora", [True, False])
def test_a_checkpoint_goes_on_with_another_number_of_workers(tokenizer: Any, tmp_path: Path, lora: bool) -> None:
    alone, fewer, more = (tmp_path / name for name in ("alone", "fewer", "more"))
    log, _ = whole(tokenizer, lora, alone)
    together(whole, tokenizer, lora, fewer, 2)
    logs = [whole(tokenizer, lora, fewer)[0]]
    assert whole(tokenizer, lora, more, 1) is None
    logs.append(together(whole, tokenizer, lora, more)[0][0])
    for out, found in zip((fewer, more), logs, strict=True):
        assert found["step"].tolist() == [1, 2, 3]
        np.testing.assert_allclose(found.to_numpy(float), log.to_numpy(float), atol=2e-3)
        assert (out / "snapshots" / "step-000002" / "README.md").read_text() == "step 2"
        assert not (out / "checkpoint").exists()
        expected, made = weights(alone), weights(out)
        assert made.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(made[name], value, rtol=0, atol=1e-3)


def test_fewer_answers_than_workers_are_one_line(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="1 answers cannot be shared by 2 workers"):
        together(first_update, tokenizer, False, tmp_path, {"rollouts_per_update": 1})


def test_what_is_gathered_comes_in_the_order_it_was_shared(tokenizer: Any) -> None:
    assert together(_shared, workers=3) == [(list(range(8)), [[0, 3], [6]]), (list(range(8)), [[1, 4], [7]]),
                                            (list(range(8)), [[2, 5], []])]  # fmt: skip
    assert _shared() == (list(range(8)), [[0, 1], [2, 3], [4, 5], [6, 7]])
    with pytest.raises(AssertionError, match="8 rows cannot be divided among 3 workers"):
        together(_divided, workers=3)


def _shared() -> Any:
    from harness import ranks

    return ranks.gathered(ranks.share(range(8))), ranks.portions(range(8), 2)


def _divided() -> int:
    from harness import ranks

    try:
        return ranks.divided(8, "sft.batch_size")
    except UserError as error:
        raise AssertionError(str(error)) from error
