"""Rows over several processes: each batch once, whoever is lost; the values of one process, to the last bit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import UserError
from harness.models import scorer, spread
from harness.models.open import open_model
from harness.models.spread import Loading, LostError
from harness.models.vllm import _shares

PROMPTS = [f"Say {'again ' * (i % 5)}what {i} is." for i in range(11)]


class Friend:
    """A helper in a thread of this process, with models of its own; lost in those of its calls that `lost` names."""

    def __init__(self, lost: tuple[int, ...] = (), fail: Exception | None = None):
        self.lost, self.fail = lost, fail
        self.calls, self.models = 0, dict[str, Any]()

    def ready(self, loading: Loading, wait: float) -> bool:
        if loading.name not in self.models:
            self.models[loading.name] = loading()
        return True

    def call(self, loading: Loading, method: str, arguments: Mapping[str, Any]) -> tuple[Any, int]:
        self.calls += 1
        time.sleep(0.01)  # or it would take all, where its batches are nothing
        if self.calls in self.lost:
            self.models.clear()
            raise LostError
        if self.fail is not None:
            raise self.fail
        model = self.models[loading.name]
        before = getattr(model, "tokens", 0)
        result = getattr(model, method)(**arguments)
        return result, getattr(model, "tokens", 0) - before

    def forget(self, loading: Loading) -> None:
        self.models.pop(loading.name, None)


def ask(model: Any) -> dict[str, Any]:
    """What a model says in each of the three ways, and how often it was heard."""
    heard: dict[str, list[int]] = {"converse": [], "choose": [], "pairs": []}
    chains = model.converse(
        PROMPTS,
        [("Why?",) * (i % 2) for i in range(len(PROMPTS))],
        keys=[(f"a{i}", f"b{i}")[: 1 + i % 2] for i in range(len(PROMPTS))],
        max_new_tokens=6,
        on_batch=lambda index, _: heard["converse"].extend(index),
    )
    labels = model.choose(PROMPTS, ["A", "Bee"], think=4, on_batch=lambda index, _: heard["choose"].extend(index))
    pairs = model.choose(
        PROMPTS[:10], ["A", "B"], together=2, lead="It is", on_batch=lambda index, _: heard["pairs"].extend(index)
    )
    assert sorted(heard["converse"]) == sorted(heard["choose"]) == list(range(11))
    assert sorted(heard["pairs"]) == list(range(10))
    return {
        "chains": [[(said.text, tuple(said.ids)) for said in chain] for chain in chains],
        "labels": [(choice.logprobs.tobytes(), choice.reasoning) for choice in labels],
        "pairs": [choice.logprobs.tobytes() for choice in pairs],
        "samples": [said.ids for said in model.sample(PROMPTS, max_new_tokens=5, seed=3)],
        "tokens": model.tokens,
        "parameters": model.parameters,
    }


@pytest.mark.parametrize("lost", [(), (1, 3)])
def test_a_model_says_the_same_alone_and_with_helpers(tiny_model: Path, lost: tuple[int, ...]) -> None:
    alone = ask(open_model(tiny_model, batch_size=3))
    friends = [Friend(lost), Friend()]
    with spread.among(friends):
        model = open_model(tiny_model, batch_size=3)
        assert isinstance(model, spread.SpreadModel)
        for friend in friends:
            friend.ready(model.copies.loading, 0)
        assert ask(model) == alone
    assert all(friend.calls for friend in friends)


def test_a_pm_gives_the_same_scores_alone_and_with_helpers(tiny_model: Path, tmp_path: Path) -> None:
    model, tokenizer = scorer.load_classifier(tiny_model)
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    alone = scorer.PreferenceModel.load(tmp_path, batch_size=2).score(PROMPTS, PROMPTS[::-1])
    friend = Friend(lost=(2,))
    with spread.among([friend]):
        pm = scorer.PreferenceModel.load(tmp_path, batch_size=2)
        assert pm.copies is not None
        friend.ready(pm.copies.loading, 0)
        assert pm.score(PROMPTS, PROMPTS[::-1]).tobytes() == alone.tobytes()
        assert pm.score([], []).shape == (0,)
        assert friend.calls
        friend.ready(pm.copies.loading, 0)
        assert friend.models
        del pm
        assert not friend.models  # what this process has let go
    assert np.ptp(alone) > 0


def each(copies: spread.Copies, batches: list[list[int]], here: Callable[[list[int]], Any]) -> list[int]:
    heard: list[int] = []
    copies.each(batches, here, lambda batch: ("copy", {}), lambda batch, _: heard.extend(batch))
    return heard


@pytest.fixture
def copies() -> spread.Copies:
    return spread.Copies(list)


BATCHES = [[i] for i in range(20)]


def test_without_helpers_batches_come_in_their_order(copies: spread.Copies) -> None:
    assert each(copies, BATCHES, len) == list(range(20))


def test_a_batch_whose_helper_is_lost_at_the_very_end_is_not(copies: spread.Copies) -> None:
    class Slow(Friend):
        def ready(self, loading: Loading, wait: float) -> bool:
            time.sleep(0.05 if self.calls else 0)
            return not self.calls  # it does not come again

        def call(self, *_: Any) -> tuple[Any, int]:
            self.calls += 1
            time.sleep(0.2)  # this process has done all the rest by then
            raise LostError

    with spread.among([Slow()]):
        assert sorted(each(copies, BATCHES, len)) == list(range(20))


def test_a_helper_that_never_comes_is_not_waited_for(copies: spread.Copies) -> None:
    class Never(Friend):
        def ready(self, loading: Loading, wait: float) -> bool:
            time.sleep(0.01)
            return False

    with spread.among([Never()]):
        assert each(copies, BATCHES, len) == list(range(20))
    assert not any("_serve" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("where", ["here", "there", "hearing"])
def test_the_first_failure_ends_it(copies: spread.Copies, where: str) -> None:
    def fail(batch: list[int], *_: Any) -> int:
        raise UserError("no such luck")

    def slow(batch: list[int]) -> int:
        time.sleep(0.02)
        return 0

    with spread.among([Friend(fail=UserError("no such luck") if where == "there" else None)]):
        heard: list[int] = []
        with pytest.raises(UserError, match="no such luck"):
            copies.each(
                BATCHES,
                fail if where == "here" else slow,
                lambda batch: ("copy", {}),
                fail if where == "hearing" else lambda batch, _: heard.extend(batch),
            )
        assert len(heard) < 20


@pytest.mark.parametrize(
    ("rows", "together", "processes", "sizes"),
    [
        (0, 1, 2, []),
        (10, 1, 2, [2, 2, 2, 2, 2]),
        (10, 2, 8, [2] * 5),
        (5000, 1, 1, [1024] * 4 + [904]),
        (3, 2, 1, [2, 1]),
    ],
)
def test_vllm_takes_neighbours_by_the_thousand(rows: int, together: int, processes: int, sizes: list[int]) -> None:
    found = _shares(rows, together, processes)
    assert [len(batch) for batch in found] == sizes
    assert [i for batch in found for i in batch] == list(range(rows))
