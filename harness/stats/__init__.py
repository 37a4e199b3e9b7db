"""Uncertainty: cluster bootstrap, intervals, rank correlation, and tests of difference and equivalence.

The independent unit is a cluster, almost always a prompt: its responses are resampled together (Efron and
Tibshirani 1993, chapter 8). A mean over resampled clusters is a ratio of sums, so resampling is a matrix of counts
times per-cluster sums, made in chunks of bounded memory. Intervals are percentile intervals; a test's p-value is the
level at which that interval would just touch the null, so that p and interval never disagree.
With one cluster nothing can be resampled: the interval is then (-inf, inf), never a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit  # scipy.stats takes a second to import

from harness.errors import UserError, shown

Labels = Sequence[object] | np.ndarray | pd.Series
_CHUNK = 2_000_000  # counts held at once: 16 MB as int64


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; n counts the independent units (clusters) behind it."""

    estimate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Bootstrap:
    """A statistic, its values on resampled clusters (draws, shape (resamples,)), and the number of clusters n.

    freedom: degrees of freedom of the draws' spread where they are not n - 1 (`harness.stats.seeds`); such draws are
    as wide as the statistic varies, while those of a plain bootstrap are narrower by the root of (n - 1) / n.
    """

    estimate: float
    draws: np.ndarray
    n: int
    freedom: float | None = None

    @property
    def se(self) -> float:
        """Bootstrap standard error."""
        return float(self.draws.std(ddof=1)) if self.n > 1 else float("inf")

    @property
    def unbiased_se(self) -> float:
        """Standard error without the bootstrap's downward bias."""
        return self.se * (np.sqrt(self.n / (self.n - 1)) if self.freedom is None and self.n > 1 else 1.0)

    @property
    def df(self) -> float:
        """Degrees of freedom of the standard error."""
        return self.n - 1 if self.freedom is None else self.freedom

    def interval(self, level: float = 0.95) -> Interval:
        """Percentile interval."""
        if self.n < 2 or not len(self.draws):
            return Interval(self.estimate, -np.inf, np.inf, self.n)
        low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2])
        return Interval(self.estimate, float(low), float(high), self.n)

    def p_above(self, null: float = 0.0) -> float:
        """One-sided p-value of the hypothesis that the statistic is at most `null`; small where it is above."""
        return (1 + int((self.draws <= null).sum())) / (1 + len(self.draws)) if self.n > 1 else 1.0

    def p_below(self, null: float = 0.0) -> float:
        """One-sided p-value of the hypothesis that the statistic is at least `null`; small where it is below."""
        return (1 + int((self.draws >= null).sum())) / (1 + len(self.draws)) if self.n > 1 else 1.0

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided p-value of the hypothesis that the statistic is `null`."""
        return min(1.0, 2 * min(self.p_above(null), self.p_below(null)))


def expanded(value: Bootstrap) -> Bootstrap:
    """`value` with draws as wide as a t interval on its degrees of freedom asks for (Hesterberg 2015, section 3.3).

    Of few clusters a plain percentile interval is too narrow: at six, one in seven excludes the truth.
    """
    if value.n < 2 or value.se == 0:
        return value
    factor = value.unbiased_se / value.se * stdtrit(value.df, 0.975) / ndtri(0.975)
    return replace(value, draws=value.estimate + factor * (value.draws - value.estimate))


@dataclass(frozen=True)
class Decision:
    """Outcome of a test: the interval it looked at, the p-value, and whether the alternative holds at its alpha."""

    interval: Interval
    p: float
    holds: bool


# ---------------------------------------------------------------- inputs


def finite(values: ArrayLike, what: str = "values", rows: Labels | None = None) -> np.ndarray:
    """`values` as a float64 vector. Raises UserError naming the first row (its label in `rows`) that is not finite.

    Of a Series, which may be a column of a user's file, what is no number is named as it stands there.
    """
    if isinstance(values, pd.Series):
        array = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise UserError(
            f"{what}: expected a non-empty column of numbers, got shape {array.shape}; check the input table"
        )
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        row = bad[0] if rows is None else list(rows)[bad[0]]
        value = values.iloc[bad[0]] if isinstance(values, pd.Series) else None
        said = shown(value) if isinstance(value, str | list | dict) else array[bad[0]]
        raise UserError(f"{what}: row {row} is {said}, not a finite number; remove or rescore it")
    return array


def cluster_codes(clusters: Labels | None, n_rows: int, what: str = "clusters") -> tuple[np.ndarray, int]:
    """(code of each row in 0..C-1, C); None: every row is a cluster. Raises UserError naming a row without a label."""
    if clusters is None:
        return np.arange(n_rows), n_rows
    labels = clusters if isinstance(clusters, pd.Series | np.ndarray) else pd.Series(list(clusters), dtype=object)
    if len(labels) != n_rows:
        raise UserError(f"{what}: {len(labels)} labels for {n_rows} rows; give one label a row")
    codes, uniques = pd.factorize(labels)
    if (codes < 0).any():
        raise UserError(f"{what}: row {int(np.argmin(codes))} has no label; name its prompt")
    return codes, len(uniques)


# ---------------------------------------------------------------- resampling


def resample_counts(n_clusters: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn in each resample: chunks of shape (<= n_resamples, n_clusters)."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n_clusters)
    for start in range(0, n_resamples, step):
        rows = min(step, n_resamples - start)
        drawn = rng.integers(0, n_clusters, size=(rows, n_clusters))
        drawn += np.arange(rows)[:, None] * n_clusters
        yield np.bincount(drawn.ravel(), minlength=rows * n_clusters).reshape(rows, n_clusters)


def _resampled_sums(columns: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """Per-cluster sums (C, k) -> their totals on every resample (n_resamples, k)."""
    return np.concatenate([counts @ columns for counts in resample_counts(len(columns), n_resamples, seed)])


def mean_bootstrap(
    values: ArrayLike, clusters: Labels | None, seed: int = 0, n_resamples: int = 2000, rows: Labels | None = None
) -> Bootstrap:
    """Cluster bootstrap of a mean over rows. values (N,), clusters (N,) labels or None."""
    array = finite(values, rows=rows)
    codes, n = cluster_codes(clusters, len(array))
    columns = np.stack([np.bincount(codes, array, n), np.bincount(codes, minlength=n)], axis=1)
    sums = _resampled_sums(columns, n_resamples, seed)
    return Bootstrap(float(array.mean()), sums[:, 0] / sums[:, 1], n)


def difference_bootstrap(
    a: ArrayLike,
    clusters_a: Labels | None,
    b: ArrayLike,
    clusters_b: Labels | None,
    seed: int = 0,
    n_resamples: int = 2000,
) -> Bootstrap:
    """Cluster bootstrap of mean(a) - mean(b): the union of clusters is resampled, so those in both stay paired.

    Without labels (both None) the rows are unpaired. n counts the union. Resamples that hold no row of one side
    (possible only for very few, unshared clusters) are left out.
    """
    left, right = finite(a, "a"), finite(b, "b")
    codes_a, n_a = cluster_codes(clusters_a, len(left), "clusters_a")
    codes_b, n_b = cluster_codes(clusters_b, len(right), "clusters_b")
    if clusters_a is None or clusters_b is None:
        codes_b, n = codes_b + n_a, n_a + n_b
    else:
        codes, n = cluster_codes([*clusters_a, *clusters_b], len(left) + len(right))
        codes_a, codes_b = codes[: len(left)], codes[len(left) :]
    columns = np.stack(
        [
            np.bincount(codes_a, left, n),
            np.bincount(codes_a, minlength=n),
            np.bincount(codes_b, right, n),
            np.bincount(codes_b, minlength=n),
        ],
        axis=1,
    )
    sums = _resampled_sums(columns, n_resamples, seed)
    sums = sums[(sums[:, 1] > 0) & (sums[:, 3] > 0)]
    draws = sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]
    # A side with one cluster has an unknown spread: report no more than that cluster allows.
    return Bootstrap(float(left.mean() - right.mean()), draws, n if min(n_a, n_b) > 1 else 1)


def bootstrap_draws(
    statistic: Callable[[np.ndarray], ArrayLike], clusters: Labels, seed: int = 0, n_resamples: int = 2000
) -> np.ndarray:
    """`statistic` (row indices -> float or vector) on every resample of clusters: shape (n_resamples, ...)."""
    codes, n = cluster_codes(clusters, len(clusters))
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes, minlength=n)
    rows_of = np.split(order, np.cumsum(sizes)[:-1])
    rng = np.random.default_rng(seed)
    draws = [statistic(np.concatenate([rows_of[c] for c in rng.integers(0, n, size=n)])) for _ in range(n_resamples)]
    return np.asarray(draws, dtype=np.float64)


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    clusters: Labels,
    seed: int = 0,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of any scalar `statistic` of row indices; for vectors see `bootstrap_draws`.

    Raises UserError where the statistic is not finite on the data or on a resample.
    """
    estimate = finite([statistic(np.arange(len(clusters)))], "statistic on all rows")
    draws = finite(bootstrap_draws(statistic, clusters, seed, n_resamples), "statistic on resamples")
    return Bootstrap(float(estimate[0]), draws, cluster_codes(clusters, len(clusters))[1]).interval(level)


