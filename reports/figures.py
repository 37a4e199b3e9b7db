"""Figures of what the arms do: the frontier, Elo along RL, win rates, PM score, evasiveness, boilerplate, harm."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator

from reports import reading, style
from reports.exhibit import Drawn, exhibit
from reports.load import Missing, RunData, final_rows, in_order, no_snapshots

NO_PHRASE = "no phrase recurs across unrelated prompts in this run"
_BY_ARM = "A point with a 95 % interval for each arm. "


def ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows by arm in the paper's order."""
    place = {arm: i for i, arm in enumerate(in_order(set(rows["arm"])))}
    return rows.sort_values("arm", key=lambda arms: arms.map(place), kind="stable").reset_index(drop=True)


def values(rows: pd.DataFrame, unit: str = "") -> str:
    """The drawn numbers as a sentence, for alternative text."""
    said = [f"{r.arm} {reading.interval(r.estimate, r.low, r.high, unit)}" for r in rows.itertuples()]  # type: ignore[arg-type]  # untyped
    return "; ".join(said) + "."


def _label(name: str, unit: str) -> str:
    return name if unit == "Elo" else f"{name} ({unit})"


def by_arm(run: RunData, metric: str, suite: str, zero: float | None = None) -> Drawn:
    """One metric of the final models."""
    name, unit, _ = reading.METRICS[metric]
    rows = ordered(run.metric(metric, suite, final=True))
    figure, (axes,) = style.new(height=0.8 + 0.5 * len(rows))
    style.points(axes, rows, _label(name, unit), percent=unit == "%", zero=zero)
    return figure, rows, reading.ranking(rows, name, unit), f"{_BY_ARM}{name}: {values(rows, unit)}"


def along(run: RunData, panels: list[tuple[str, str]]) -> Drawn:
    """Metrics (metric, suite) of the snapshots along RL, a panel each; a final model stands at the end of its run."""
    drawn: list[tuple[str, pd.DataFrame]] = []
    missing = None
    for metric, suite in panels:
        try:
            rows = run.metric(metric, suite)
            if rows["step"].isna().all():
                raise no_snapshots(run, metric, suite)
            drawn.append((metric, _placed(run, rows)))
        except Missing as found:
            missing = found
    if missing is not None and not drawn:
        raise missing
    figure, all_axes = style.new(len(drawn), width=4.6)
    said, alt = [], []
    for axes, (metric, rows) in zip(all_axes, drawn, strict=True):
        name, unit, _ = reading.METRICS[metric]
        groups = [(arm, rows[rows["arm"] == arm]) for arm in in_order(set(rows["arm"]))]
        style.lines(axes, groups, "at", _label(name, unit), percent=unit == "%")
        axes.set_xlabel("RL update")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        style.at_least(axes.set_ylim, axes.get_ylim(), {"Elo": 20.0, "%": 10.0}.get(unit, 0.1))
        ends = pd.DataFrame([part.sort_values("at").iloc[-1] for _, part in groups])
        said.append(reading.ranking(ends, f"{name} at the end of RL", unit))
        alt += [f"{arm} from {_ends(part, unit)}" for arm, part in groups]
        alt[-len(groups)] = f"{name}: {alt[-len(groups)]}"
    style.legend(figure, all_axes[0])
    table = pd.concat([rows for _, rows in drawn], ignore_index=True)
    return figure, table, " ".join(said), f"Lines with 95 % bands against the RL update. {'; '.join(alt)}."


def _ends(rows: pd.DataFrame, unit: str) -> str:
    estimates = rows.sort_values("at")["estimate"]
    return f"{reading.number(estimates.iloc[0], unit)} to {reading.number(estimates.iloc[-1], unit)}"


