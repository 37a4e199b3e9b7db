"""Read a run's folder lazily: tables by name, columns as asked, and in words what is missing.

Any file may be absent or half-written: `RunData.need` raises `Missing`, which a page or a report turns into a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import files
from harness.errors import UserError
from harness.experiment import ARMS
from suites import registry
from suites.result import SUMMARY_COLUMNS

_OPTIONS = {  # of `cai eval`, by what a suite needs
    "responses": "RESPONSES", "scored_responses": "RESPONSES", "compare": "--judge column:NAME",
    "score_column": "--judge pm:FOLDER", "ratings": "--ratings FILE", "models": "--model NAME",
    "comparisons": "--hhh FILE",
}  # fmt: skip
Setting = tuple[str, Any]  # a dotted key of the experiment, and the value that it needs
_TEXT = {"arm", "arm_a", "arm_b", "metric", "prompt", "response", "which", "mode"}
_NUMBERS = {"estimate", "low", "high", "n", "elo", "score", "p_a", "p_a_raw", "p_a_forward", "p_a_swapped"}


class Missing(Exception):  # noqa: N818  a state, not a fault
    """What a run does not hold, and how to measure it; no command where it was measured and there is none."""

    def __init__(self, what: str, command: str = ""):
        super().__init__(f"Not measured: {what}. To measure it: {command}" if command else f"Nothing to show: {what}.")
        self.what, self.command = what, command


class RunData:
    """The folder of `cai run` or `cai eval --out`. `problems` collects files that are there but cannot be read."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.problems: list[str] = []
        self._tables: dict[tuple[str, tuple[str, ...] | None], pd.DataFrame | None] = {}

    # ------------------------------------------------------------ files

    @cached_property
    def about(self) -> dict[str, Any]:
        """run.json, or {} where there is none."""
        value = self._json(self.folder / "run.json")
        return value if isinstance(value, dict) else {}

    @cached_property
    def experiment(self) -> dict[str, Any]:
        """experiment.yaml, every key of it, or {} where there is none."""
        value = self._file(self.folder / "experiment.yaml", files.read_yaml)
        return value if isinstance(value, dict) else {}

    @property
    def name(self) -> str:
        return str(self.about.get("name") or self.folder.resolve().name)

    def path(self, table: str) -> Path:
        return self.folder / "results" / f"{table}.parquet"

    def table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame | None:
        """Table `name` ("elo/summary"), or those of `columns` that it has; None where it is missing or unreadable."""
        key = (name, tuple(columns) if columns is not None else None)
        if key not in self._tables:
            self._tables[key] = self._read(name, columns)
        return self._tables[key]

    @property
    def is_eval(self) -> bool:
        """Whether `cai eval` wrote this folder."""
        return self.about.get("kind") == "eval"

    def has(self, table: str) -> bool:
        return self.path(table).is_file()

    def need(
        self, name: str, columns: Sequence[str], *, settings: Sequence[Setting] = (), none: str = ""
    ) -> pd.DataFrame:
        """Columns of table `name`, `Missing` where one is not there or holds the wrong kind of value.

        settings: what the table needs beside its suite. none: what it means that the table is whole and has no rows.
        """
        command = self.command(name, *settings)
        found = self.table(name, columns)
        if found is None:
            there = "cannot be read" if self.has(name) else "is missing"
            raise Missing(f"results/{name}.parquet {there}", command)
        lacking = [c for c in columns if c not in found]
        if lacking:
            raise Missing(f"results/{name}.parquet has no column {', '.join(lacking)}", command)
        if found.empty:
            raise Missing(none) if none else Missing(f"results/{name}.parquet has no rows", command)
        wrong = [c for c in columns if c in _NUMBERS and not pd.api.types.is_numeric_dtype(found[c])]
        wrong += [
            c for c in columns if c in _TEXT and pd.api.types.is_numeric_dtype(found[c]) and found[c].notna().any()
        ]
        if wrong:
            raise Missing(f"results/{name}.parquet holds the wrong kind of value in {', '.join(wrong)}", command)
        return found

    def command(self, table: str, *settings: Setting) -> str:
        """How a user gets `table`: the keys to set in the experiment, its suite's and `settings`, and a command."""
        suite = table.split("/")[0]
        needs = [known.needs for known in registry.SUITES if known.name == suite]
        if needs and self.is_eval:
            options = " ".join(_OPTIONS[need] for need in needs[0] if need in _OPTIONS)
            return f"cai eval {options} --suite {suite} --out {self.folder.name}"
        if suite == "claims":
            return f"cai claims {self.folder.name}"
        file = self.about.get("experiment_file", "experiments/demo.yaml")
        wanted = [setting for setting in (*self._settings_of(suite), *settings) if not self._is_set(*setting)]
        if wanted:
            said = " and ".join(f"{key}: {_yaml(value)}" for key, value in wanted)
            return f"set {said} in {file}, then: cai run {file}"
        return f"cai run {file}"

    def _settings_of(self, table: str) -> list[Setting]:
        """What an experiment must say for a run to make `table`: that of a suite, or one of the run's own."""
        suite = next((known for known in registry.SUITES if known.name == table), None)
        if suite is not None:
            listed = self.experiment.get("suites")
            names = listed if isinstance(listed, list) else []
            data = [("data.hhh", "FILE")] if "comparisons" in suite.needs and not self._value("data.hhh") else []
            return [("suites", [*names, *({suite.name} - set(names))]), *data]
        return self.needs_arm("rl_cai", "rl_cai_cot") if table == "feedback" else []

    def needs_arm(self, *choices: str) -> list[Setting]:
        """The setting that adds the first of `choices` to an experiment which has none of these arms."""
        listed = self._value("arms")
        arms = [str(arm) for arm in listed] if isinstance(listed, list) else []
        return [] if set(choices) & set(arms) else [("arms", [*arms, choices[0]])]

    def _is_set(self, key: str, value: Any) -> bool:
        """Whether the experiment says so already; of a number, at least so much. True where there is no experiment."""
        if not self.experiment:
            return True
        found = self._value(key)
        number = isinstance(value, int) and isinstance(found, int)
        return found >= value if number else found == value

    def _value(self, key: str) -> Any:
        found: Any = self.experiment
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    # ------------------------------------------------------------ views

    @cached_property
    def summary(self) -> pd.DataFrame:
        """All suites' summaries, one below the other: `SUMMARY_COLUMNS`."""
        parts = []
        for suite in self.suites:
            part = self.table(f"{suite}/summary", SUMMARY_COLUMNS)
            if part is not None and set(SUMMARY_COLUMNS) <= set(part):
                numbers = part[["estimate", "low", "high", "n"]].apply(pd.to_numeric, errors="coerce")
                steps = pd.to_numeric(part["step"], errors="coerce").astype("Int64")
                parts.append(part.assign(**numbers, step=steps, arm=part["arm"].astype(str)))
        if not parts:
            return pd.DataFrame(columns=SUMMARY_COLUMNS).astype({"step": "Int64"})
        return pd.concat(parts, ignore_index=True)

    def metric(self, name: str, suite: str, *, final: bool | None = None) -> pd.DataFrame:
        """Rows of one metric, of final models (True), of snapshots (False) or of both (None). Raises `Missing`."""
        rows = self.summary[self.summary["metric"] == name]
        if rows.empty:
            what = f"no metric {name} in results/{suite}/summary.parquet"
            if self.has(f"{suite}/summary"):
                columns = self.table(f"{suite}/summary", SUMMARY_COLUMNS)
                if columns is None or not set(SUMMARY_COLUMNS) <= set(columns):
                    raise Missing(
                        f"results/{suite}/summary.parquet is damaged, or is no summary of a suite",
                        self.command(suite),
                    )
            if self.has(f"{suite}/summary") and not self.is_eval:  # the suite ran, and its notes say why there is none
                why = [note for note in self.notes(suite) if name in note or "not measured" in note]
                raise Missing("; ".join([what, *why]))
            raise Missing(what, self.command(suite))
        if final is True:
            rows = final_rows(rows)
        elif final is False:
            rows = rows[rows["step"].notna()]
            if rows.empty:
                raise no_snapshots(self, name, suite)
        return rows

    @cached_property
    def results(self) -> pd.DataFrame:
        """Of each arm the snapshot that `rl.result` chose: arm, step, last, value, n; no rows where the last counts."""
        columns = ["arm", "step", "last", "value", "n"]
        found = self.table("rl_results", [*columns, "chosen"])
        if found is None or {*columns, "chosen"} - set(found):
            return pd.DataFrame(columns=columns)
        numbers = found[columns[1:]].apply(pd.to_numeric, errors="coerce")
        whole = found.assign(**numbers, arm=found["arm"].astype(str))[found["chosen"] == True]  # noqa: E712  a column
        return whole[columns].dropna().astype({"step": int, "last": int, "n": int}).drop_duplicates("arm")

    @cached_property
    def arms(self) -> list[str]:
        """Arms by the paper's order, the user's own after them."""
        listed = self.about.get("arms")
        named = [str(arm) for arm in listed] if isinstance(listed, list) else []
        measured = self.summary.loc[self.summary["suite"] != "hhh", "arm"].unique().tolist()
        if not named and not measured and self.has("responses"):
            column = self.table("responses", ["arm"])
            measured = [] if column is None or "arm" not in column else column["arm"].astype(str).unique().tolist()
        return in_order({*named, *measured})

    @property
    def suites(self) -> list[str]:
        """The packaged suites, and after them the user's own that this folder lists."""
        listed = self.about.get("suites")
        own = [Path(str(name)).stem for name in listed] if isinstance(listed, list) else []
        return list(dict.fromkeys([*registry.names(), *own]))

    def notes(self, suite: str) -> list[str]:
        """The suite's remarks that a reader must see."""
        value = self._json(self.folder / "results" / suite / "notes.json")
        notes = value.get("notes", []) if isinstance(value, dict) else []
        return [str(note) for note in notes] if isinstance(notes, list) else []

    def missing(self) -> list[Missing]:
        """What a whole run holds and this folder does not."""
        found = []
        if not (self.folder / "run.json").is_file():
            found.append(Missing("run.json, which says how this run was made, is missing", self.command("run")))
        if not self.has("responses"):
            found.append(Missing("results/responses.parquet, the responses, is missing", self.command("responses")))
        for suite in registry.names():
            if not self.has(f"{suite}/summary"):
                found.append(Missing(f"suite {suite} has no results", self.command(suite)))
        if not self.has("claims"):
            found.append(Missing("the claims have no verdicts", self.command("claims")))
        return found

    # ------------------------------------------------------------ reading

    def _read(self, name: str, columns: Sequence[str] | None) -> pd.DataFrame | None:
        found = self._file(self.path(name), lambda path: files.read_parquet(path, columns))
        return found if isinstance(found, pd.DataFrame) else None

    def _json(self, path: Path) -> Any:
        return self._file(path, files.read_json)

    def _file(self, path: Path, read: Callable[[Path], Any]) -> Any:
        """What `read` makes of a file; None where it is missing or, which is a problem, cannot be read."""
        if not path.is_file():
            return None
        try:
            return read(path)
        except UserError as error:
            reason = str(error).removeprefix(f"{path}: ").rpartition(";")[0]
            said = f"{path.relative_to(self.folder)} cannot be read ({reason}); run the same command again"
            if said not in self.problems:
                self.problems.append(said)
            return None


