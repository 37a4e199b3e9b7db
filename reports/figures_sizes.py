"""Figures of a study with the base model's size as their axis: the paper's Figures 2 to 7 over its runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from reports import reading, style
from reports.exhibit import Exhibit
from reports.figures_training import chain_scores, most_principles
from reports.load import Missing, RunData, in_order
from suites.claims_measures import parameters

CAVEAT = (
    "Base models stand by their number of parameters where every name tells it, otherwise side by side. A point is "
    "one run with its own 95 % interval over prompts, a line goes through the means over seeds. Elo is relative to the "
    "same arm in every run, and each base model has gold PMs of its own, so heights are compared within a base model "
    "rather than between them."
)
Runs = Mapping[str, Mapping[int, RunData]]  # by base model, then by seed
Lines = Callable[[RunData], pd.DataFrame]  # rows of one run: line, estimate, low, high


def exhibits(runs: Runs) -> list[Exhibit]:
    """All figures that have a size axis, or what is missing to draw them."""
    return [_exhibit(name, title, paper, label, lines, runs) for name, title, paper, label, lines in FIGURES]


def _exhibit(name: str, title: str, paper: str, label: str, lines: Lines, runs: Runs) -> Exhibit:
    rows = []
    try:
        for place, by_seed in enumerate(runs.values()):
            rows += [lines(run).assign(place=place, seed=seed) for seed, run in by_seed.items()]
    except Missing as missing:
        return Exhibit(name, title, paper, missing=missing)
    table = pd.concat(rows, ignore_index=True)[["line", "place", "seed", "estimate", "low", "high"]]
    with style.LOCK:
        figure, (axes,) = style.new(width=6.4)
        named = in_order(set(table["line"]))
        at, apart = _axis(axes, list(runs))
        for number, line in enumerate(named):
            part = table[table["line"] == line]
            means = part.groupby("place")["estimate"].mean()
            beside = apart(number - (len(named) - 1) / 2)
            look = {"color": style.colour(line), "marker": style.marker(line)}
            axes.errorbar(
                [beside(at[place]) for place in part["place"]],
                part["estimate"],
                yerr=style.errors(part),
                linestyle="none",
                capsize=2,
                markersize=4,
                **look,  # type: ignore[arg-type]  # a dict of mixed values
            )
            axes.plot([beside(at[place]) for place in means.index], means, color=style.colour(line),
                      label=style.shorten(line))  # fmt: skip
        axes.set_ylabel(label)
        style.legend(figure, axes)
    said = f"{label}, means over seeds: {'; '.join(_told(table, list(runs)))}."
    return Exhibit(name, title, paper, said, said, table, figure)


def _axis(axes: Axes, bases: list[str]) -> tuple[list[float], Callable[[float], Callable[[float], float]]]:
    """The base models' places on the x axis, and by how much a line numbered from the middle stands beside them."""
    sizes = [parameters(base) for base in bases]
    if np.isfinite(sizes).all() and len(set(sizes)) == len(sizes):
        axes.set_xscale("log")
        names = [f"{style.shorten(base, 30)}\n{_size(size)}" for base, size in zip(bases, sizes, strict=True)]
        axes.set_xticks(sizes, names)
        axes.xaxis.set_minor_locator(NullLocator())
        spread = max(sizes) / min(sizes)
        axes.set_xlim(min(sizes) / spread**0.2, max(sizes) * spread**0.2)
        axes.set_xlabel("Base model, by its parameters")
        return sizes, lambda number: lambda x: x * spread ** (0.015 * number)
    axes.set_xticks(range(len(bases)), [style.shorten(base, 30) for base in bases])
    axes.set_xlim(-0.5, len(bases) - 0.5)
    axes.set_xlabel("Base model")
    return [float(place) for place in range(len(bases))], lambda number: lambda x: x + 0.03 * number


def _size(parameters: float) -> str:
    return f"{parameters / 1e9:g} B" if parameters >= 1e9 else f"{parameters / 1e6:g} M"


def _told(table: pd.DataFrame, bases: list[str]) -> Iterator[str]:
    for line in in_order(set(table["line"])):
        means = table[table["line"] == line].groupby("place")["estimate"].mean()
        yield f"{line} " + ", ".join(f"{reading.number(mean)} ({bases[int(at)]})" for at, mean in means.items())  # type: ignore[call-overload]  # an int


def _metric(metric: str, suite: str) -> Lines:
    return lambda run: run.metric(metric, suite, final=True).rename(columns={"arm": "line"})


def _hhh(run: RunData) -> pd.DataFrame:
    rows = run.summary[run.summary["metric"].str.startswith("accuracy_") & (run.summary["suite"] == "hhh")]
    if rows.empty:
        raise Missing("no HHH accuracy in results/hhh", run.command("hhh"))
    return rows.assign(line=rows["metric"].str.removeprefix("accuracy_"))


def _chains(run: RunData) -> pd.DataFrame:
    """Harmlessness PM scores of the runs' chains."""
    rows = chain_scores(run)
    rows = rows[rows["which"] == "harmless"]
    if rows.empty:
        raise Missing("the chains have no harmlessness score", run.command("pm_score"))
    return rows


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["revision"] == rows["revision"].max()]


def _revisions(run: RunData) -> pd.DataFrame:
    rows = most_principles(_chains(run))
    critiqued = rows[rows["mode"] == "critiqued"]
    rows = rows if critiqued.empty else critiqued
    return rows.assign(line="revision " + rows["revision"].astype(int).astype(str))


def _principles(run: RunData) -> pd.DataFrame:
    rows = _last(_chains(run))
    rows = rows[(rows["mode"] == "critiqued") & rows["n_principles"].notna()]
    if rows["n_principles"].nunique() < 2:
        more = ("revise.also_principles", [1, 2, 4, 8])
        raise Missing("every chain draws from the same number of principles", run.command("pm_score", more))
    return rows.assign(line="N = " + rows["n_principles"].astype(int).astype(str))


def _modes(run: RunData) -> pd.DataFrame:
    rows = _last(most_principles(_chains(run)))
    if rows["mode"].nunique() < 2:
        raise Missing("there are no direct chains", run.command("pm_score", ("revise.also_direct", True)))
    return rows.assign(line=rows["mode"].astype(str))


_SCORE = "Harmlessness PM score (log-odds)"
FIGURES: tuple[tuple[str, str, str, str, Lines], ...] = (
    ("harmlessness_by_size", "Harmlessness Elo by base model", "Figure 3: larger models gain more harmlessness.",
     "Harmlessness Elo", _metric("elo_harmlessness", "elo")),
    ("helpfulness_by_size", "Helpfulness Elo by base model", "Figure 3: larger models are more helpful.",
     "Helpfulness Elo", _metric("elo_helpfulness", "elo")),
    ("hhh_by_size", "HHH accuracy by base model", "Figure 4: larger models identify the better answer more often.",
     "HHH accuracy", _hhh),
    ("revisions_by_size", "Revisions by base model", "Figure 5: each revision is more harmless, at every size.", _SCORE,
     _revisions),
    ("principles_by_size", "Number of principles by base model", "Figure 6: it does not move the score.", _SCORE,
     _principles),
    ("critiques_by_size", "Critiques by base model", "Figure 7: critiques help small models more than large ones.",
     _SCORE, _modes),
)  # fmt: skip
