"""How figures look: one colour and one marker for each arm (Okabe and Ito's colour-blind safe palette), no parsing."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter

from harness.experiment import ARMS
from harness.text import terminal

COLOURS = ("#767676", "#E69F00", "#D55E00", "#56B4E9", "#0072B2", "#009E73")
OTHERS = ("#CC79A7", "#882255", "#44AA99", "#999933", "#332288", "#117733")
MARKERS = "osD^vPX*<>ph"
INK, FAINT = "#1a1a1a", "#d9d9d9"
_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a8a",
    "axes.labelcolor": INK,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "grid.color": "#ebebeb",
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # an arm's or a phrase's "$" is a dollar sign
    "svg.hashsalt": "cai-harness",  # the same figure is the same file
    "legend.frameon": False,
    "figure.facecolor": "white",
}
mpl.rcParams.update(_RC)  # once: a context of its own is not safe with Streamlit's threads
LOCK = threading.RLock()  # nor are matplotlib's fonts


def new(columns: int = 1, width: float = 6.4, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` axes side by side; width is each one's, in inches. It belongs to no pyplot window."""
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def colour(arm: str) -> str:
    own = dict(zip(ARMS, COLOURS, strict=False))  # an arm beyond the palette looks as a user's own does
    return own.get(arm, OTHERS[sum(map(ord, arm)) % len(OTHERS)])


def marker(arm: str) -> str:
    own = dict(zip(ARMS, MARKERS[:6], strict=False))
    return own.get(arm, MARKERS[6 + sum(map(ord, arm)) % 6])


def errors(rows: pd.DataFrame) -> np.ndarray:
    """Lengths of the bars below and above `estimate` (2, n); none where an interval is unbounded or unknown."""
    estimate = rows["estimate"].to_numpy(dtype=float)
    bars = np.stack([estimate - rows["low"].to_numpy(dtype=float), rows["high"].to_numpy(dtype=float) - estimate])
    return np.where(np.isfinite(bars), np.maximum(bars, 0), 0)


def points(axes: Axes, rows: pd.DataFrame, label: str, *, percent: bool = False, zero: float | None = None) -> None:
    """One row a label: estimate with its interval, the arm's colour and marker, the number at the right."""
    scale = 100 if percent else 1
    bars = errors(rows) * scale
    for place, (arm, estimate) in enumerate(zip(rows["arm"], rows["estimate"] * scale, strict=True)):
        style = {"color": colour(arm), "fmt": marker(arm), "markersize": 7, "elinewidth": 2, "capsize": 3}
        axes.errorbar([estimate], [place], xerr=bars[:, [place]], **style)  # type: ignore[arg-type]  # a dict of mixed values
        axes.annotate(f"{estimate:.0f}%" if percent else f"{estimate:.2f}", (estimate, place), (0, 7),
                      textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(rows)), [shorten(arm) for arm in rows["arm"]])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_xlabel(label)
    at_least(axes.set_xlim, axes.get_xlim(), 0.1)
    if zero is not None:
        axes.axvline(zero, color="#8a8a8a", linewidth=1, zorder=0)
    if percent:
        axes.set_xlim(-4, max(20.0, float(np.nanmax(rows["estimate"] * scale + bars[1]))) * 1.08)


def lines(axes: Axes, groups: Sequence[tuple[str, pd.DataFrame]], x: str, label: str, percent: bool = False) -> None:
    """A line an arm with its interval as a band; `groups` are (arm, rows with x, estimate, low, high)."""
    scale = 100 if percent else 1
    for arm, rows in groups:
        rows = rows.sort_values(x)
        place = rows[x].to_numpy(dtype=float)
        estimate = rows["estimate"].to_numpy(dtype=float) * scale
        below, above = errors(rows) * scale
        axes.fill_between(place, estimate - below, estimate + above, color=colour(arm), alpha=0.15, linewidth=0)
        axes.plot(place, estimate, color=colour(arm), marker=marker(arm), markersize=5, label=shorten(arm))
    axes.set_ylabel(label)


def at_least(set_limits: Callable[[float, float], object], limits: tuple[float, float], span: float) -> None:
    """Widen an axis to `span`, so that noise in the tenth digit does not look like a finding."""
    low, high = limits
    if high - low < span:
        middle = (low + high) / 2
        set_limits(middle - span / 2, middle + span / 2)


def share_scales(figures: Sequence[Figure]) -> None:
    """Give numbers on matching axes of the figures the same range, so that heights can be compared by eye.

    Axes with names instead of numbers, and figures of other panels, stay as they are.
    """
    panels = [figure.axes for figure in figures]
    if len({len(axes) for axes in panels}) > 1:
        return
    for matching in zip(*panels, strict=True):
        for which in ("x", "y"):
            axis = [getattr(axes, f"{which}axis") for axes in matching]
            if any(isinstance(each.get_major_formatter(), FixedFormatter) for each in axis):
                continue
            limits = [getattr(axes, f"get_{which}lim")() for axes in matching]
            turned = [low > high for low, high in limits]
            if any(turned):
                continue
            for axes in matching:
                getattr(axes, f"set_{which}lim")(min(low for low, _ in limits), max(high for _, high in limits))


def around(limits: tuple[float, float], values: Iterable[float]) -> tuple[float, float]:
    """An axis's limits, widened so that `values` lie well within."""
    inside = [*limits, *values]
    edge = 0.03 * (max(inside) - min(inside))
    return min(limits[0], min(inside[2:], default=limits[0]) - edge), max(
        limits[1], max(inside[2:], default=limits[1]) + edge
    )


def labels(axes: Axes, x: Iterable[float], y: Iterable[float], names: Iterable[str]) -> None:
    """Names at the points' upper right, moved up where they would lie on one another, then with a line to the point."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # never a SubFigure here
    per_point = 72 / axes.figure.dpi
    placed: list[tuple[float, float]] = []
    for at, name in sorted(zip(zip(x, y, strict=True), names, strict=True), key=lambda item: (item[0][1], item[0][0])):
        across, up = axes.transData.transform(at) * per_point
        height = up + 6
        for other, taken in sorted(placed, key=lambda spot: spot[1]):
            if abs(other - across) < 70 and abs(taken - height) < 11:
                height = taken + 11
        placed.append((across, height))
        line = {"arrowstyle": "-", "color": "#8a8a8a", "linewidth": 0.8} if height - up > 20 else None
        axes.annotate(shorten(name, 20), at, (8, height - up), textcoords="offset points", fontsize=9, arrowprops=line)


def legend(figure: Figure, axes: Axes, columns: int = 6) -> None:
    """One legend below the whole figure."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(handles)), fontsize=8)


def shorten(text: object, most: int = 40) -> str:
    """`text` on one line, cut to `most` characters."""
    line = " ".join(terminal(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def as_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a file of `kind`, svg or png."""
    out = io.BytesIO()
    with LOCK:
        figure.savefig(out, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    content = out.getvalue()
    # Matplotlib repeats a text as a comment, where a control character would make the file invalid.
    return terminal(content.decode("utf-8")).encode("utf-8") if kind == "svg" else content
