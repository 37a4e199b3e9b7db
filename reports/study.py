"""A study: runs of one experiment that differ in seed, base model or both, found in a folder and judged together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from harness import files
from reports import reading
from reports.load import RunData, find_runs
from suites import claims
from suites.claims_measures import parameters

Cells = Mapping[str, Mapping[int, Path]]  # run folders by base model, then by seed


@dataclass(frozen=True)
class Study:
    """folder holds the runs of `cells`; waiting are those beside them that have no results yet."""

    name: str
    folder: Path
    cells: dict[str, dict[int, Path]]
    waiting: tuple[Path, ...] = ()

    @property
    def runs(self) -> list[Path]:
        return [run for by_seed in self.cells.values() for run in by_seed.values()]

    def verdicts(self) -> dict[str, pd.DataFrame] | None:
        """What `cai run` wrote of the claims over these runs, by base model; None where it did not, or not of all."""
        path = self.folder / "claims.parquet"
        if not path.is_file() or any(path.stat().st_mtime < _made(run) for run in self.runs):
            return None
        found = files.read_parquet(path)
        if "base" not in found:
            return {base: found for base in self.cells} if len(self.cells) == 1 else None
        by_base = {str(base): part.drop(columns="base") for base, part in found.groupby("base", sort=False)}
        return by_base if set(by_base) == set(self.cells) else None


def _made(run: Path) -> float:
    """When the run's results were made, in seconds; its own claims and report may be written anew."""
    return (run / "experiment.yaml").stat().st_mtime


def find(root: Path) -> list[Study]:
    """The studies in `root`, or one below: two runs or more of one experiment, apart from name, seed and base model."""
    by_folder: dict[Path, list[Path]] = {}
    for run in find_runs(root):
        by_folder.setdefault(run.parent, []).append(run)
    found = []
    for folder, runs in by_folder.items():
        groups: dict[str, dict[tuple[str, int], Path]] = {}
        names: dict[str, str] = {}
        for run in runs:  # the newest first
            settings = RunData(run).experiment
            models, seed = settings.get("models"), settings.get("seed")
            if not isinstance(models, dict) or not isinstance(seed, int) or "base" not in models:
                continue
            rest = {key: value for key, value in settings.items() if key not in ("name", "seed", "seeds", "models")}
            others = {key: value for key, value in models.items() if key not in ("base", "bases")}
            same = json.dumps([rest, others], sort_keys=True, default=str)
            groups.setdefault(same, {}).setdefault((str(models["base"]), seed), run)
            names[same] = str(settings.get("name"))
        waiting = tuple(run for run in runs if not (run / "experiment.yaml").is_file())
        several = {same: cells for same, cells in groups.items() if len(cells) > 1}
        for same, cells in several.items():
            name = folder.name if folder.resolve() != root.resolve() else names[same]
            found.append(Study(name, folder, _ordered(cells), waiting if len(several) == 1 else ()))
    return found


def _ordered(cells: Mapping[tuple[str, int], Path]) -> dict[str, dict[int, Path]]:
    """By base model, the smaller first where their names tell the size, then by seed."""
    sizes = {base: parameters(base) for base, _ in cells}
    bases = sorted(sizes, key=lambda base: (np.inf if np.isnan(sizes[base]) else sizes[base], base))
    return {base: {seed: cells[base, seed] for seed in sorted(s for b, s in cells if b == base)} for base in bases}


def judge(cells: Cells) -> dict[str, pd.DataFrame]:
    """The claims over the seeds of each base model; claim 14 compares the base models, seed by seed."""
    verdicts = {}
    for base, runs in cells.items():
        others = [[cells[other][seed] / "results" for other in cells if other != base and seed in cells[other]]
                  for seed in runs]  # fmt: skip
        results = [run / "results" for run in runs.values()]
        verdicts[base] = claims.judge(results, seed=next(iter(runs)), sizes=others if len(cells) > 1 else ())
    return verdicts


def table(verdicts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All verdicts below one another, with a column base where there are several."""
    if len(verdicts) == 1:
        return next(iter(verdicts.values()))
    return pd.concat([judged.assign(base=base) for base, judged in verdicts.items()], ignore_index=True)


SCOPE = f"A verdict of the method needs {claims.SEEDS} runs or more; seeds and prompts are resampled together."


def by_base(verdicts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a claim: claim, statement, and its verdict by each base model."""
    first = next(iter(verdicts.values()))
    columns = {base: judged.set_index("id")["verdict"].reindex(first["id"]) for base, judged in verdicts.items()}
    told = {base: column.fillna(claims.NOT_MEASURED).to_numpy() for base, column in columns.items()}
    return pd.DataFrame({"claim": first["id"].astype(str), "statement": first["statement"], **told})


def beside(over_all: pd.DataFrame, runs: Mapping[int, Path]) -> pd.DataFrame:
    """A row a claim: its verdict over all runs with scope, effect and n, and each run's own verdict."""
    rows = over_all.to_dict("records")
    weighed = [row["verdict"] in claims.WEIGHED for row in rows]
    shown = pd.DataFrame({
        "claim": [str(row["id"]) for row in rows],
        "statement": [str(row["statement"]) for row in rows],
        "over all runs": [str(row["verdict"]) for row in rows],
        "scope": [row["scope"] if known else "" for row, known in zip(rows, weighed, strict=True)],
        "effect [95 %]": [reading.significant(row["effect"], row["low"], row["high"]) if known
                          else str(row["note"] or "") for row, known in zip(rows, weighed, strict=True)],
        "n": [str(int(row["n"])) if known else "" for row, known in zip(rows, weighed, strict=True)],
    })  # fmt: skip
    for run in runs.values():
        own = RunData(run).table("claims", ["id", "verdict"])
        verdicts = {} if own is None or not {"id", "verdict"} <= set(own) else dict(zip(own["id"], own["verdict"],
                                                                                       strict=True))  # fmt: skip
        shown[run.name] = [str(verdicts.get(row["id"], claims.NOT_MEASURED)) for row in rows]
    return shown