def _placed(run: RunData, rows: pd.DataFrame) -> pd.DataFrame:
    """Arms with snapshots, with `at`: the RL update each row belongs to."""
    rows = rows[rows["arm"].isin(rows.loc[rows["step"].notna(), "arm"])]
    last = rows.groupby("arm")["step"].max()
    log = run.table("training", ["arm", "step"])
    if log is not None and {"arm", "step"} <= set(log) and pd.api.types.is_numeric_dtype(log["step"]):
        last = last.combine(log.groupby("arm")["step"].max().reindex(last.index), max)
    last.update(run.results.set_index("arm")["step"].astype(last.dtype))  # where an arm's result is not its last
    placed = rows.assign(at=rows["step"].astype("Float64").fillna(rows["arm"].map(last).astype("Float64")))
    return placed.drop_duplicates(["arm", "at"], keep="last").astype({"at": "float64"})


# ---------------------------------------------------------------- Elo


@exhibit(
    "frontier",
    "Helpfulness against harmlessness",
    "Figure 2: both RL-CAI models lie beyond the frontier of the models trained on human labels: more harmless at the "
    "same helpfulness.",
)
def frontier(run: RunData) -> Drawn:
    """Elo of the final models, an ellipse and a cross for their 95 % intervals."""
    sides = [run.metric(f"elo_{side}", "elo", final=True) for side in ("helpfulness", "harmlessness")]
    both = sides[0].merge(sides[1], on="arm", suffixes=("_helpful", "_harmless"))
    if both.empty:
        raise Missing("no arm has both a harmlessness and a helpfulness Elo", run.command("elo"))
    figure, table, alt = plane(ordered(both))
    return figure, table, frontier_reading(table), alt


def plane(both: pd.DataFrame) -> tuple[Figure, pd.DataFrame, str]:
    """Figure, numbers and words of arms by helpfulness (across) and harmlessness Elo (up), each with its interval.

    both: arm, and estimate, low, high, n, each with the suffixes _helpful and _harmless.
    """
    figure, (axes,) = style.new(width=6.8, height=5.0)
    parts = [
        both.rename(columns={f"{k}_{side}": k for k in ("estimate", "low", "high")}) for side in ("helpful", "harmless")
    ]
    (left, right), (below, above) = (style.errors(part) for part in parts)
    for i, row in enumerate(both.itertuples()):
        x, y = float(row.estimate_helpful), float(row.estimate_harmless)  # type: ignore[arg-type]  # itertuples is untyped
        colour = style.colour(str(row.arm))
        middle = (x + (right[i] - left[i]) / 2, y + (above[i] - below[i]) / 2)
        axes.add_patch(
            Ellipse(middle, left[i] + right[i], below[i] + above[i], facecolor=colour, alpha=0.15, linewidth=0)
        )
        axes.errorbar(
            [x], [y], xerr=[[left[i]], [right[i]]], yerr=[[below[i]], [above[i]]], color=colour,
            fmt=style.marker(str(row.arm)), markersize=8, elinewidth=1.3, label=style.shorten(row.arm),
        )  # fmt: skip
    style.at_least(axes.set_xlim, axes.get_xlim(), 20)
    style.at_least(axes.set_ylim, axes.get_ylim(), 20)
    style.labels(axes, both["estimate_helpful"], both["estimate_harmless"], both["arm"])
    axes.set_xlabel("Helpfulness Elo (better to the right)")
    axes.set_ylabel("Harmlessness Elo (better upwards)")
    table = both[["arm", *(f"{k}_{s}" for s in ("helpful", "harmless") for k in ("estimate", "low", "high", "n"))]]
    alt = "Scatter of helpfulness Elo (across) and harmlessness Elo (up) with 95 % intervals. " + " ".join(
        f"{name}: {values(part, 'Elo')}" for name, part in zip(("Helpfulness", "Harmlessness"), parts, strict=True)
    )
    return figure, table, alt


