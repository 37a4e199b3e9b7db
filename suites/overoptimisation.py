"""Over-optimisation: proxy and gold PM against sqrt(KL) along RL, and where gold turns down.

Gao, Schulman and Hilton (2023) find gold reward along RL to follow d (alpha - beta log d) with d = sqrt(KL). That
curve plus an intercept is fitted by least squares; it turns at d = exp(alpha / beta - 1). A turn is seen only where it
lies inside the range measured and the fitted curve's slope at the end, which no choice of a peak has favoured, has its
95 % interval below zero; otherwise no turn is seen, which is not to say that none would come.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from harness.errors import UserError
from harness.stats import bootstrap_mean, finite, resample_counts

MIN_SNAPSHOTS = 5  # three coefficients and a spread
N_RESAMPLES = 2000
CURVE = ["arm", "step", "kl", "sqrt_kl", "proxy", "gold", "low", "high", "n"]
TURNS = ["arm", "turn", "sqrt_kl", "low", "high", "fall", "slope", "slope_low", "slope_high", "snapshots", "n"]


def measure(training: pd.DataFrame, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """(curve, turns, notes) from columns arm, step, kl (nats), proxy, gold and optionally prompt (`suites.along_rl`).

    curve: one row an arm and step; low and high bound gold (over prompts; NaN without them), n counts prompts.
    turns: one row an arm: turn (seen or not), sqrt_kl of the fitted peak with interval, the fall of gold from there to
    the end, and the slope (gold per sqrt(KL)) at the end with interval. Prompts are resampled where given; without
    them the noise is taken as normal, estimated from the residuals, and n counts snapshots.
    Raises UserError for missing columns or non-finite numbers.
    """
    needed = ["arm", "step", "kl", "proxy", "gold"]
    missing = [c for c in needed if c not in training]
    if missing:
        raise UserError(f"training: no column {', '.join(missing)}; give {', '.join(needed)}")
    for column in ("kl", "proxy", "gold"):
        finite(training[column].to_numpy(dtype=np.float64), f"training, {column}")
    curves, turns, notes = [], [], []
    for arm, table in training.groupby("arm", sort=True):
        by_step = table.groupby("step", sort=True)
        curve = by_step[["kl", "proxy", "gold"]].mean().reset_index().assign(arm=arm)
        if (curve["kl"] < 0).any():
            notes.append(f"{arm}: an estimated KL below 0 was read as 0")
        curve["sqrt_kl"] = np.sqrt(curve["kl"].clip(lower=0))
        prompts = "prompt" in table
        bounds = [bootstrap_mean(g["gold"].to_numpy(float), g["prompt"], seed) if prompts else None for _, g in by_step]
        curve["low"] = [b.low if b else np.nan for b in bounds]
        curve["high"] = [b.high if b else np.nan for b in bounds]
        curve["n"] = [b.n if b else 0 for b in bounds]
        curves.append(curve[CURVE])
        if curve["sqrt_kl"].nunique() < MIN_SNAPSHOTS:
            notes.append(f"{arm}: turning point not measured: it needs {MIN_SNAPSHOTS} snapshots of different KL")
            continue
        turn = _turn(curve, table if prompts else None, seed)
        turns.append([arm, *turn])
        notes.append(_said(arm, dict(zip(TURNS[1:], turn, strict=True))))
    return pd.concat(curves, ignore_index=True), pd.DataFrame(turns, columns=TURNS), notes


def _turn(curve: pd.DataFrame, table: pd.DataFrame | None, seed: int) -> list[object]:
    d, gold = curve["sqrt_kl"].to_numpy(), curve["gold"].to_numpy()
    basis = _basis(d)
    fit = np.linalg.pinv(basis)
    if table is None:
        fitted = basis @ (fit @ gold)
        # Student's t in disguise: the residual variance of few snapshots is itself uncertain.
        rng, spare = np.random.default_rng(seed), len(d) - 3
        scale = np.sqrt(np.sum((gold - fitted) ** 2) / rng.chisquare(spare, size=(N_RESAMPLES, 1)))
        draws = fitted + scale * rng.standard_normal((N_RESAMPLES, len(d)))
        n = len(d)
    else:
        draws, n = _resampled_gold(table, seed)
    at, fall, slope = map(float, _peak(fit @ gold, d))
    ats, _, slopes = _peak(draws @ fit.T, d)
    low, high = np.quantile(ats, [0.025, 0.975]) if n > 1 else (-np.inf, np.inf)
    slope_low, slope_high = np.quantile(slopes, [0.025, 0.975]) if n > 1 else (-np.inf, np.inf)
    seen = bool(d.min() < at < d.max() and slope_high < 0)
    return [seen, at, float(low), float(high), fall, slope, float(slope_low), float(slope_high), len(d), n]


def _resampled_gold(table: pd.DataFrame, seed: int) -> tuple[np.ndarray, int]:
    """Mean gold by step on resampled prompts: (resamples, steps), and the number of prompts."""
    wide = table.pivot_table(index="prompt", columns="step", values="gold", aggfunc=["sum", "count"], fill_value=0)
    sums, counts = wide["sum"].to_numpy(float), wide["count"].to_numpy(float)
    draws = []
    for drawn in resample_counts(len(wide), N_RESAMPLES, seed):
        held = drawn @ counts
        whole = (held > 0).all(axis=1)
        draws.append((drawn[whole] @ sums) / held[whole])
    return np.concatenate(draws), len(wide)


def _basis(d: np.ndarray) -> np.ndarray:
    log = np.log(np.where(d > 0, d, 1.0))  # d log d goes to 0
    return np.stack([np.ones_like(d), d, -d * log], axis=1)


def _peak(coefficients: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the d in the range measured where the fitted curve is highest, its fall from there to the end, its slope there).

    Read off a grid, so that curves without a peak of their own have theirs at an end of the range.
    """
    grid = np.linspace(d.min(), d.max(), 400)
    values = coefficients @ _basis(grid).T
    slope = coefficients @ np.array([0.0, 1.0, -1.0 - np.log(d.max())])
    return grid[values.argmax(axis=-1)], values.max(axis=-1) - values[..., -1], slope


def _said(arm: object, turn: dict[str, object]) -> str:
    span = f"95 % interval {turn['low']:.2f} to {turn['high']:.2f}"
    if turn["turn"]:
        return f"{arm}: gold turns down at sqrt(KL) = {turn['sqrt_kl']:.2f} ({span})"
    return (
        f"{arm}: no turn seen in {turn['snapshots']} snapshots: gold's slope at the end is "
        f"{turn['slope']:.3g} per sqrt(KL) (95 % interval {turn['slope_low']:.3g} to {turn['slope_high']:.3g})"
    )
