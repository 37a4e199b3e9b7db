"""Gather a run's tables from its stages into RUN/results, which the report and the dashboard read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from harness import manifest, scoring, store
from harness.experiment import Experiment
from harness.graph import Stage, Work, in_order
from pipelines import harm_labels

DIVERSITY = "written_diversity"  # of prompts that the model wrote
_HERE = Path(__file__).resolve().parent
_SUITES = _HERE.parent / "suites"


def plan(experiment: Experiment, file: Path, arms: Mapping[str, Stage | None], targets: Sequence[Stage]) -> Stage:
    """The stage that writes RUN/report from RUN/results, which gathers the tables of `targets` and what they need."""
    results = Stage(
        "results",
        collect,
        {
            "experiment": experiment.model_dump(mode="json", exclude={"compute"}),
            "harm_splits": harm_labels.splits(arms),
        },
        {stage.name: stage for stage in in_order(targets)},
        files={"claims": _SUITES / "claims.yaml"},
        options={"file": str(file)},
        place="results",
        published=("run.json", "experiment.yaml"),
        kind="table",
    )
    files = {name: _HERE / f"{name}.html" for name in ("template", "page", "macros")} | {"paper": _HERE / "paper.yaml"}
    return Stage("report", report, inputs={"results": results}, files=files, place="report", kind="table")


def report(work: Work) -> None:
    """The report of the run whose results folder is the input."""
    from reports import static

    static.render(work.inputs["results"].parent, work.folder)


def collect(work: Work) -> None:
    """The run's tables, run.json and experiment.yaml; judges the claims."""
    from suites import claims

    results, folders = work.folder, work.inputs
    experiment = work.settings.experiment
    for name, folder in folders.items():
        if (folder / "summary.parquet").is_file():
            shutil.copytree(folder, results / name, ignore=shutil.ignore_patterns(manifest.NAME), dirs_exist_ok=True)
    for stage, table in (*((name, name) for name in ("responses", "chains", "judges")), ("written", DIVERSITY)):
        if stage in folders:
            shutil.copy(folders[stage] / f"{table}.parquet", results / f"{table}.parquet")
    labels = {name: folder for name, folder in folders.items() if name in ("feedback.plain", "feedback.cot")}
    _concat(labels, "feedback.parquet", results / "feedback.parquet")
    _concat(folders, "training.parquet", results / "training.parquet")
    _concat(folders, "learned.parquet", results / "learned.parquet")
    _concat(folders, "rl_result.parquet", results / "rl_results.parquet")
    _pm_tables(folders, results)
    manifests = [manifest.read(folder) or {} for folder in folders.values()]
    keys = [{"stage": found["stage"], "key": found["key"], "status": "done"} for found in manifests]
    store.write_table(results / "stages.parquet", pd.DataFrame(keys))
    store.write_table(results / "claims.parquet", claims.judge(results, seed=experiment["seed"]))
    store.write_text(results / "experiment.yaml", yaml.safe_dump(experiment, sort_keys=False))
    store.write_json(results / "run.json", _about(work, manifests))


def _about(work: Work, manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """run.json: how the run was made. Times and memory are here alone, so that tables are equal after a kill."""
    experiment = work.settings.experiment
    preferences = pd.read_parquet(work.inputs["data"] / "preferences.parquet", columns=["kind", "split"])
    cost = ("stage", "key", "finished", "wall_seconds", "tokens", "peak_memory_bytes", "device")
    devices = [found["device"] for found in manifests if found["device"] is not None]
    return {
        "kind": "run",
        "name": experiment["name"],
        "experiment_file": work.options.file,
        "created": max(found["finished"] for found in manifests),
        "versions": store.versions(),
        "commit": store.commit(),
        "arms": experiment["arms"],
        "suites": experiment["suites"],
        "device": devices[-1] if devices else None,
        "seed": experiment["seed"],
        "models": experiment["models"],
        "data": [
            note
            for name in ("data", "written")
            if name in work.inputs
            for note in json.loads((work.inputs[name] / "notes.json").read_text(encoding="utf-8"))
        ],
        "scale": experiment["scale"],
        "wall_seconds": round(sum(found["wall_seconds"] for found in manifests), 1),
        "tokens": sum(found["tokens"] for found in manifests if found["tokens"] is not None),
        "tokens_not_counted": [found["stage"] for found in manifests if found["tokens"] is None],
        "peak_memory_bytes": max(found["peak_memory_bytes"] for found in manifests),
        "human_harm_labels": harm_labels.count(work.settings.harm_splits, preferences),
        # Where it is not "human", those labels are no people's.
        "annotator": experiment["annotator"] | _called(experiment["annotator"]),
        "stages": [{name: found[name] for name in cost} for found in manifests],
    }


def _called(annotator: Mapping[str, Any]) -> dict[str, str]:
    """The annotators by the names that tables give them."""
    return {kind: scoring.label(annotator[kind]) for kind in ("harmless", "helpful")}


def _concat(folders: Mapping[str, Path], name: str, out: Path) -> None:
    every = [pd.read_parquet(folder / name) for folder in folders.values() if (folder / name).is_file()]
    tables = [table for table in every if len(table)]
    if tables:
        store.write_table(out, pd.concat(tables, ignore_index=True))


def _pm_tables(folders: Mapping[str, Path], results: Path) -> None:
    """pm_quality.parquet (a row a PM and kind of held-out pairs) and pm_pairs.parquet (a row a pair)."""
    quality, pairs = [], []
    for name, folder in folders.items():
        for path in sorted(folder.glob("quality-*.json")):
            kind = path.stem.removeprefix("quality-")
            role = "gold" if name.startswith("gold.") else "proxy"
            quality.append({"pm": name, "role": role, "split": f"heldout {kind}"} | json.loads(path.read_text()))
            pairs.append(pd.read_parquet(folder / f"heldout-{kind}.parquet").assign(pm=name, kind=kind))
    store.write_table(results / "pm_quality.parquet", pd.DataFrame(quality))
    store.write_table(results / "pm_pairs.parquet", pd.concat(pairs, ignore_index=True))
