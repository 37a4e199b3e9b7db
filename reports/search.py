"""Search over the responses of several runs: text, run, arm, snapshot, and what a suite said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from reports.load import Missing, RunData

COLUMNS = ["prompt", "response", "arm", "step", "sample", "kind"]
SAID = {"evasiveness": "label", "goodharting": "label", "pm_score": "score", "harmfulness": "score"}
FINAL = "final model"
TEXT = pd.ArrowDtype(pa.string())  # searched by Arrow, a column at once


@dataclass(frozen=True)
class Query:
    """What to look for; empty means all. step: `FINAL` or an update of RL, in words. label: what the suite said."""

    text: str = ""
    runs: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    suite: str = ""
    label: str = ""


def load(folders: Mapping[str, Path]) -> tuple[pd.DataFrame, list[str]]:
    """(every response of these runs: `COLUMNS`, run, snapshot; the runs that hold none, and why)."""
    found, without = [], []
    for name, folder in folders.items():
        run = RunData(folder)
        try:
            rows = run.need("responses", COLUMNS[:3])
        except Missing as missing:
            without.append(f"{name}: {missing.what}")
            continue
        extra = run.table("responses", COLUMNS[3:])
        rows = rows if extra is None else rows.join(extra)
        found.append(rows.assign(run=name).reindex(columns=["run", *COLUMNS]))
    if not found:
        return pd.DataFrame(columns=["run", *COLUMNS, "snapshot"]), without
    table = pd.concat(found, ignore_index=True)
    step = pd.to_numeric(table["step"], errors="coerce").astype("Int64")
    text = {name: table[name].astype(str).astype(TEXT) for name in ("prompt", "response")}
    shown = step.astype("string").radd("step ").fillna(FINAL)
    sample = pd.to_numeric(table["sample"], errors="coerce").fillna(0).astype(int)
    groups = {name: values.astype("category") for name, values in
              (("run", table["run"]), ("arm", table["arm"].astype(str)), ("snapshot", shown))}  # fmt: skip
    return table.assign(**text, **groups, step=step, sample=sample), without


def match(table: pd.DataFrame, query: Query) -> pd.Series:
    """Which rows of `load` a query finds, but for its suite; case of the text aside."""
    keep = pd.Series(True, table.index)
    for column, wanted in (("run", query.runs), ("arm", query.arms), ("snapshot", query.steps)):
        if wanted:
            keep &= table[column].isin(wanted)
    if query.text:
        held = [table[name].str.contains(query.text, case=False, regex=False) for name in ("response", "prompt")]
        keep &= (held[0] | held[1]).astype(bool)
    return keep


def said(folders: Mapping[str, Path], suite: str) -> pd.DataFrame:
    """What a suite said of each response: run, prompt, arm, step, sample, said (a label as it is, or a score)."""
    found = []
    keys = ["prompt", "arm", "step", "sample"]
    for name, folder in folders.items():
        rows = RunData(folder).table(f"{suite}/responses", [*keys, SAID[suite]])
        if rows is not None and {"prompt", "arm", SAID[suite]} <= set(rows):
            rows = rows.rename(columns={SAID[suite]: "said"}).assign(run=name)
            found.append(rows.reindex(columns=["run", *keys, "said"]))
    if not found:
        return pd.DataFrame(columns=["run", *keys, "said"])
    table = pd.concat(found, ignore_index=True)
    return table.assign(
        step=pd.to_numeric(table["step"], errors="coerce").astype("Int64"),
        sample=pd.to_numeric(table["sample"], errors="coerce").fillna(0).astype(int),
        prompt=table["prompt"].astype(str),
        arm=table["arm"].astype(str),
    ).dropna(subset=["said"])


def judged(rows: pd.DataFrame, by_suite: pd.DataFrame, label: str) -> pd.DataFrame:
    """`rows` that the suite judged, with a column said; those of one label where it is given."""
    keys = ["run", "prompt", "arm", "step", "sample"]
    known = by_suite[by_suite["said"] == label] if label else by_suite
    own = rows.astype({"run": str, "arm": str, "prompt": str})
    return own.merge(known.drop_duplicates(keys), on=keys, how="inner")


def around(text: str, words: str, most: int = 300) -> str:
    """The part of `text` in which `words` stand, with an ellipsis where it is cut."""
    at = max(0, text.lower().find(words.lower()) - most // 3) if words else 0
    at = 0 if len(text) <= most else min(at, len(text) - most)
    return ("…" if at else "") + text[at : at + most] + ("…" if at + most < len(text) else "")


def labels(by_suite: pd.DataFrame) -> Sequence[str]:
    """The labels that a suite gives; none where it gives scores."""
    values = by_suite["said"]
    return [] if pd.api.types.is_numeric_dtype(values) else sorted(values.astype(str).unique())
