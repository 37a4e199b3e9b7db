"""What differs between runs: keys of their experiments, versions, code, machine, and data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from reports import opening, tables
from reports.load import RunData

NOT_RECORDED = "not recorded"


def table(runs: Mapping[str, RunData]) -> pd.DataFrame:
    """A row for each thing in which `runs` (by the name of their column) differ: kind, what, and a column a run."""
    facts = {name: dict(_facts(run)) for name, run in runs.items()}
    every = list(dict.fromkeys(key for each in facts.values() for key in each))
    rows = []
    for kind, what in every:
        told = {name: each.get((kind, what), NOT_RECORDED) for name, each in facts.items()}
        if len(set(told.values())) > 1:
            rows.append({"kind": kind, "what": what, **told})
    return pd.DataFrame(rows, columns=["kind", "what", *runs])


def shared_stages(one: RunData, other: RunData) -> tuple[int, int]:
    """(stages of the same key, all stages of `one`): what both runs made from the same code, settings and data."""
    keys = [_keys(one), _keys(other)]
    return sum(keys[1].get(stage) == key for stage, key in keys[0].items()), len(keys[0])


def _facts(run: RunData) -> Iterator[tuple[tuple[str, str], str]]:
    about = run.about
    for key, value in _flat(run.experiment):
        if key != "name":
            yield ("experiment", key), value
    for library, version in _flat(about.get("versions")):
        yield ("version", library), version
    yield ("code", "commit of the harness"), _said(about.get("commit"))
    yield ("machine", "device"), opening.machine(run)
    data = about.get("data")
    yield ("data", "where it came from"), "; ".join(map(str, data)) if isinstance(data, list) else _said(data)
    if "data" in (keys := _keys(run)):
        yield ("data", "prompts and pairs drawn"), f"stage data {keys['data'][:8]}"


def _keys(run: RunData) -> dict[str, str]:
    """Keys by stage: of the same key, two stages hold the same."""
    stages = tables.stages(run)
    if not {"stage", "key"} <= set(stages):
        return {}
    whole = stages[["stage", "key"]].dropna().astype(str)
    return dict(zip(whole["stage"], whole["key"], strict=True))


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Values by dotted key, as YAML users know them."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, _said(value)


def _said(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value)
