"""One-line readings of tables, in words. A difference is only claimed where intervals let it be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from suites import registry

METRICS = {  # of the scoreboard, metric: (name, unit, better)
    metric.name: (metric.title, metric.unit, metric.better)
    for suite in registry.SUITES
    for metric in suite.metrics
    if metric.title
}


def number(value: float, unit: str = "") -> str:
    """A value as a reader wants it: percent whole, Elo whole, the rest to two decimals."""
    if pd.isna(value):
        return "none"
    if np.isinf(value):
        return "unbounded"
    if unit == "%":
        return f"{100 * value:z.0f}%"
    if unit == "Elo":
        return f"{round(value)}"
    return f"{value:z.2f}"


def short(value: float) -> str:
    """Two significant digits, without an exponent from 100 up."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


def interval(estimate: float, low: float, high: float, unit: str = "") -> str:
    """ "12 [3, 20]"; says so where one prompt bounds nothing."""
    if pd.isna(low) or pd.isna(high) or np.isinf(low) or np.isinf(high):
        return f"{number(estimate, unit)} [interval not known]"
    return f"{number(estimate, unit)} [{number(low, unit)}, {number(high, unit)}]"


def significant(effect: float, low: float, high: float) -> str:
    """ "+0.41 [+0.2, +0.6]": three significant digits, each with its sign."""
    said = ["0" if abs(value) < 5e-4 else f"{value:+.3g}" for value in (effect, low, high)]
    return f"{said[0]} [{said[1]}, {said[2]}]"


def ranking(rows: pd.DataFrame, what: str, unit: str = "") -> str:
    """Who is highest and lowest of `rows` (arm, estimate, low, high), and whether their intervals part."""
    rows = rows.dropna(subset=["estimate"])
    if rows.empty:
        return f"{what} has no value."
    top, bottom = rows.iloc[int(rows["estimate"].argmax())], rows.iloc[int(rows["estimate"].argmin())]
    value = interval(top["estimate"], top["low"], top["high"], unit)
    if len(rows) == 1:
        return f"{what} is {value} for {top['arm']}, the only one measured."
    if number(top["estimate"], unit) == number(bottom["estimate"], unit):
        return f"{what} is the same for all to the digits shown: {value} for {top['arm']}."
    said = f"{what} is highest for {top['arm']} ({value})"
    said += f" and lowest for {bottom['arm']} ({interval(bottom['estimate'], bottom['low'], bottom['high'], unit)}); "
    apart = top["low"] > bottom["high"]
    return said + ("their intervals do not meet." if apart else "their intervals overlap: the order may be chance.")


def sign(row: pd.Series, name: str, up: str, down: str) -> str:
    """What a difference with its interval says: `up` above 0, `down` below, else that it cannot be told."""
    if row["low"] > 0:
        return f"{name} {up}"
    if row["high"] < 0:
        return f"{name} {down}"
    return f"{name} cannot be told to change"


def counts(verdicts: Sequence[str]) -> str:
    """ "2 reproduced, 1 contradicted, ..." of verdicts."""
    order = ("reproduced", "contradicted", "underpowered", "judge cannot tell", "not measured")
    said = [f"{list(verdicts).count(word)} {word}" for word in order if word in verdicts]
    return ", ".join(said)
