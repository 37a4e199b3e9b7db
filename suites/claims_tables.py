"""A run's tables as the claims read them: rows of an arm, of its final model, along RL; Elo of arms and snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from harness import files
from harness.stats import Bootstrap, finite
from suites.claims_contrasts import NotMeasured, Part, combination

RL_START = {  # the model that an arm's RL starts from
    "helpful_only": "pretrained",
    "hh_rlhf": "pretrained",
    "rl_cai": "sl_cai",
    "rl_cai_cot": "sl_cai",
}


class Tables:
    """Tables of a results folder, read once each. sizes: folders of runs whose base models are of other sizes."""

    def __init__(self, folder: Path, seed: int = 0, sizes: Sequence[Path] = ()):
        self.folder, self.seed, self.sizes = folder, seed, sizes
        self._read: dict[str, pd.DataFrame] = {}

    def read(self, name: str, columns: Sequence[str], remedy: str) -> pd.DataFrame:
        """Table `name`. Raises NotMeasured, with `remedy`, where it or a column is missing."""
        path = self.folder / f"{name}.parquet"
        if name not in self._read:
            if not path.is_file():
                raise NotMeasured(f"{name}.parquet is missing; {remedy}")
            self._read[name] = files.read_parquet(path)
        table = self._read[name]
        if missing := [column for column in columns if column not in table]:
            raise NotMeasured(f"{name}.parquet has no column {', '.join(missing)}; {remedy}")
        return table

    def over_sizes(self, name: str, columns: Sequence[str], remedy: str) -> pd.DataFrame:
        """Table `name` of this run and those of other sizes, whose models (column model) are told apart by run."""
        if not self.sizes:
            return self.read(name, columns, remedy)
        runs = [self, *(Tables(folder, self.seed) for folder in self.sizes)]
        tables = [run.read(name, columns, remedy) for run in runs]
        told = [t.assign(model=t["model"].astype(str) + f" of run {i}") for i, t in enumerate(tables)]
        return pd.concat(told, ignore_index=True)

    def combine(self, *parts: Part, unit: Part | None = None) -> Bootstrap:
        return combination(parts, self.seed, unit=unit)

    def order_of(self, rows: pd.DataFrame) -> pd.Series:
        """Steps of rows (arm, step) as numbers. The final model (NA) is last, or where `rl.result` chose a snapshot, at
        that one's update."""
        try:
            chosen = self.read("rl_results", ["arm", "step", "chosen"], "")
        except NotMeasured:  # the last is every arm's result
            return rows["step"].astype("float64").fillna(np.inf)
        update = chosen[chosen["chosen"]].set_index("arm")["step"].astype("float64")
        return rows["step"].astype("float64").fillna(rows["arm"].map(update)).fillna(np.inf)


def part(weight: float, rows: pd.DataFrame, column: str, cluster: str = "prompt") -> Part:
    return Part(weight, rows[column].astype("float64"), rows[cluster])


def of_arm(table: pd.DataFrame, arm: str, remedy: str) -> pd.DataFrame:
    rows = table[table["arm"] == arm]
    if rows.empty:
        raise NotMeasured(f"no responses of arm {arm}; {remedy}")
    return rows


def final(rows: pd.DataFrame) -> pd.DataFrame:
    """The final model's rows, or else the last snapshot's."""
    step = rows["step"]
    return rows[step.isna()] if step.isna().any() else rows[step == step.max()]


def change(tables: Tables, rows: pd.DataFrame, column: str, weight: float, remedy: str) -> list[Part]:
    """Mean over the last third of the snapshots minus that over the first third (one at least)."""
    place = tables.order_of(rows)
    steps = sorted(place.unique())
    if len(steps) < 2:
        raise NotMeasured(f"{rows['arm'].iloc[0]} has one snapshot, so no change along RL; {remedy}")
    third = max(1, len(steps) // 3)
    early, late = rows[place.isin(steps[:third])], rows[place.isin(steps[-third:])]
    return [part(weight, late, column), part(-weight, early, column)]


# ---------------------------------------------------------------- Elo

Player = tuple[str, float]  # arm and step; that of the final model is infinity, or the update that `rl.result` chose


class Elo:
    """Elo of every arm and snapshot on prompts of one kind ("harmlessness", "helpfulness"), with its resamples."""

    def __init__(self, tables: Tables, kind: str, remedy: str):
        self.kind, self.remedy = kind, remedy
        draws = tables.read(f"elo/{kind}_draws", ["resample", "arm", "step", "elo"], remedy)
        summary = tables.read("elo/summary", ["arm", "step", "metric", "estimate", "n"], remedy)
        own = summary[summary["metric"] == f"elo_{kind}"]
        by_player = draws.assign(step=tables.order_of(draws)).sort_values("resample").groupby(["arm", "step"])["elo"]
        self._draws: dict[Player, np.ndarray] = {player: elo.to_numpy(dtype=float) for player, elo in by_player}  # type: ignore[misc]  # the key is what was grouped by
        order = tables.order_of(own)
        self._final = dict(zip(own["arm"][own["step"].isna()], order[own["step"].isna()], strict=True))
        rows = zip(own["arm"], order, own["estimate"], own["n"], strict=True)
        self._own = {(str(arm), float(step)): (float(estimate), int(n)) for arm, step, estimate, n in rows}

    def steps(self, arm: str) -> list[Player]:
        """The arm's snapshots and final model in the order of RL."""
        found = sorted(step for name, step in self._own if name == arm and (name, step) in self._draws)
        if not found:
            raise NotMeasured(f"no {self.kind} Elo of {arm}; {self.remedy}")
        return [(arm, step) for step in found]

    def final(self, arm: str) -> Player:
        """The arm's final model, or else its last snapshot."""
        last = self.steps(arm)[-1]
        return (arm, float(self._final[arm])) if arm in self._final else last

    def combine(self, *weights: tuple[float, Player]) -> Bootstrap:
        """The weighted sum of players' Elo; n is the fewest prompts behind any."""
        draws = np.sum([weight * self._draws[player] for weight, player in weights], axis=0)
        estimate = sum(weight * self._own[player][0] for weight, player in weights)
        n = min(self._own[player][1] for _, player in weights)
        return Bootstrap(estimate, finite(draws, f"elo/{self.kind}_draws"), n)

    def difference(self, a: str, b: str) -> Bootstrap:
        """Elo of final model a minus that of b."""
        return self.combine((1, self.final(a)), (-1, self.final(b)))

    def late_change(self, arm: str) -> Bootstrap:
        """Mean Elo of the last third of RL minus that of the third before; the start of RL opens the series."""
        start = self.final(RL_START[arm])
        series = [start, *self.steps(arm)]
        if len(series) < 3:
            raise NotMeasured(f"{arm} has one snapshot, so no change late in RL; {self.remedy}")
        third = len(series) // 3
        late, before = series[-third:], series[-2 * third : -third]
        return self.combine(*((1 / third, p) for p in late), *((-1 / third, p) for p in before))