def bootstrap_mean(
    values: ArrayLike,
    clusters: Labels | None,
    seed: int = 0,
    n_resamples: int = 2000,
    level: float = 0.95,
    rows: Labels | None = None,
) -> Interval:
    """Cluster (prompt) bootstrap interval of a mean; `rows` labels the values in errors."""
    return mean_bootstrap(values, clusters, seed, n_resamples, rows).interval(level)


def bootstrap_difference(
    a: ArrayLike,
    clusters_a: Labels | None,
    b: ArrayLike,
    clusters_b: Labels | None,
    seed: int = 0,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Interval of mean(a) - mean(b), paired by cluster: see `difference_bootstrap`."""
    return difference_bootstrap(a, clusters_a, b, clusters_b, seed, n_resamples).interval(level)


# ---------------------------------------------------------------- proportions, calibration, ranks


def wilson(k: float, n: float, level: float = 0.95) -> Interval:
    """Wilson score interval of k successes in n independent trials (Wilson 1927)."""
    if not 0 <= k <= n or n <= 0:
        raise UserError(f"wilson: {k} successes in {n} trials is impossible; give 0 <= k <= n and n > 0")
    z = ndtri((1 + level) / 2)
    p = k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # Rounding may carry a bound past the estimate where all trials agree.
    return Interval(p, float(max(0.0, min(p, centre - half))), float(min(1.0, max(p, centre + half))), int(n))


def _weighted_midranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Midranks (up to a constant) of `values` (N,) when row i occurs weights[:, i] times: shape of weights (B, N).

    The order of the values never changes between resamples, so one sort and a cumulative sum serve them all.
    """
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    totals = np.add.reduceat(weights[:, order], starts, axis=1)
    return (np.cumsum(totals, axis=1) - totals / 2)[:, group]


def spearman_bootstrap(
    x: ArrayLike,
    y: ArrayLike,
    clusters: Labels | None = None,
    seed: int = 0,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Spearman's rank correlation with a cluster bootstrap interval. Raises UserError when x or y is constant."""
    left, right = finite(x, "x"), finite(y, "y")
    if len(left) != len(right):
        raise UserError(f"spearman: {len(left)} values of x for {len(right)} of y; give pairs")
    for what, column in (("x", left), ("y", right)):
        if np.ptp(column) == 0:
            raise UserError(f"spearman: {what} is constant ({column[0]}), so ranks mean nothing; give varying values")
    codes, n = cluster_codes(clusters, len(left))
    rho = [_weighted_spearman(left, right, np.ones((1, len(left))))]
    step = max(1, _CHUNK // len(left))
    for counts in resample_counts(n, n_resamples, seed):
        rho += [_weighted_spearman(left, right, counts[i : i + step, codes]) for i in range(0, len(counts), step)]
    values = np.concatenate(rho)
    draws = values[1:][np.isfinite(values[1:])]  # a resample of one distinct value has no correlation
    return Bootstrap(float(values[0]), draws, n).interval(level)


def _weighted_spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's rho for each row of `weights` (B, N); NaN where a resample is constant."""
    total = weights.sum(axis=1, keepdims=True)
    ranks = [_weighted_midranks(column, weights) for column in (x, y)]
    a, b = (r - (weights * r).sum(axis=1, keepdims=True) / total for r in ranks)
    with np.errstate(invalid="ignore"):
        return (weights * a * b).sum(axis=1) / np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))


# ---------------------------------------------------------------- tests


def superiority(difference: Bootstrap, margin: float = 0.0, alpha: float = 0.025) -> Decision:
    """Is the difference above `margin`? Holds where the two-sided 1 - 2 alpha interval lies above it."""
    interval = difference.interval(1 - 2 * alpha)
    return Decision(interval, difference.p_above(margin), interval.low > margin)


def non_inferiority(difference: Bootstrap, margin: float, alpha: float = 0.025) -> Decision:
    """Is the difference (new minus reference, higher is better) above -margin? margin > 0 in the measure's units."""
    if margin <= 0:
        raise UserError(f"non-inferiority: margin {margin} must be above 0; state the largest loss that is acceptable")
    return superiority(difference, -margin, alpha)


def tost(difference: Bootstrap, margin: float, alpha: float = 0.05) -> Decision:
    """Two one-sided tests of equivalence (Schuirmann 1987): holds where the 1 - 2 alpha interval is inside +-margin."""
    if margin <= 0:
        raise UserError(f"equivalence: margin {margin} must be above 0; state the largest acceptable difference")
    interval = difference.interval(1 - 2 * alpha)
    p = max(difference.p_above(-margin), difference.p_below(margin))
    return Decision(interval, p, bool(-margin < interval.low and interval.high < margin))


def holm(p: ArrayLike) -> np.ndarray:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given."""
    values = finite(p, "p-values")
    if ((values < 0) | (values > 1)).any():
        raise UserError("holm: a p-value lies outside [0, 1]; give probabilities")
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def minimum_detectable_effect(se: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true effect that a two-sided z-test at `alpha` finds with probability `power`, for standard error se."""
    return float((ndtri(1 - alpha / 2) + ndtri(power)) * se)


def sample_size(deviation: float, effect: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """How many independent values let a two-sided z-test at `alpha` find a mean `effect` away with probability `power`.

    deviation: their standard deviation. It is the least n whose minimum_detectable_effect is at most that.
    Raises UserError for an effect that is not above 0.
    """
    if effect <= 0:
        raise UserError(f"sample size: an effect of {effect:g} is found by no number; give one above 0")
    return max(2, math.ceil((minimum_detectable_effect(deviation, power, alpha) / effect) ** 2))
