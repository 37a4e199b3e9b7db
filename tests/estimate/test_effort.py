"""The arithmetic of efforts and forecasts, held against counts made another way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.estimate import effort, forecast
from harness.estimate.effort import Effort, Reading, Sampling, Shape
from harness.estimate.rates import Rates, shipped
from harness.experiment import Lora
from harness.graph import Stage, Work

SHAPE = Shape(body=1e9, head=1e8, layers=10, hidden=1000, kv=200, vocabulary=100_000)
PLAIN = Rates("a test", 1e12, 1e12, 1e12, 1e12, 1e9, 1.0, 2, 80e9)


def nothing(work: Work) -> None:
    return


def test_a_config_gives_the_parameters_that_the_model_has(tiny_model: Path) -> None:
    from harness.models import checkpoints

    model, _ = checkpoints.load_policy(tiny_model)
    shape = effort.of_config(model.config)
    blocks = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name)
    assert (shape.body, shape.head) == (blocks, model.get_output_embeddings().weight.numel())
    assert (shape.layers, shape.hidden, shape.kv) == (2, 32, 2 * 2 * 32)
    assert shape.parameters == model.num_parameters()  # embeddings are tied


@pytest.mark.parametrize(("size", "layers", "hidden"), [(7e9, 33, 4212), (52e9, 64, 8216)])
def test_a_size_alone_gives_the_usual_shape(size: float, layers: int, hidden: int) -> None:
    """Llama 2 7B has 32 layers of 4,096, the paper's 52B model 64 of 8,192."""
    shape = Shape.of_size(size)
    assert (shape.layers, abs(shape.hidden - hidden) < 5) == (layers, True)


def test_lora_has_the_adapters_that_peft_makes(tiny_model: Path) -> None:
    from harness.models import checkpoints

    model, _ = checkpoints.load_policy(tiny_model)
    shape = effort.of_config(model.config)
    lora = Lora(rank=4, alpha=8, top_layers=1)
    adapted = checkpoints.add_lora(model, checkpoints.LoraSettings(**lora.model_dump()))
    really = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert 0.5 < shape.adapters(lora) / really < 2


def test_full_training_takes_six_flop_a_parameter_and_token() -> None:
    (part,) = effort.train(SHAPE, 100, 50, 10, None, logits=50).parts
    assert isinstance(part, effort.Training)
    assert part.flop == pytest.approx(6 * SHAPE.parameters * 5000)
    assert (part.steps, part.rows, part.exchanged) == (10, 10, SHAPE.parameters)
    (adapters,) = effort.train(SHAPE, 100, 50, 10, Lora(rank=8, alpha=8, top_layers=5)).parts
    assert isinstance(adapters, effort.Training)
    assert adapters.flop == pytest.approx(2 * SHAPE.body * 5000 * 1.5)  # no gradients of weights, half of the blocks
    assert adapters.exchanged < 0.01 * SHAPE.parameters


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 500))
def test_more_devices_are_never_slower_and_never_better_than_their_number(a: int, b: int, rows: int) -> None:
    few, more = sorted((a, b))
    work = effort.sample(SHAPE, rows, 20, 32, 30) + effort.train(SHAPE, rows, 50, 16, None) + effort.opened(SHAPE)
    costs = [forecast.cost("x", work, PLAIN, n) for n in (few, more)]
    assert costs[1].seconds <= costs[0].seconds * (1 + 1e-9)
    alone = forecast.cost("x", work, PLAIN, 1)
    assert alone.seconds <= costs[1].seconds * more * (1 + 1e-9)


def test_a_decoding_step_is_never_shorter_than_reading_the_weights() -> None:
    work = Effort(parts=(Sampling(SHAPE, 1000, 100, 1000, 50),))
    floor = 100 * SHAPE.parameters * 2 / PLAIN.weights
    crowd = forecast.cost("x", work, replace(PLAIN, decode=1e15), 10**6)
    assert crowd.seconds == pytest.approx(floor, rel=0.05)
    assert crowd.limit == "weights"


def test_what_keeps_a_stage_from_scaling_is_named() -> None:
    read = Effort(parts=(Reading(1e15, 8, 1e9),))
    assert forecast.cost("x", read, PLAIN, 8).limit == "computing"
    assert forecast.cost("x", read, PLAIN, 64).limit == "rows"
    assert forecast.cost("x", read, PLAIN, 64).seconds == forecast.cost("x", read, PLAIN, 8).seconds
    slow = replace(PLAIN, node=8, link=1e12, network=1e6)
    train = effort.train(SHAPE, 64, 10, 64, None)
    assert forecast.cost("x", train, slow, 8).limit == "computing"
    assert forecast.cost("x", train, slow, 64).limit == "exchange"
    assert forecast.best("x", train, slow, 64).devices == 8  # more would wait for one another


def test_a_model_is_spread_over_devices_that_hold_it() -> None:
    h100 = shipped()["h100"]
    assert [forecast.spread(size, h100) for size in (1e9, 7e9, 52e9, 400e9)] == [1, 1, 2, 16]


def test_the_critical_path_is_the_longest_chain() -> None:
    a, b = Stage("a", nothing), Stage("b", nothing)
    c = Stage("c", nothing, inputs={"a": a, "b": b})
    d = Stage("d", nothing, inputs={"a": a})
    seconds = {"a": 1.0, "b": 5.0, "c": 1.0, "d": 4.0}
    assert forecast.critical_path([a, b, c, d], seconds) == (["b", "c"], 6.0)
    assert forecast.critical_path([a, b, c, d], seconds | {"d": 9.0}) == (["a", "d"], 10.0)
