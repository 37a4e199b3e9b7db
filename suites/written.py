"""How diverse are prompts that the model wrote, beside those of people that it learned from? (`suites.diversity`)"""

from __future__ import annotations

import json

import pandas as pd

from harness import stats, store
from harness.experiment import Experiment
from harness.graph import Stage, Work
from suites import diversity

COLUMNS = ["kind", "writer", "metric", "estimate", "low", "high", "n"]
SETTINGS = ("seed",)


def stage(experiment: Experiment, written: Stage, data: Stage) -> Stage:
    """The stage that measures the prompts which `written` made."""
    return Stage("written", measure, experiment.settings(*SETTINGS), {"written": written, "data": data})


def compare(people: pd.DataFrame, model: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """(a row of `COLUMNS` for each kind, writer and metric, notes). Both tables: kind, prompt; read at equal size."""
    rows, notes = [], []
    for kind in model["kind"].unique():
        groups = {
            writer: table.loc[table["kind"] == kind, ["prompt"]].assign(response=lambda t: t["prompt"], sample=0)
            for writer, table in (("people", people), ("model", model))
        }
        measured, said = diversity.measure(groups, seed)
        notes += [f"{kind} prompts: {note}" for note in said if "not measured" in note]
        for (writer, metric), values in measured.items():
            found = stats.bootstrap_mean(values.values, values.prompts, seed=seed)
            rows.append([kind, writer, metric, found.estimate, found.low, found.high, found.n])
    return pd.DataFrame(rows, columns=COLUMNS), notes


def sentences(table: pd.DataFrame, told: dict[str, dict[str, int]], used: pd.DataFrame) -> list[str]:
    """What a reader is told: how many prompts of a kind the model wrote, what was dropped, and how alike they are."""
    said = []
    for kind, fates in told.items():
        of_kind = used[used["kind"] == kind]
        uses = " and ".join(
            f"{n} for {'RL' if use == 'rl' else use}" for use, n in of_kind["use"].value_counts(sort=False).items()
        )
        dropped = ", ".join(f"{n} {fate}" for fate, n in fates.items() if n and fate != "kept") or "none"
        line = f"{kind} prompts written by the model: {len(of_kind)} ({uses}), of {sum(fates.values())} attempts; "
        line += f"dropped: {dropped}"
        found = table[(table["kind"] == kind) & (table["metric"] != "length")].set_index(["metric", "writer"])[
            "estimate"
        ]
        alike = [
            f"{metric} {found[metric, 'model']:.2f} ({found[metric, 'people']:.2f} of people's)"
            for metric in diversity.METRICS
            if (metric, "model") in found and (metric, "people") in found
        ]
        said.append(line + (f"; {', '.join(alike)}" if alike else "; diversity not measured"))
    return said


def measure(work: Work) -> None:
    """written_diversity.parquet and notes.json, of the prompts `written` beside the training prompts of `data`."""
    prompts = pd.read_parquet(work.inputs["data"] / "prompts.parquet")
    model = pd.read_parquet(work.inputs["written"] / "written.parquet")
    told = json.loads((work.inputs["written"] / "written.json").read_text(encoding="utf-8"))
    table, notes = compare(prompts[prompts["split"] == "train"], model, work.settings.seed)
    store.write_table(work.folder / "written_diversity.parquet", table)
    store.write_json(work.folder / "notes.json", [*sentences(table, told, model), *notes])
