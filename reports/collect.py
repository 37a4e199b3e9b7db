"""Gather a run's tables from its stages into RUN/results, which the report and the dashboard read."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from harness import store
from harness.experiment import Experiment
from harness.graph import Planned
from pipelines.harm_labels import human_harm_labels
from suites import claims


def collect(experiment: Experiment, file: Path, planned: Sequence[Planned], run: Path) -> None:
    """Write RUN/run.json, RUN/experiment.yaml and RUN/results from the finished stages; judge the claims."""
    results = run / "results"
    fresh = run / "results.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    folders = {item.stage.name: item.folder for item in planned}
    stages_by_name = {item.stage.name: item.stage for item in planned}
    for name, folder in folders.items():
        if (folder / "summary.parquet").is_file():
            shutil.copytree(folder, fresh / name, ignore=shutil.ignore_patterns("manifest.json"))
    for table in ("responses", "chains"):
        if table in folders:
            shutil.copy(folders[table] / f"{table}.parquet", fresh / f"{table}.parquet")
    labels = {name: folder for name, folder in folders.items() if name in ("feedback.plain", "feedback.cot")}
    _concat(labels, "feedback.parquet", fresh / "feedback.parquet")
    _concat(folders, "training.parquet", fresh / "training.parquet")
    _pm_tables(folders, fresh)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders.values()]
    columns = ["stage", "key", "finished", "wall_seconds", "tokens", "peak_memory_bytes", "device"]
    stages = pd.DataFrame(manifests)[columns].assign(status="done").astype({"tokens": "Int64"})  # unknown is not 0
    store.write_table(fresh / "stages.parquet", stages)
    store.write_table(fresh / "claims.parquet", claims.judge(fresh, seed=experiment.seed))
    notes = json.loads((folders["data"] / "notes.json").read_text())
    store.write_text(run / "experiment.yaml", yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False))
    about = {
        "kind": "run",
        "name": experiment.name,
        "experiment_file": str(file),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": store.versions(),
        "commit": store.commit(),
        "arms": list(experiment.arms),
        "suites": list(experiment.suites),
        "device": manifests[-1]["device"],
        "seed": experiment.seed,
        "models": experiment.models.model_dump(),
        "data": notes,
        "scale": experiment.scale.model_dump(),
        "wall_seconds": round(sum(m["wall_seconds"] for m in manifests), 1),
        "tokens": sum(m["tokens"] for m in manifests if m["tokens"] is not None),
        "tokens_not_counted": [m["stage"] for m in manifests if m["tokens"] is None],
        "peak_memory_bytes": max(m["peak_memory_bytes"] for m in manifests),
        "human_harm_labels": human_harm_labels(
            {arm: stages_by_name[f"sample.{arm}"].inputs.get("policy") for arm in experiment.arms},
            pd.read_parquet(folders["data"] / "preferences.parquet", columns=["kind", "split"]),
        ),
    }
    shutil.rmtree(results, ignore_errors=True)
    fresh.replace(results)
    store.write_json(run / "run.json", about)


def _concat(folders: dict[str, Path], name: str, out: Path) -> None:
    tables = [pd.read_parquet(folder / name) for folder in folders.values() if (folder / name).is_file()]
    if tables:
        store.write_table(out, pd.concat(tables, ignore_index=True))


def _pm_tables(folders: dict[str, Path], results: Path) -> None:
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