def frontier_reading(both: pd.DataFrame) -> str:
    """Which arms no other arm beats on both axes."""
    best = []
    for row in both.itertuples():
        beaten = (both["estimate_helpful"] > row.estimate_helpful) & (both["estimate_harmless"] > row.estimate_harmless)
        if not beaten.any():
            best.append(str(row.arm))
    said = f"On the frontier (no arm beats it on both): {', '.join(best)}."
    overlap = round(both["low_harmless"].max()) <= round(both["high_harmless"].min())
    return said + (" All harmlessness intervals overlap, so the order may be chance." if overlap else "")


@exhibit(
    "elo_along_rl",
    "Elo along RL",
    "Figures 3 and 8: harmlessness rises along RL for RL-CAI and HH-RLHF; helpful-only grows less harmless.",
)
def elo_along(run: RunData) -> Drawn:
    """Both Elo scores of the snapshots."""
    return along(run, [("elo_harmlessness", "elo"), ("elo_helpfulness", "elo")])


@exhibit("win_rates", "Who wins against whom", "The paper fits Elo scores to crowdworkers' choices between such pairs.")
def win_rates(run: RunData) -> Drawn:
    """Share of comparisons that the arm of the row wins against that of the column, final models."""
    found, missing = [], None
    for side in ("harmlessness", "helpfulness"):
        try:
            columns = ["arm_a", "step_a", "arm_b", "step_b", "estimate", "low", "high", "n"]
            rows = run.need(f"elo/{side}_win_rates", columns)
            rows = rows[rows["step_a"].isna() & rows["step_b"].isna()]
            if not rows.empty:
                found.append((side, rows))
        except Missing as error:
            missing = error
    if not found:
        raise missing or Missing("no win rates between final models", run.command("elo"))
    arms = in_order({arm for _, rows in found for arm in (*rows["arm_a"], *rows["arm_b"])})
    figure, all_axes = style.new(len(found), width=1.4 + 0.52 * len(arms), height=1.3 + 0.42 * len(arms))
    for axes, (side, rows) in zip(all_axes, found, strict=True):
        grid = rows.pivot_table(index="arm_a", columns="arm_b", values="estimate").reindex(index=arms, columns=arms)
        axes.imshow(grid.to_numpy(dtype=float), cmap="PuOr_r", vmin=0, vmax=1, aspect="auto")
        for i, j in np.argwhere(grid.notna().to_numpy()):
            value = float(grid.iat[i, j])  # type: ignore[arg-type]  # iat is untyped
            ink = "white" if abs(value - 0.5) > 0.33 else style.INK
            axes.text(j, i, f"{100 * value:.0f}%", ha="center", va="center", fontsize=8, color=ink)
        axes.grid(False)
        axes.set_title(f"{side}: row beats column")
        axes.set_xticks(range(len(arms)), [style.shorten(a, 14) for a in arms], rotation=35, ha="right")
        axes.set_yticks(range(len(arms)), [style.shorten(a, 14) for a in arms])
    table = pd.concat([rows.assign(which=side) for side, rows in found], ignore_index=True)
    best = table.sort_values("estimate").iloc[-1]
    said = f"The clearest win: {best['arm_a']} against {best['arm_b']} on {best['which']}, "
    said += f"{reading.interval(best['estimate'], best['low'], best['high'], '%')} of the comparisons"
    said += "." if best["low"] > 0.5 else "; it cannot be told from chance."
    return figure, table, said, f"Matrix of win rates between arms. {said} All numbers are in the table."


# ---------------------------------------------------------------- single metrics


@exhibit(
    "pm_score", "PM score of the arms", "Figures 2 and 3 order the arms; a gold PM's score is a cheaper sign of it."
)
def pm_score(run: RunData) -> Drawn:
    return by_arm(run, "pm_score", "pm_score")


@exhibit("evasiveness", "Evasiveness", "Section 4.4: HH-RLHF often evades; RL-CAI engages and explains its objections.")
def evasiveness(run: RunData) -> Drawn:
    """Evasive rate on red-team prompts and over-refusal of benign ones."""
    return _two(run, [("evasive_rate", "evasiveness"), ("over_refusal_rate", "evasiveness")])


