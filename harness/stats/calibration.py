"""Calibration: its curve and expected error, and a squared error that over- and under-confidence cannot cancel in.

For the squared error answers are put into bins of equal size by confidence. The mean squared gap between confidence
and accuracy over the bins is biased upwards by the noise of each bin, so the variance of each gap is subtracted (Kumar,
Liang and Ma 2019, "Verified uncertainty calibration", section 4). The result is below 0 where the gaps are smaller than
their noise.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from harness.errors import UserError
from harness.stats import Bootstrap, Labels, cluster_codes, finite, resample_counts, wilson

BINS = 10


def squared_calibration_error(
    confidence: ArrayLike,
    correct: ArrayLike,
    clusters: Labels | None,
    seed: int = 0,
    n_resamples: int = 2000,
    bins: int = BINS,
) -> Bootstrap:
    """Mean squared gap of confidence and accuracy over bins, debiased; n counts clusters.

    confidence, correct: (N,), correct 0, 0.5 (a tie) or 1. A gap of 0.1 everywhere is an error of 0.01.
    """
    sure, right = finite(confidence, "confidence"), finite(correct, "correct")
    if len(sure) != len(right):
        raise UserError(f"calibration: {len(sure)} confidences for {len(right)} answers; give one each")
    codes, n = cluster_codes(clusters, len(sure))
    bins = min(bins, len(sure))
    place = np.argsort(np.argsort(sure, kind="stable"), kind="stable") * bins // len(sure)
    columns = np.zeros((n, 2 * bins))
    np.add.at(columns, (codes, place), sure - right)
    np.add.at(columns, (codes, bins + place), 1.0)
    drawn = np.concatenate([counts @ columns for counts in resample_counts(n, n_resamples, seed)])
    sums, sizes = (part[None] for part in np.split(columns.sum(axis=0), 2))
    sums, sizes = np.concatenate([sums, drawn[:, :bins]]), np.concatenate([sizes, drawn[:, bins:]])
    gaps = np.divide(sums, sizes, out=np.zeros_like(sums), where=sizes > 0)
    noise = gaps[1:].var(axis=0) if n_resamples else np.zeros(bins)
    # A resample holds the sample's noise and its own, so its squares are biased twice.
    bias = np.concatenate([noise[None], np.repeat(2 * noise[None], len(drawn), axis=0)])
    squared = (sizes * (gaps**2 - bias)).sum(axis=1) / sizes.sum(axis=1)
    return Bootstrap(float(squared[0]), squared[1:], n)


def _binned(p: ArrayLike, y: ArrayLike, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of p and y and the counts in `bins` equal-width bins of p."""
    predicted, outcome = finite(p, "predicted probability"), finite(y, "outcome")
    if len(predicted) != len(outcome):
        raise UserError(f"calibration: {len(predicted)} probabilities for {len(outcome)} outcomes; give one each")
    for what, column in (("predicted probability", predicted), ("outcome", outcome)):
        bad = np.flatnonzero((column < 0) | (column > 1))
        if bad.size:
            raise UserError(f"{what}: row {bad[0]} is {column[bad[0]]}, outside [0, 1]; give probabilities")
    index = np.minimum((predicted * bins).astype(int), bins - 1)
    return (
        np.bincount(index, predicted, bins),
        np.bincount(index, outcome, bins),
        np.bincount(index, minlength=bins),
    )


def expected_calibration_error(p: ArrayLike, y: ArrayLike, bins: int = 10) -> float:
    """Mean gap between predicted and observed rate over equal-width bins, weighted by their size (Guo et al. 2017)."""
    predicted, observed, n = _binned(p, y, bins)
    return float(np.abs(predicted - observed).sum() / n.sum())


def calibration_curve(p: ArrayLike, y: ArrayLike, bins: int = 10, level: float = 0.95) -> pd.DataFrame:
    """Observed rate of y against predicted p, a row for each non-empty bin (the paper's Figure 9).

    Columns: bin_low, bin_high, predicted (mean p), estimate (mean y), low, high (Wilson), n.
    """
    predicted, observed, n = _binned(p, y, bins)
    rows = []
    for i in np.flatnonzero(n):
        rate = wilson(observed[i], n[i], level)
        rows.append([i / bins, (i + 1) / bins, predicted[i] / n[i], rate.estimate, rate.low, rate.high, rate.n])
    return pd.DataFrame(rows, columns=["bin_low", "bin_high", "predicted", "estimate", "low", "high", "n"])