def _yaml(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def no_snapshots(run: RunData, metric: str, suite: str) -> Missing:
    extra = "; give responses with a column step" if run.is_eval else ""
    return Missing(f"no snapshots along RL in {metric}{extra}", run.command(suite, ("rl.snapshots", 2)))


def find_runs(folder: Path) -> list[Path]:
    """Run folders in `folder` and, of a study, one below, newest first; `folder` itself where it is one."""
    if not folder.is_dir():
        return []
    if is_run(folder):
        return [folder]
    there = list(folder.glob("*/"))  # a glob passes over folders that may not be read
    below = [path for each in there if not is_run(each) for path in each.glob("*/")]
    found = [path for path in (*there, *below) if is_run(path)]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def is_run(folder: Path) -> bool:
    """A finished run, an evaluation, or a run under way."""
    return any((folder / name).exists() for name in ("run.json", "results", "stages", "experiment.yaml"))


def in_order(arms: set[str] | Sequence[str]) -> list[str]:
    """The paper's arms in its order, then others by name."""
    return sorted(set(arms), key=lambda arm: (ARMS.index(arm) if arm in ARMS else len(ARMS), arm))


def final_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each arm's final model (step NA), or else of its last snapshot."""
    if "step" not in table or table.empty:
        return table
    step = pd.to_numeric(table["step"], errors="coerce").astype("Float64").fillna(np.inf)
    return table[step == step.groupby(table["arm"]).transform("max")]
