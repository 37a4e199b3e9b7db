"""Rates of yes-or-no outcomes by prompt: bootstrap intervals, and exact ones where all outcomes agree."""

from __future__ import annotations

import numpy as np
import pandas as pd

from harness.stats import Interval, bootstrap_difference, bootstrap_mean, wilson


def rate(held: np.ndarray, prompts: pd.Series, seed: int = 0) -> Interval:
    """Prompt bootstrap; Wilson over prompts where all outcomes agree, since resampling would show no spread."""
    n = prompts.nunique()
    if _agree(held):
        return wilson(n if held.all() else 0, n)
    return bootstrap_mean(held.astype(float), prompts, seed)


def rate_difference(
    a: np.ndarray, prompts_a: pd.Series, b: np.ndarray, prompts_b: pd.Series, seed: int = 0
) -> Interval:
    """rate(a) - rate(b), paired by prompt; by Newcombe (1998), method 10, where neither side has spread to resample."""
    if not (_agree(a) and _agree(b)):
        return bootstrap_difference(a.astype(float), prompts_a, b.astype(float), prompts_b, seed=seed)
    p, q = rate(a, prompts_a, seed), rate(b, prompts_b, seed)
    difference = p.estimate - q.estimate
    low = difference - np.hypot(p.estimate - p.low, q.high - q.estimate)
    high = difference + np.hypot(p.high - p.estimate, q.estimate - q.low)
    return Interval(difference, float(low), float(high), min(p.n, q.n))


def _agree(held: np.ndarray) -> bool:
    return bool(held.all() or not held.any())
