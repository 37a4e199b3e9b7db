"""Compare: two arms, of one run or of two: what is better, what regressed, what cannot be told."""

import os
from pathlib import Path

import pandas as pd
import streamlit as st

from reports import compare, dashboard, reading
from reports.load import find_runs

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


run = dashboard.begin("Compare")
others = {path.name: path for path in find_runs(Path(os.environ.get("CAI_RUNS_DIR", "runs")))}
left, middle, right = st.columns(3)
base_arm = left.selectbox(
    f"Baseline: arm of {dashboard.plain(run.folder.name)}", run.arms, index=place(run.arms, "hh_rlhf", 0)
)
names = list(others)
other_name = middle.selectbox("Candidate: run", names, index=names.index(run.folder.name))
other = dashboard.open_run(others[str(other_name)])
if not other.arms:
    st.warning("That folder holds no results yet.")
    st.stop()
other_arm = right.selectbox("Candidate: arm", other.arms, index=place(other.arms, "rl_cai", -1))
if run.folder == other.folder and base_arm == other_arm:
    st.info("The same arm on both sides; choose another.")
    st.stop()


@st.cache_data(max_entries=20, show_spinner="Comparing")
def judged(
    base: str, base_stamp: float, base_arm: str, other: str, other_stamp: float, other_arm: str
) -> tuple[pd.DataFrame, list[str]]:
    return compare.judge(dashboard.open_run(Path(base)), base_arm, dashboard.open_run(Path(other)), other_arm)


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
    st.info("Nothing can be compared: neither side has per-response tables.")
if run.folder == other.folder:
    elo = compare.elo_differences(run, str(base_arm), str(other_arm))
    if len(elo):
        st.subheader("Elo, candidate minus baseline")
        cells = [reading.interval(r.estimate, r.low, r.high, "Elo") for r in elo.itertuples()]  # type: ignore[arg-type]  # untyped
        dashboard.html_table(pd.DataFrame({"metric": elo["metric"], "difference": cells, "n": elo["n"]}))
for note in notes:
    st.caption(dashboard.plain(note))
