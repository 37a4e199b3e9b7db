"""Compare: two arms, of one run or of two: what is better, what regressed, what cannot be told.

Of two runs, also what differs between their experiments, and the same figure of both.
"""

import importlib
from pathlib import Path

import pandas as pd
import streamlit as st

from reports import compare, dashboard, differences, reading, style
from reports.dashboard import Picture
from reports.load import Missing, RunData
from reports.static import CHAPTERS

COLOURS = {
    "better": ("#d5efe6", "#00503a", "▲"),
    "equivalent": ("#e3edf7", "#1d3f66", "="),
    "no worse": ("#e3edf7", "#1d3f66", "≥"),
    "worse": ("#fbdccb", "#7a2c00", "▼"),
    "differs": ("#fbdccb", "#7a2c00", "≠"),
    "cannot tell": ("#fdf0c8", "#5c4700", "?"),
    "judge cannot tell": ("#e6e0f2", "#41306b", "⚖"),
}


def place(arms: list[str], arm: str, otherwise: int) -> int:
    return arms.index(arm) if arm in arms else otherwise % len(arms)


def side_by_side(run: RunData, other: RunData) -> None:
    """The same figure of both runs, on the same scales."""
    draws = {draw.__name__: draw for _, listed in CHAPTERS for draw in listed}
    name = dashboard.choose(st, "Figure", list(draws), "figure", format_func=lambda each: each.replace("_", " "))
    shown = pair(str(run.folder), dashboard.stamp(run.folder), str(other.folder), dashboard.stamp(other.folder),
                 draws[name].__module__, name)  # fmt: skip
    st.subheader(shown[0]["title"])
    narrow = all(picture["width"] <= dashboard.WIDE for picture in shown)
    places = st.columns(2, gap="medium") if narrow else (st.container(), st.container())
    for column, one, picture in zip(places, (run, other), shown, strict=True):
        with column:
            st.markdown(f"**{dashboard.plain(dashboard.named(one.folder))}**")
            if picture["missing"] is not None:
                dashboard.not_measured(Missing(*picture["missing"]))
                continue
            dashboard.draw_in(st, picture, whole=narrow)
            st.caption(dashboard.plain(picture["reading"]))


@st.cache_data(max_entries=40, show_spinner="Drawing")
def pair(base: str, base_stamp: float, other: str, other_stamp: float, module: str, name: str) -> list[Picture]:
    draw = getattr(importlib.import_module(module), name)
    both = [draw(dashboard.open_run(Path(folder))) for folder in (base, other)]
    if all(item.figure is not None for item in both):
        style.share_scales([item.figure for item in both])
    return [dashboard.picture(item) for item in both]


def what_differs(run: RunData, other: RunData) -> None:
    st.header("What differs between the two experiments")
    table = differences.table({dashboard.named(each.folder): each for each in (run, other)})
    if table.empty:
        st.write("Nothing that was recorded: settings, versions, code, machine and data are the same.")
    else:
        dashboard.html_table(table)
        dashboard.download(table, "differences")
    same, stages = differences.shared_stages(run, other)
    if stages:
        st.caption(f"{same} of {stages} stages have the same key, so they hold the same: made from the same code, "
                   "settings and data.")  # fmt: skip


run = dashboard.begin("Compare")
others = dashboard.found_runs()
left, middle, right = st.columns(3)
base_arm = dashboard.choose(left, f"Baseline: arm of {dashboard.plain(dashboard.named(run.folder))}", run.arms,
                            "baseline", place(run.arms, "hh_rlhf", 0))  # fmt: skip
other_name = dashboard.choose(middle, "Candidate: run", list(others), "other",
                              list(others).index(dashboard.named(run.folder)))  # fmt: skip
other = dashboard.open_run(others[other_name])
if not other.arms:
    st.warning("That folder holds no results yet.")
    st.stop()
other_arm = dashboard.choose(right, "Candidate: arm", other.arms, "candidate", place(other.arms, "rl_cai", -1))
two_runs = run.folder != other.folder
if not two_runs and base_arm == other_arm:
    st.info("The same arm on both sides; choose another.")
    st.stop()


@st.cache_data(max_entries=20, show_spinner="Comparing")
def judged(
    base: str, base_stamp: float, base_arm: str, other: str, other_stamp: float, other_arm: str
) -> tuple[pd.DataFrame, list[str]]:
    return compare.judge(dashboard.open_run(Path(base)), base_arm, dashboard.open_run(Path(other)), other_arm)


if two_runs:
    st.header("The two arms")
verdicts, notes = judged(str(run.folder), dashboard.stamp(run.folder), base_arm, str(other.folder),
                         dashboard.stamp(other.folder), other_arm)  # fmt: skip
if len(verdicts):
    groups = {"Regressed": ["worse", "differs"], "Better": ["better"], "No worse": ["equivalent", "no worse"],
              "Cannot be told": ["cannot tell", "judge cannot tell"]}  # fmt: skip
    said = []
    for title, words in groups.items():
        metrics = verdicts.loc[verdicts["verdict"].isin(words), "metric"].tolist()
        said.append(f"**{title}:** {dashboard.plain(', '.join(metrics) or 'nothing')}.")
    st.markdown(" ".join(said))
    known = verdicts.fillna(float("nan"))
    shown = pd.DataFrame({
        "metric": verdicts["metric"], "verdict": verdicts["verdict"],
        "baseline": verdicts["baseline"].map(reading.number), "candidate": verdicts["candidate"].map(reading.number),
        "difference": [reading.interval(r.difference, r.low, r.high) for r in known.itertuples()],  # type: ignore[arg-type]  # untyped
        "margin": verdicts["margin"].map("{:g}".format), "n": verdicts["n"],
    })  # fmt: skip
    dashboard.html_table(shown, "verdict", COLOURS)
    st.caption(
        "Candidate minus baseline, on saved tables; paired bootstrap over prompts. The interval shown is corrected for "
        "the number of metrics; the margin, the shipped gate's, is held against the uncorrected one. `cai compare` "
        "samples anew and judges at equal size."
    )
    dashboard.download(verdicts, "comparison")
else:
    st.info("No metric can be compared; the lines below say why.")
if not two_runs:
    elo = compare.elo_differences(run, base_arm, other_arm)
    if len(elo):
        st.subheader("Elo, candidate minus baseline")
        cells = [reading.interval(r.estimate, r.low, r.high, "Elo") for r in elo.itertuples()]  # type: ignore[arg-type]  # untyped
        dashboard.html_table(pd.DataFrame({"metric": elo["metric"], "difference": cells, "n": elo["n"]}))
for note in notes:
    st.caption(dashboard.plain(note))
if two_runs:
    what_differs(run, other)
    st.header("The same figure of both")
    side_by_side(run, other)
