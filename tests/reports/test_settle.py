"""The Arena's advice: with as many votes as it asks for, the question is settled as often as it says."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as some

from harness.errors import UserError
from harness.stats import minimum_detectable_effect, sample_size
from harness.stats.bradley_terry import fit_bradley_terry
from reports import settle

NO_VOTES = pd.DataFrame({"winner": pd.Series(dtype=str), "prompt": pd.Series(dtype=str)})


def found(rng: np.random.Generator, arms: int, votes: int, share: float, ties: float) -> bool:
    """Whether one simulated arena tells the better of two arms, the others in the middle between them."""
    gap = np.log((share - ties / 2) / (1 - share - ties / 2))
    strength = np.full(arms, gap / 2)
    strength[0], strength[1] = gap, 0.0
    pairs = np.array(list(combinations(range(arms), 2)))[np.arange(votes) % (arms * (arms - 1) // 2)]
    won = rng.random(votes) < 1 / (1 + np.exp(strength[pairs[:, 1]] - strength[pairs[:, 0]]))
    outcome = np.where(rng.random(votes) < ties, 0.5, won.astype(float))
    fit = fit_bradley_terry(pairs[:, 0], pairs[:, 1], outcome, clusters=np.arange(votes), ties=ties > 0,
                            n_resamples=200, seed=int(rng.integers(1 << 30)))  # fmt: skip
    return bool(fit.difference(0, 1).interval().low > 0)


@pytest.mark.parametrize(("arms", "ties"), [(2, 0.0), (4, 0.0), (4, 0.3)])
def test_so_many_votes_settle_it_four_times_in_five(arms: int, ties: float) -> None:
    cast = pd.DataFrame({"winner": ["tie"] * round(100 * ties) + ["a"] * round(100 * (1 - ties)), "prompt": "p"})
    advice = settle.advise(cast, arms, 0.65, 1000)
    rng = np.random.default_rng(arms)
    power = np.mean([found(rng, arms, advice.votes, 0.65, ties) for _ in range(200)])
    assert 0.72 < power < 0.9


def test_votes_cast_count_and_ties_save_some() -> None:
    first = settle.advise(NO_VOTES, 2, 0.6, 50)
    assert first.more == first.votes == sample_size(0.5, 0.1) == 197
    assert settle.advise(NO_VOTES, 6, 0.6, 50).votes == 5 * 197
    cast = pd.DataFrame({"winner": ["a", "tie"] * 50, "prompt": range(100)})
    later = settle.advise(cast, 2, 0.6, 50)
    assert later.votes == 99  # half the votes tie
    assert (later.cast, later.more) == (100, 0)


@given(some.floats(0.05, 5), some.floats(0.01, 1), some.floats(0.5, 0.95))
def test_the_least_number_that_finds_an_effect(deviation: float, effect: float, power: float) -> None:
    n = sample_size(deviation, effect, power)
    assert minimum_detectable_effect(deviation / np.sqrt(n), power) <= effect * (1 + 1e-9)
    if n > 2:
        assert minimum_detectable_effect(deviation / np.sqrt(n - 1), power) > effect * (1 - 1e-9)


def test_no_effect_needs_no_number() -> None:
    with pytest.raises(UserError, match="above 0"):
        sample_size(0.5, 0.0)


def test_pairs_that_are_told_apart_and_open_ones() -> None:
    rows = [("a", "b", 10, 50), ("b", "a", -50, -10), ("a", "c", -5, 20), ("c", "a", -20, 5)]
    apart, still = settle.told_apart(pd.DataFrame(rows, columns=["arm_a", "arm_b", "low", "high"]))
    assert apart == ["a over b"]
    assert still == ["a and c"]