def _two(run: RunData, panels: list[tuple[str, str]]) -> Drawn:
    drawn: list[tuple[str, pd.DataFrame]] = []
    missing = None
    for metric, suite in panels:
        try:
            drawn.append((metric, ordered(run.metric(metric, suite, final=True))))
        except Missing as found:
            missing = found
    if missing is not None and not drawn:
        raise missing
    figure, all_axes = style.new(len(drawn), width=4.8, height=1.0 + 0.5 * max(len(rows) for _, rows in drawn))
    said, alt = [], []
    for axes, (metric, rows) in zip(all_axes, drawn, strict=True):
        name, unit, _ = reading.METRICS[metric]
        style.points(axes, rows, _label(name, unit), percent=unit == "%")
        said.append(reading.ranking(rows, f"{name} rate" if unit == "%" else name, unit))
        alt.append(f"{name}: {values(rows, unit)}")
    table = pd.concat([rows for _, rows in drawn], ignore_index=True)
    return figure, table, " ".join(said), _BY_ARM + " ".join(alt)


@exhibit("evasiveness_along_rl", "Evasiveness along RL", "Figure 8: HH-RLHF grows evasive late in RL; RL-CAI does not.")
def evasiveness_along(run: RunData) -> Drawn:
    return along(run, [("evasive_rate", "evasiveness")])


@exhibit(
    "boilerplate",
    "Boilerplate",
    "Section 4.3: over-trained RL-CAI ends answers with reassurance that fits nothing, or turns accusatory.",
)
def boilerplate(run: RunData) -> Drawn:
    return by_arm(run, "boilerplate_rate", "goodharting")


@exhibit("boilerplate_along_rl", "Boilerplate along RL", "Section 4.3: boilerplate comes with over-training.")
def boilerplate_along(run: RunData) -> Drawn:
    return along(run, [("boilerplate_rate", "goodharting")])


@exhibit(
    "harmfulness",
    "Absolute harmfulness",
    "Figure 10: helpful-only grows more harmful along RL; HH-RLHF and RL-CAI less. 0 is harmless, 4 very harmful.",
)
def harmfulness(run: RunData) -> Drawn:
    return by_arm(run, "harmfulness", "harmfulness")


@exhibit("phrases", "Most widespread phrases", "Section 4.3 quotes such phrases of over-trained RL-CAI.")
def phrases(run: RunData) -> Drawn:
    """The phrases that recur in the most unrelated prompts, of final models."""
    columns = ["arm", "step", "phrase", "prompts", "responses", "share", "sentence", "example_prompt"]
    rows = final_rows(run.need("goodharting/phrases", columns, none=NO_PHRASE))
    top = rows.sort_values("share", ascending=False, kind="stable").head(12).reset_index(drop=True)
    figure, (axes,) = style.new(width=7.4, height=1.0 + 0.36 * len(top))
    bar_colours = [style.colour(str(arm)) for arm in top["arm"]]
    axes.barh(range(len(top)), 100 * top["share"].to_numpy(dtype=float), color=bar_colours, height=0.65)
    for place, row in enumerate(top.itertuples()):
        share = 100 * float(row.share)  # type: ignore[arg-type]  # itertuples is untyped
        axes.annotate(str(row.arm), (share, place), (4, 0), textcoords="offset points", va="center",
                      fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(top)), [style.shorten(phrase, 46) for phrase in top["phrase"]])
    axes.set_ylim(len(top) - 0.4, -0.6)
    axes.margins(x=0.2)
    axes.set_xlabel("Share of the arm's responses that hold it (%)")
    first = top.iloc[0]
    said = f"Most widespread: “{style.shorten(first['phrase'], 80)}” in {100 * float(first['share']):.0f}% of the "
    said += f"responses of {first['arm']}, to {int(first['prompts'])} prompts."
    return figure, rows, said, f"Bars of the share of responses that hold a phrase. {said}"
