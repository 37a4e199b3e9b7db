"""Responses: search and filter, then all arms side by side for a prompt, with labels and scores."""

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from reports import dashboard
from reports.load import RunData, in_order

LABELS = {"evasiveness": "label", "goodharting": "label", "pm_score": "score", "harmfulness": "score"}
SHOWN = 400


@st.cache_data(max_entries=4, show_spinner=False)
def text_hits(folder: str, stamp: float, words: str) -> "pd.Series[bool]":
    """Which rows hold `words` in prompt or response, case aside."""
    rows = dashboard.whole(dashboard.open_run(Path(folder)), ["prompt", "response"])
    found = rows["prompt"].str.contains(words, case=False, regex=False, na=False)
    return found | rows["response"].str.contains(words, case=False, regex=False, na=False)


def beside(run: RunData, prompt: str) -> dict[tuple[str, str, int], list[str]]:
    """What the suites say of each response to `prompt`: (arm, step, sample) -> remarks."""
    said: dict[tuple[str, str, int], list[str]] = {}
    for suite, column in LABELS.items():
        table = run.table(f"{suite}/responses", ["prompt", "arm", "step", "sample", column])
        if table is None or not {"prompt", "arm", column} <= set(table):
            continue
        for row in table[table["prompt"] == prompt].to_dict("records"):
            value = row[column]
            if pd.isna(value):
                continue
            text = f"{value:.2f}" if isinstance(value, float) else str(value)
            said.setdefault(key(row), []).append(f"{suite}: {text}")
    return said


def key(row: dict[Any, Any]) -> tuple[str, str, int]:
    step, sample = row.get("step"), row.get("sample")
    return str(row["arm"]), "" if pd.isna(step) else str(int(step)), 0 if pd.isna(sample) else int(sample)


run = dashboard.begin("Responses")
rows = dashboard.whole(run, ["prompt", "response", "arm"], ["step", "sample", "kind"])
first, second, third = st.columns([2, 2, 1])
words = first.text_input("Search prompts and responses", key="text", bind="query-params")
arms = second.multiselect("Arms", in_order(set(rows["arm"].astype(str))), placeholder="all", key="arms",
                          bind="query-params")  # fmt: skip
kinds = sorted(rows["kind"].dropna().astype(str).unique()) if "kind" in rows else []
kind = dashboard.choose(third, "Kind of prompt", ["all", *kinds], "kind")
keep = pd.Series(True, rows.index)
if words:
    keep &= text_hits(str(run.folder), dashboard.stamp(run.folder), words)
if arms:
    keep &= rows["arm"].isin(arms)
if kind != "all":
    keep &= rows["kind"] == kind
prompts = rows.loc[keep, "prompt"].drop_duplicates()
st.caption(f"{int(keep.sum()):,} of {len(rows):,} responses, {dashboard.count(len(prompts), 'prompt')}")
if prompts.empty:
    st.info("Nothing matches; take a filter away.")
    st.stop()
blurred = not dashboard.uncovered()
left, right = st.columns([1, 3])
prompt = dashboard.step_through(left, "Prompt", prompts.astype(str).tolist(), "prompt")
with right.container(border=True):
    dashboard.model_text(str(prompt), blurred=blurred)
here = rows[rows["prompt"] == prompt]
if arms:
    here = here[here["arm"].isin(arms)]
snapshots = "step" in here and here["step"].notna().any()
if snapshots and not st.toggle("Snapshots along RL, too", key="along", bind="query-params"):
    final = here[here["step"].isna()]
    here = here if final.empty else final
order = {arm: i for i, arm in enumerate(in_order(set(here["arm"])))}
here = here.assign(place=here["arm"].map(order)).sort_values(["place", *(c for c in ("step", "sample") if c in here)])
remarks = beside(run, prompt)
records = here.head(SHOWN).to_dict("records")
for start in range(0, len(records), 3):
    for column, row in zip(st.columns(3), records[start : start + 3], strict=False):
        arm, step, sample = key(row)
        with column.container(border=True):
            at = (f", step {step}" if step else "") + (f", sample {sample}" if sample else "")
            st.markdown(f"**{dashboard.plain(arm)}**{at}")
            dashboard.model_text(
                str(row["response"]), blurred=blurred, note="; ".join(remarks.get((arm, step, sample), []))
            )
dashboard.download(here.drop(columns="place"), "responses", "These responses (CSV)")
