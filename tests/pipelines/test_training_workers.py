"""Training over two workers: the steps and curves of one, and checkpoints that either goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from harness import ranks
from harness.experiment import Lora, Pm, Rl, Sft
from harness.graph import Silent
from pipelines import dpo, preference_model, sft
from tests.gang import together
from tests.grouped import grouped

# 9 rows in steps of 4: in the last step one worker has no row, the other one.
EXAMPLES = pd.DataFrame(
    {"prompt": [f"Question {i}?" for i in range(9)], "response": ["Yes. " * (i + 1) for i in range(9)], "ended": True}
)
PAIRS = pd.DataFrame(
    {
        "prompt": [f"Question {i}?" for i in range(9)],
        "chosen": ["Good. " * (i % 3 + 1) for i in range(9)],
        "rejected": ["Bad."] * 9,
        "p": [0.9, 1.0, 0.3] * 3,
        "chosen_ended": True,
        "rejected_ended": True,
    }
)
LORA = Lora(rank=4, alpha=8)


class Curve(Silent):
    """Keeps the rows of a training log; stops as a kill does, after so many."""

    def __init__(self, stop: int | None):
        self.stop = stop
        self.rows: list[dict[str, Any]] = []

    def row(self, values: Any) -> None:
        self.rows.append({name: values[name] for name in ("step", "loss", "grad_norm")})
        if len(self.rows) == self.stop:
            raise KeyboardInterrupt


def train(method: str, model: Path, out: Path, micro: int | None, lora: Lora | None, stop: int | None = None) -> Any:
    """(curve, tokens) of a training of six steps, or the beginning of one."""
    heard = Curve(stop)
    shared: dict[str, Any] = {"lora": lora, "seed": 3, "report_to": "none", "progress": heard}
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 4, "micro_batch_size": micro, "learning_rate": 1e-3}
    try:
        if method == "sft":
            tokens: Any = sft.train(model, EXAMPLES, out, Sft(**settings), max_length=64, **shared)
        elif method == "pm":
            tokens = preference_model.train(model, PAIRS, out, Pm(max_length=64, **settings), **shared)
        else:
            options: dict[str, Any] = {
                "updates": 6,
                "minibatch_size": micro or 4,
                "learning_rate": 1e-3,
                "kl_coef": 0.1,
            }
            given = Rl(algorithm="dpo", gradient_accumulation=4 // (micro or 4), snapshots=1, **options)
            log = dpo.train(model, PAIRS, out, given, arm="a", max_length=64, **shared)
            tokens = log["reward"].tolist()
    except KeyboardInterrupt:
        return None
    return heard.rows, tokens


@pytest.mark.parametrize(
    ("method", "micro", "lora"),
    [("sft", None, None), ("sft", 1, LORA), ("pm", 2, None), ("pm", 1, LORA), ("dpo", 2, LORA)],
)
def test_two_workers_have_the_curve_of_one(
    tiny_model: Path, tmp_path: Path, method: str, micro: int | None, lora: Lora | None
) -> None:
    alone, tokens = train(method, tiny_model, tmp_path / "alone", micro, lora)
    (curve, counted), (other, _) = together(train, method, tiny_model, tmp_path / "two", micro, lora)
    assert [row["step"] for row in curve] == [1, 2, 3, 4, 5, 6]
    for found, expected in zip(curve, alone, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    assert curve == other
    assert counted == pytest.approx(tokens, abs=1e-5)
    assert not list((tmp_path / "two").glob("trainer/checkpoint-*"))
    assert (tmp_path / "two" / "model" / "README.md").read_text() == (
        tmp_path / "alone" / "model" / "README.md"
    ).read_text()
    compare(tmp_path / "alone", tmp_path / "two")


def compare(one: Path, two: Path) -> None:
    """The same weights, but for the order in which gradients were added."""
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files
    assert files == sorted(path.relative_to(two) for path in two.rglob("*.safetensors"))
    for file in files:
        expected, found = load_file(one / file), load_file(two / file)
        # A split model has a copy of a tied output layer in its file.
        assert found.keys() - {"lm_head.weight"} == expected.keys() - {"lm_head.weight"}
        for name, value in expected.items():
            # Where a gradient is nearly 0, Adam's step of up to the learning rate has the sign of rounding.
            torch.testing.assert_close(found[name], value, rtol=0, atol=2e-3)
            assert float((found[name] - value).abs().mean()) < 1e-5


@pytest.mark.parametrize("method", ["sft", "pm"])
def test_a_training_goes_on_with_another_number_of_workers(tiny_model: Path, tmp_path: Path, method: str) -> None:
    alone, _ = train(method, tiny_model, tmp_path / "alone", 2, None)
    assert together(train, method, tiny_model, tmp_path / "fewer", 2, None, 3) == [None, None]
    assert list((tmp_path / "fewer").glob("trainer/checkpoint-2"))
    fewer, _ = train(method, tiny_model, tmp_path / "fewer", 2, None)
    assert train(method, tiny_model, tmp_path / "more", 2, None, 5) is None
    (more, _), _ = together(train, method, tiny_model, tmp_path / "more", 2, None)
    assert ([row["step"] for row in fewer], [row["step"] for row in more]) == ([3, 4, 5, 6], [5, 6])
    for curve in (fewer, more):
        for found, expected in zip(curve, alone[-len(curve) :], strict=True):
            assert found == pytest.approx(expected, abs=1e-5)
    compare(tmp_path / "alone", tmp_path / "fewer")
    compare(tmp_path / "alone", tmp_path / "more")


def compared(model: Path, out: Path, algorithm: str) -> pd.DataFrame:
    return grouped(model, out, algorithm, updates=2, minibatch_size=8)[0]


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_two_workers_compare_the_answers_of_one(tiny_model: Path, tmp_path: Path, algorithm: str) -> None:
    (alone,) = together(compared, tiny_model, tmp_path / "alone", algorithm, workers=1)
    one, two = together(compared, tiny_model, tmp_path / "two", algorithm)
    pd.testing.assert_frame_equal(one, two)
    assert alone["step"].tolist() == [1, 2]
    assert alone["reward"].nunique() == 2
    pd.testing.assert_frame_equal(one, alone, rtol=0, atol=1e-5)
    assert (tmp_path / "two" / "snapshots" / "step-000001" / "README.md").is_file()
    compare(tmp_path / "alone", tmp_path / "two")


def test_a_batch_that_the_workers_do_not_divide_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"UserError: sft.batch_size: .* 4 rows .* 3 workers; give a multiple"):
        together(train, "sft", tiny_model, tmp_path, None, None, workers=3)
    assert ranks.divided(4, "sft.batch_size") == 4
