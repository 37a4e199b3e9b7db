"""Figures of a study seed by seed: each run a point, and the mean over the training runs with its interval."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness.stats import Interval
from harness.stats.seeds import over_intervals
from reports import opening, reading, style
from reports.exhibit import Exhibit
from reports.figures import ordered
from reports.load import Missing, RunData
from suites import registry
from suites.learned import REWARD

CAVEAT = (
    "A small point is one training run, a large one the mean over runs. Its 95 % interval holds the choice of seeds "
    "and of prompts. It is made from the runs' own intervals, as if prompts moved all runs alike, so it is too wide "
    "rather than too narrow."
)
Runs = Mapping[int, RunData]  # of one base model, by seed
PAPER = {
    "elo_harmlessness": "Figures 2 and 3: RL-CAI is the most harmless of its models.",
    "elo_helpfulness": "Figures 2 and 3: RL-CAI is about as helpful as RLHF with human labels of harm.",
    "pm_score": "Figures 2 and 3 order the arms; a gold PM's score is a cheaper sign of it.",
    "evasive_rate": "Section 4.4: HH-RLHF often evades; RL-CAI engages and explains its objections.",
    "over_refusal_rate": "Section 4.4 speaks of evasion on red-team prompts; it has no figure of benign ones.",
    "boilerplate_rate": "Section 4.3: over-trained RL-CAI ends answers with reassurance that fits nothing.",
    "harmfulness": "Figure 10: helpful-only is the most harmful along RL. 0 is harmless, 4 very harmful.",
}
FRONTIER = ("elo_helpfulness", "elo_harmlessness")


def exhibits(runs: Runs) -> list[Exhibit]:
    """The frontier, whether training moved what it optimises, and every metric of the scoreboard that was measured."""
    found = [_frontier(runs), _learned(runs)]
    for suite in registry.SUITES:
        found += [_metric(runs, metric.name, suite.name) for metric in suite.metrics if metric.title]
    return [item for item in found if item.figure is not None or item.name == "frontier_by_seed"]


def means(rows: pd.DataFrame, by: str = "arm") -> pd.DataFrame:
    """Rows (arm, estimate, low, high, n; one a run) -> one row an arm, its mean over runs and the number of runs."""
    found = []
    for arm, part in rows.groupby(by, sort=False):
        each = [Interval(*row) for row in part[["estimate", "low", "high", "n"]].itertuples(index=False)]
        found.append({by: arm, **vars(over_intervals(each)), "runs": len(each)})
    return pd.DataFrame(found, columns=[by, "estimate", "low", "high", "n", "runs"])


def _of_all(runs: Runs, metric: str, suite: str) -> pd.DataFrame:
    """The final models' rows of every run that measured the metric, with a column seed. Raises `Missing`."""
    found = []
    missing = None
    for seed, run in runs.items():
        try:
            found.append(run.metric(metric, suite, final=True).assign(seed=seed))
        except Missing as error:
            missing = error
    if not found:
        assert missing is not None
        raise missing
    return pd.concat(found, ignore_index=True).dropna(subset=["estimate"])


def _metric(runs: Runs, metric: str, suite: str) -> Exhibit:
    name, unit, _ = reading.METRICS[metric]
    paper = PAPER.get(metric, "")
    try:
        rows = _of_all(runs, metric, suite)
    except Missing as missing:
        return Exhibit(f"{metric}_by_seed", name, paper, missing=missing)
    return _points(f"{metric}_by_seed", name, paper, name if unit == "Elo" else f"{name} ({unit})", rows, unit)


def _learned(runs: Runs) -> Exhibit:
    title = "What RL moved"
    paper = "RL raises the score of the PM that it optimises; how far that is a gain is for other measures to say."
    rows = pd.concat([opening.learned_rows(run).assign(seed=seed) for seed, run in runs.items()], ignore_index=True)
    rows = rows[rows["measure"] == REWARD]
    if rows.empty:
        return Exhibit("learned_by_seed", title, paper, missing=Missing("no run holds a score of RL's start and end"))
    return _points("learned_by_seed", title, paper, "Own PM's score, end minus start of RL (log-odds)", rows, zero=0)


