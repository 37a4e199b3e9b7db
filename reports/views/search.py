"""Search: all responses of all runs of the folder, by text, run, arm, snapshot, and what a suite said of them."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from reports import dashboard, search
from reports.load import in_order

SHOWN = 25  # responses drawn at once


@st.cache_resource(max_entries=2, show_spinner="Reading all responses")
def table(folders: tuple[tuple[str, str, float], ...]) -> tuple[pd.DataFrame, list[str]]:
    return search.load({name: Path(folder) for name, folder, _ in folders})


@st.cache_resource(max_entries=6, show_spinner="Reading what the suite said")
def said(folders: tuple[tuple[str, str, float], ...], suite: str) -> pd.DataFrame:
    return search.said({name: Path(folder) for name, folder, _ in folders}, suite)


def several(place: "st.delta_generator.DeltaGenerator", label: str, options: Sequence[str], key: str) -> list[str]:
    asked = st.query_params.get_all(key)
    if gone := [value for value in asked if value not in options]:
        place.caption(f"Not here: {dashboard.plain(', '.join(gone))}.")
    return place.multiselect(label, options, placeholder="all", key=key, bind="query-params")


st.title("Search")
runs = dashboard.found_runs()
folders = tuple((name, str(run), dashboard.stamp(run)) for name, run in runs.items())
rows, without = table(folders)
if rows.empty:
    st.warning(f"{dashboard.plain(dashboard.root())} holds no responses; `cai run` and `cai eval --out` write them.")
    st.stop()
words = st.text_input("Text in a prompt or response, case aside", key="text", bind="query-params")
first, second, third, fourth = st.columns(4)
query = search.Query(
    words,
    tuple(several(first, "Runs", list(rows["run"].cat.categories), "runs")),
    tuple(several(second, "Arms", in_order(set(rows["arm"].cat.categories)), "arms")),
    tuple(several(third, "Snapshots", sorted(rows["snapshot"].cat.categories, key=lambda s: (s != search.FINAL, len(s),
                                                                                           s)), "snapshots")),
    dashboard.choose(fourth, "What a suite said", ["", *search.SAID], "suite",
                     format_func=lambda name: name or "any, or nothing"),
)  # fmt: skip
found = rows[search.match(rows, query)]
if query.suite:
    by_suite = said(folders, query.suite)
    if options := search.labels(by_suite):
        label = dashboard.choose(fourth, "Label", ["", *options], "label", format_func=lambda name: name or "any")
    else:
        label = ""
    found = search.judged(found, by_suite, label)
count = dashboard.count(len(found), "response")
st.caption(f"{count} of {len(rows):,}, in {dashboard.count(found['run'].nunique(), 'run')}"
           + (f"; the first {SHOWN} are shown" if len(found) > SHOWN else ""))  # fmt: skip
for each in without:
    st.caption(f"Not searched: {dashboard.plain(each)}.")
if found.empty:
    st.info("Nothing matches; take a filter away.")
    st.stop()
blurred = not dashboard.uncovered()
for row in found.head(SHOWN).to_dict("records"):
    with st.container(border=True):
        left, right = st.columns([1, 3])
        left.markdown(f"**{dashboard.plain(row['arm'])}**, {row['snapshot']}")
        left.caption(dashboard.plain(row["run"]))
        if query.suite:
            value = row["said"]
            left.caption(f"{query.suite}: {value:.2f}" if isinstance(value, float) else
                         f"{query.suite}: {dashboard.plain(value)}")  # fmt: skip
        with left:
            dashboard.link("responses", "All answers to this prompt", run=str(row["run"]), 
                           prompt=dashboard.digest(str(row["prompt"])))  # fmt: skip
        with right:
            dashboard.model_text(search.around(str(row["prompt"]), words), blurred=blurred, note="asked")
            dashboard.model_text(search.around(str(row["response"]), words), blurred=blurred)
dashboard.download(found.astype({"prompt": str, "response": str}), "search", "All that was found (CSV)")
