"""Win rates as they would be if both answers were of equal length (Dubois et al. 2024, length-controlled AlpacaEval).

Judges, people among them, prefer longer answers whatever they say. One logistic model holds each arm's comparisons with
the anchor: logit P(the arm wins) = strength + slope tanh(d / s), d the arm's length in characters minus the anchor's, s
the standard deviation of d over all comparisons, the slope shared by all arms. The adjusted win rate is that at d = 0.
AlpacaEval's term for the difficulty of a prompt is left out: it needs far more arms than a run has. The slope has a
normal prior of standard deviation 100, without which a judge of length alone would have no estimate.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import expit

from harness.stats import resample_counts

N_RESAMPLES = 500
SLOPE_SD, STRENGTH_SD = 100.0, 30.0  # the second only where an arm won or lost every time
COLUMNS = ["arm", "step", "estimate", "low", "high", "n", "raw", "raw_low", "raw_high", "slope"]
_KEYS = ["prompt", "sample", "arm", "step"]


def win_rates(comparisons: pd.DataFrame, responses: pd.DataFrame, anchor: str, seed: int = 0) -> pd.DataFrame:
    """Each arm's and snapshot's wins against the final model of `anchor`, length-adjusted and raw: COLUMNS.

    comparisons: `suites.judges.COLUMNS`; responses: the answers compared (prompt, response, arm, step, sample). Ties
    count half; intervals by a bootstrap over prompts; n counts prompts. Empty where the anchor was not compared.
    """
    table = _against(comparisons, responses, anchor)
    if table.empty:
        return pd.DataFrame(columns=COLUMNS).astype({"n": "int64"})
    spread = float(table["longer"].std(ddof=0))
    x = np.tanh(table["longer"].to_numpy(dtype=float) / spread) if spread > 0 else np.zeros(len(table))
    player = table.groupby(["arm", "step"], dropna=False).ngroup().to_numpy()
    y, weight = table["outcome"].to_numpy(dtype=float), table["weight"].to_numpy(dtype=float)
    prompts, codes = np.unique(table["prompt"].to_numpy(dtype=object).astype(str), return_inverse=True)
    strength, slope = fit(player, x, y, weight)
    raw = _means(player, y, weight)
    draws, raws = [], []
    for counts in resample_counts(len(prompts), N_RESAMPLES, seed) if len(prompts) > 1 else ():
        for drawn in counts:
            again = weight * drawn[codes]
            held = np.bincount(player, again) > 0
            found = fit(player, x, y, again, start=(strength, slope))[0]
            draws.append(np.where(held, expit(found), np.nan))
            raws.append(_means(player, y, again))
    rows = []
    for number, (_, part) in enumerate(table.groupby(["arm", "step"], dropna=False)):
        bounds = [_bounds(of, number) for of in (draws, raws)]
        adjusted, plain = float(expit(strength[number])), float(raw[number])
        arm, step = part["arm"].iloc[0], part["step"].iloc[0]
        last = None if pd.isna(step) else int(step)
        rows.append([arm, last, adjusted, *bounds[0], part["prompt"].nunique(), plain, *bounds[1], slope])
    return pd.DataFrame(rows, columns=COLUMNS).astype({"step": "Int64", "n": "int64"})


def fit(
    player: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    start: tuple[np.ndarray, float] | None = None,
) -> tuple[np.ndarray, float]:
    """(strengths, slope) of the logistic model by Newton's method; player (rows,) numbers the arms from 0.

    The Hessian is diagonal but for the slope's row and column, so that a step costs one pass over the rows.
    """
    players = int(player.max()) + 1
    strength, slope = (np.zeros(players), 0.0) if start is None else (start[0].copy(), start[1])
    for _ in range(100):
        p = expit(strength[player] + slope * x)
        error, curve = weight * (y - p), weight * p * (1 - p)
        gradient = np.bincount(player, error, players) - strength / STRENGTH_SD**2
        gradient_slope = float(error @ x) - slope / SLOPE_SD**2
        diagonal = np.bincount(player, curve, players) + 1 / STRENGTH_SD**2
        across = np.bincount(player, curve * x, players)
        corner = float(curve @ (x * x)) + 1 / SLOPE_SD**2
        step_slope = (gradient_slope - float(across @ (gradient / diagonal))) / (
            corner - float(across @ (across / diagonal))
        )
        step = (gradient - across * step_slope) / diagonal
        largest = max(float(np.abs(step).max()), abs(step_slope))
        shorter = min(1.0, 2.0 / largest) if largest > 0 else 1.0  # Newton alone overshoots where arms are separated
        strength, slope = strength + shorter * step, slope + shorter * step_slope
        if largest < 1e-8:
            break
    return strength, slope


def _against(comparisons: pd.DataFrame, responses: pd.DataFrame, anchor: str) -> pd.DataFrame:
    """Rows of arm, step, prompt, outcome (of the arm), longer (characters more than the anchor's), weight."""
    answers = responses.assign(step=responses["step"].astype("Int64"), length=responses["response"].str.len())
    sides = []
    for mine, theirs in (("a", "b"), ("b", "a")):
        rows = comparisons[(comparisons[f"arm_{theirs}"] == anchor) & comparisons[f"step_{theirs}"].isna()]
        table = rows[["prompt", "sample"]].assign(arm=rows[f"arm_{mine}"], step=rows[f"step_{mine}"].astype("Int64"))
        table["outcome"] = rows["outcome"] if mine == "a" else 1 - rows["outcome"]
        sides.append(table)
    table = pd.concat(sides, ignore_index=True)
    own = answers[[*_KEYS, "length"]]
    zero = answers[(answers["arm"] == anchor) & answers["step"].isna()][["prompt", "sample", "length"]]
    table = table.merge(own, on=_KEYS).merge(zero, on=["prompt", "sample"], suffixes=("", "_anchor"))
    table["longer"] = table["length"] - table["length_anchor"]
    table["weight"] = 1 / table.groupby(_KEYS, dropna=False)["outcome"].transform("size")  # both orders count once
    return table


def _means(player: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        means: np.ndarray = np.bincount(player, weight * y) / np.bincount(player, weight)
    return means


def _bounds(draws: list[np.ndarray], number: int) -> tuple[float, float]:
    if not draws:
        return 0.0, 1.0
    low, high = np.nanquantile([draw[number] for draw in draws], [0.025, 0.975])
    return float(low), float(high)
