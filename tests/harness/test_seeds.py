"""Intervals over training seeds: they cover, whatever of the noise is the seed's, the prompts' or both."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from harness.errors import UserError
from harness.stats import Bootstrap, resample_counts
from harness.stats.seeds import over_seeds


def study(rng: np.random.Generator, seeds: int, prompts: int, own: float, common: float, noise: float) -> np.ndarray:
    """Values (seeds, prompts) with true mean 0: effects of the seed, of the prompt, and of both."""
    effect = rng.normal(0, own, (seeds, 1)) + rng.normal(0, common, (1, prompts))
    return effect + rng.normal(0, noise, (seeds, prompts))


def covers(value: Bootstrap) -> bool:
    return bool(abs(value.estimate) <= special.stdtrit(value.df, 0.975) * value.unbiased_se)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("own", "common", "noise"), [(0.05, 1.0, 1.0), (0.1, 1.0, 1.0), (0.3, 1.0, 1.0), (1.0, 0.3, 0.3)]
)
def test_intervals_cover_in_93_to_97_of_100_studies(seeds: int, own: float, common: float, noise: float) -> None:
    """2,000 studies: three standard errors of the share are 1.5 points."""
    rng = np.random.default_rng([seeds, int(100 * own)])
    prompts, studies = 60, 2000
    counts = np.concatenate(list(resample_counts(prompts, 400, 0))) / prompts
    covered = 0
    for _ in range(studies):
        values = study(rng, seeds, prompts, own, common, noise)
        covered += covers(over_seeds([Bootstrap(float(v.mean()), counts @ v, prompts) for v in values]))
    assert 0.93 <= covered / studies <= 0.97 + 0.005


def test_one_run_alone_does_not_cover_the_method() -> None:
    """The interval over prompts of the first of the seeds, at a seed effect as large as that of a prompt's mean."""
    rng = np.random.default_rng(0)
    covered = [covers(plain(study(rng, 1, 60, 0.3, 1.0, 1.0)[0], rng)) for _ in range(400)]
    assert np.mean(covered) < 0.85


def plain(values: np.ndarray, rng: np.random.Generator) -> Bootstrap:
    draws = values[rng.integers(0, len(values), (400, len(values)))].mean(axis=1)
    return Bootstrap(float(values.mean()), draws, len(values))


def test_other_prompts_or_random_numbers_widen_the_interval() -> None:
    """What cannot be seen to be shared is taken as shared."""
    rng = np.random.default_rng(1)
    values = study(rng, 3, 60, 0.1, 1.0, 0.5)
    counts = np.concatenate(list(resample_counts(60, 2000, 0))) / 60
    aligned = over_seeds([Bootstrap(float(v.mean()), counts @ v, 60) for v in values])
    apart = over_seeds([plain(v, rng) for v in values])
    assert apart.estimate == pytest.approx(aligned.estimate)
    assert apart.unbiased_se > aligned.unbiased_se


def test_runs_that_agree_exactly_and_runs_that_do_not_fit() -> None:
    same = Bootstrap(0.5, np.full(100, 0.5), 20)
    assert over_seeds([same, same, same]).estimate == 0.5
    with pytest.raises(UserError, match="two or more"):
        over_seeds([same])
    with pytest.raises(UserError, match="different numbers of times"):
        over_seeds([same, Bootstrap(0.5, np.full(99, 0.5), 20)])
    one = over_seeds([Bootstrap(0.5, np.full(100, 0.5), 1)] * 3)
    assert one.interval().low == -np.inf
