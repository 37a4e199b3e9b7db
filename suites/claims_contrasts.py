"""Contrasts: what a claim speaks of, as weighted sums of means whose prompts are resampled together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from harness.stats import Bootstrap, cluster_codes, finite, resample_counts

RESAMPLES = 2000


class NotMeasured(Exception):  # noqa: N818  a state, not a fault
    """The run says nothing about a claim; the message names what is missing and what would measure it.

    known: the part of the claim that was measured, for the reader.
    """

    def __init__(self, message: str, known: Sequence[Contrast] = ()):
        super().__init__(message)
        self.known = list(known)


Role = Literal["claim", "assay", "premise"]


@dataclass(frozen=True)
class Contrast:
    """One number that a claim is about; test and direction where they differ from the claim's own.

    role: "claim", part of what is claimed. "assay", evidence that a difference of the margin's size would have shown:
    without it nothing is found to be alike (assay sensitivity, ICH E10; Pigeot et al. 2003). "premise", what the claim
    presupposes: without it the claim is neither reproduced nor contradicted.
    """

    name: str
    value: Bootstrap
    test: str | None = None
    direction: str | None = None
    role: Role = "claim"


@dataclass(frozen=True)
class Part:
    """A mean over rows (values, prompts: (N,)) and its weight in a contrast."""

    weight: float
    values: pd.Series
    prompts: pd.Series

    def of_rate(self) -> bool:
        return bool(self.values.isin([0, 1]).all())


def combination(parts: Sequence[Part], seed: int, n_resamples: int = RESAMPLES, unit: Part | None = None) -> Bootstrap:
    """Cluster bootstrap of the sum of weight * mean over `parts`; n is the fewest prompts behind any part.

    With `unit`, in standard deviations of its values, which are resampled along.

    A rate seen as exactly 0 or 1 has no spread to resample, though it is not known to be 0 or 1: its share of the
    draws gets the spread of Agresti and Coull (1998), two successes and two failures added.
    """
    spread = [] if unit is None else [replace(unit, weight=0.0), Part(0.0, unit.values**2, unit.prompts)]
    parts = [*parts, *spread]
    prompts = np.concatenate([part.prompts.to_numpy(dtype=object) for part in parts])
    codes, n = cluster_codes(prompts, len(prompts))
    columns, at, sizes, unseen, estimate = [], 0, [], 0.0, 0.0
    for part in parts:
        values, own = finite(part.values, rows=part.prompts), codes[at : at + len(part.values)]
        at += len(values)
        columns += [np.bincount(own, values, n), np.bincount(own, minlength=n)]
        sizes.append(len(np.unique(own)))
        estimate += part.weight * float(values.mean())
        if part.of_rate() and np.ptp(values) == 0:
            p = 2 / (sizes[-1] + 4)
            unseen += part.weight**2 * p * (1 - p) / (sizes[-1] + 4)
    sums = np.concatenate([counts @ np.stack(columns, axis=1) for counts in resample_counts(n, n_resamples, seed)])
    sums = sums[(sums[:, 1::2] > 0).all(axis=1)]
    means = sums[:, ::2] / sums[:, 1::2]
    draws = means @ np.array([part.weight for part in parts])
    if unseen:
        draws = draws + np.random.default_rng([seed, 1]).normal(0, np.sqrt(unseen), len(draws))
    if unit is not None:
        deviation = np.sqrt(np.maximum(means[:, -1] - means[:, -2] ** 2, 0))
        estimate, draws = estimate / float(np.std(unit.values)), draws[deviation > 0] / deviation[deviation > 0]
    return Bootstrap(estimate, draws, min(sizes))
