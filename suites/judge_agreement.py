"""How far judges agree about the same comparisons: Cohen's kappa of who won, Spearman's correlation of how surely."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from harness.stats import Bootstrap, cluster_codes, resample_counts, spearman_bootstrap

COLUMNS = ["judge_a", "judge_b", "metric", "estimate", "low", "high", "n"]
_PAIR = ["prompt", "sample", "arm_a", "step_a", "arm_b", "step_b"]


def agreement(compared: Mapping[str, pd.DataFrame], seed: int = 0) -> pd.DataFrame:
    """COLUMNS for every two judges, from their comparisons (`suites.judges.COLUMNS`) by name; n counts prompts.

    metric: kappa, of won, tied and lost; rank_correlation, of the probabilities (both orders averaged). What does not
    vary has neither and no row. Intervals are by bootstrap over prompts.
    """
    rows: list[dict[str, Any]] = []
    for a, b in combinations(compared, 2):
        both = _averaged(compared[a]).merge(_averaged(compared[b]), on=_PAIR, suffixes=("_1", "_2"))
        if both.empty:
            continue
        names = {"judge_a": a, "judge_b": b}
        value = kappa(both["outcome_1"], both["outcome_2"], both["prompt"], seed)
        if np.isfinite(value.estimate):
            rows.append(names | {"metric": "kappa"} | vars(value.interval()))
        if both["p_1"].nunique() > 1 and both["p_2"].nunique() > 1:
            rank = spearman_bootstrap(both["p_1"], both["p_2"], both["prompt"], seed)
            rows.append(names | {"metric": "rank_correlation"} | vars(rank))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n": "int64"})


def _averaged(table: pd.DataFrame) -> pd.DataFrame:
    steps = {column: table[column].astype("Int64").fillna(-1) for column in ("step_a", "step_b")}
    return table.assign(**steps).groupby(_PAIR, as_index=False, dropna=False)[["outcome", "p"]].mean()


def kappa(x: pd.Series, y: pd.Series, clusters: pd.Series, seed: int = 0, n_resamples: int = 2000) -> Bootstrap:
    """Cohen's kappa (1960) of two ratings; NaN where both give one and the same rating to all."""
    codes, n = cluster_codes(clusters, len(x))
    ratings, found = pd.factorize(pd.concat([x, y], ignore_index=True))
    k = len(found)
    cell = ratings[: len(x)] * k + ratings[len(x) :]
    counts = np.zeros((n, k * k))
    np.add.at(counts, (codes, cell), 1.0)
    drawn = np.concatenate([times @ counts for times in resample_counts(n, n_resamples, seed)])
    tables = np.concatenate([counts.sum(axis=0)[None], drawn]).reshape(-1, k, k)
    tables = tables / tables.sum(axis=(1, 2), keepdims=True)
    agreed = np.einsum("rii->r", tables)
    chance = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(chance < 1, (agreed - chance) / (1 - chance), np.nan)
    return Bootstrap(float(values[0]), values[1:][np.isfinite(values[1:])], n)
