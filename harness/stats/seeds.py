"""A statistic over several training seeds: what belongs to the method, and not to one run.

Seeds and prompts are crossed: every seed's models answer the same prompts. The mean over S seeds varies by

    A + C,  A = variance of the seeds' statistics / S,  C = mean covariance of two seeds' statistics over prompts

where A holds what differs from run to run and each run's own noise of prompts, and C what all runs share because
they answer the same prompts (two-way clustering, Cameron, Gelbach and Miller 2011). With few seeds A is itself
uncertain: degrees of freedom are 1 / (r / (S - 1) + (1 - r)^2 / (P - 1)), r = A / (A + C), P prompts. It is
Satterthwaite's formula with r in place of r^2, which forgives an r that was underestimated by chance: with 3 to 8 seeds
and any mixture of the two, 95 % intervals cover in 94 to 97 % of simulated studies (tests/harness/test_seeds.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri, stdtrit

from harness.errors import UserError
from harness.stats import Bootstrap, Interval

_NOISE = 4  # standard deviations of a correlation of draws that have nothing in common


def over_seeds(runs: Sequence[Bootstrap]) -> Bootstrap:
    """The mean of a statistic over training seeds, from each run's bootstrap over prompts; n is the fewest prompts.

    What runs share shows in the covariance of their draws where resample k drew the same prompts in all of them. Where
    the draws are not seen to be correlated (other prompts, other random numbers, nothing shared), all noise of prompts
    is taken as shared: intervals are then too wide rather than too narrow.
    Raises UserError for fewer than two runs, or runs of different numbers of resamples.
    """
    if len(runs) < 2:
        raise UserError("seeds: one run has no spread between seeds; give two or more, three for a verdict")
    if len({len(run.draws) for run in runs}) > 1:
        raise UserError("seeds: the runs were resampled different numbers of times; judge them anew with one version")
    n = min(run.n for run in runs)
    estimates = np.array([run.estimate for run in runs])
    mean, seeds = float(estimates.mean()), len(runs)
    if n < 2:
        return Bootstrap(mean, np.full(len(runs[0].draws), mean), 1)
    covariance = np.cov(np.stack([run.draws for run in runs])) * n / (n - 1)
    own = float(np.trace(covariance)) / seeds
    between = float(covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1))
    seen = between > _NOISE / np.sqrt(len(runs[0].draws)) * own
    shared = between if seen else own
    run_to_run = float(estimates.var(ddof=1)) / seeds
    total = run_to_run + shared
    if total == 0:
        return Bootstrap(mean, np.full(len(runs[0].draws), mean), n, freedom=seeds - 1)
    freedom = _freedom(run_to_run / total, seeds, n)
    shape = np.mean([run.draws - run.draws.mean() for run in runs], axis=0)
    if shape.std() == 0:
        shape = np.random.default_rng(0).normal(size=len(shape))
    return Bootstrap(mean, mean + shape / shape.std(ddof=1) * np.sqrt(total), n, freedom=freedom)


def over_intervals(runs: Sequence[Interval]) -> Interval:
    """The mean over training seeds of estimates that are known by their 95 % intervals alone; n is the fewest prompts.

    As `over_seeds` where no draws are seen to be correlated: all noise of prompts is taken as shared, so that the
    interval is rather too wide than too narrow. It is infinite for one run, or where any run's own is.
    Raises UserError for none.
    """
    if not runs:
        raise UserError("seeds: no run; give one or more")
    estimates = np.array([run.estimate for run in runs])
    errors = np.array([(run.high - run.low) / (2 * ndtri(0.975)) for run in runs])
    mean, seeds, n = float(estimates.mean()), len(runs), min(run.n for run in runs)
    if seeds < 2 or n < 2 or not np.isfinite(errors).all():
        return Interval(mean, -np.inf, np.inf, n)
    run_to_run = float(estimates.var(ddof=1)) / seeds
    total = run_to_run + float((errors**2).mean()) * n / (n - 1)
    if total == 0:
        return Interval(mean, mean, mean, n)
    reach = float(stdtrit(_freedom(run_to_run / total, seeds, n), 0.975)) * np.sqrt(total)
    return Interval(mean, mean - reach, mean + reach, n)


def _freedom(part: float, seeds: int, n: int) -> float:
    """Degrees of freedom where `part` of the variance is between runs, as above."""
    return 1 / (part / (seeds - 1) + (1 - part) ** 2 / (n - 1))