def _points(
    name: str, title: str, paper: str, label: str, rows: pd.DataFrame, unit: str = "", zero: float | None = None
) -> Exhibit:
    """A row an arm: its runs as small points below the mean."""
    over = ordered(means(rows))
    if unit == "%":
        over = over.assign(low=over["low"].clip(0, 1), high=over["high"].clip(0, 1))
    with style.LOCK:
        figure, (axes,) = style.new(height=0.9 + 0.55 * len(over))
        style.points(axes, over, label, percent=unit == "%", zero=zero)
        scale = 100 if unit == "%" else 1
        for place, arm in enumerate(over["arm"]):
            each = rows.loc[rows["arm"] == arm, "estimate"] * scale
            axes.plot(each, np.full(len(each), place + 0.25), linestyle="none", marker=style.marker(arm), markersize=4,
                      markerfacecolor="none", color=style.colour(arm), clip_on=False)  # fmt: skip
        axes.set_xlim(*style.around(axes.get_xlim(), rows["estimate"] * scale))
    said = f"{title}, means over runs: {_told(over, unit)}. {_spread(rows, unit)}"
    alt = f"A mean with a 95 % interval and a point a run for each arm. {said}"
    return Exhibit(name, title, paper, said, alt, _numbers(rows, over), figure)


def _frontier(runs: Runs) -> Exhibit:
    name, title = "frontier_by_seed", "The frontier, run by run"
    paper = "Figure 2: RL-CAI is more harmless than RLHF with human labels, and as helpful."
    try:
        sides = [_of_all(runs, metric, "elo") for metric in FRONTIER]
    except Missing as missing:
        return Exhibit(name, title, paper, missing=missing)
    with style.LOCK:
        figure, table, said = _drawn_frontier(*sides)
    return Exhibit(name, title, paper, said, f"Helpfulness against harmlessness. {said}", table, figure)


def _drawn_frontier(helpful: pd.DataFrame, harmless: pd.DataFrame) -> tuple[Figure, pd.DataFrame, str]:
    key = ["arm", "seed"]
    rows = helpful[[*key, "estimate"]].merge(harmless[[*key, "estimate"]], on=key, suffixes=("_helpful", "_harmless"))
    across, up = (means(side).set_index("arm") for side in (helpful, harmless))
    arms = [arm for arm in ordered(rows.drop_duplicates("arm"))["arm"] if arm in across.index and arm in up.index]
    figure, (axes,) = style.new(height=4.6)
    for arm in arms:
        x, y = across.loc[arm], up.loc[arm]
        look = {"color": style.colour(arm), "marker": style.marker(arm)}
        axes.errorbar([x["estimate"]], [y["estimate"]], xerr=style.errors(x.to_frame().T), markersize=8,
                      yerr=style.errors(y.to_frame().T), elinewidth=1.2, capsize=2, **look)  # type: ignore[arg-type]  # a dict of mixed values  # fmt: skip
        for each in rows[rows["arm"] == arm].itertuples():
            ends = [x["estimate"], each.estimate_helpful], [y["estimate"], each.estimate_harmless]
            axes.plot(*ends, color=look["color"], linewidth=0.6, alpha=0.6)
            last = ends[0][1:], ends[1][1:]
            axes.plot(*last, linestyle="none", markersize=4, markerfacecolor="white", **look)  # type: ignore[arg-type]  # a dict of mixed values
    axes.set_xlabel("Helpfulness Elo")
    axes.set_ylabel("Harmlessness Elo")
    axes.margins(0.12)
    style.labels(axes, across.loc[arms, "estimate"], up.loc[arms, "estimate"], arms)
    said = " ".join(
        f"{side}, means over runs: {_told(over.loc[arms].reset_index(), 'Elo')}."
        for side, over in (("Helpfulness Elo", across), ("Harmlessness Elo", up))
    )
    return figure, rows, said


def _told(over: pd.DataFrame, unit: str) -> str:
    return "; ".join(f"{r.arm} {reading.interval(r.estimate, r.low, r.high, unit)}" for r in over.itertuples())  # type: ignore[arg-type]  # untyped


def _spread(rows: pd.DataFrame, unit: str) -> str:
    """How far the runs of an arm lie apart, at most."""
    spans = rows.groupby("arm")["estimate"].agg(lambda each: each.max() - each.min())
    arm = str(spans.idxmax())
    if reading.number(spans[arm], unit) == reading.number(0, unit):
        return "All runs of an arm agree to the digits shown."
    return f"Runs of one arm lie at most {reading.number(spans[arm], unit)} apart ({arm})."


def _numbers(rows: pd.DataFrame, over: pd.DataFrame) -> pd.DataFrame:
    """The points and, with seed "mean", the means."""
    each = rows[["arm", "seed", "estimate", "low", "high", "n"]].astype({"seed": str})
    return pd.concat([each, over.drop(columns="runs").assign(seed="mean")], ignore_index=True)
