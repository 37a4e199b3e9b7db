"""What every suite returns: a summary with uncertainty, detail tables and notes, saved as Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import UserError

SUMMARY_COLUMNS = ["suite", "arm", "step", "metric", "estimate", "low", "high", "n"]


@dataclass
class SuiteResult:
    """A suite's outcome.

    summary: one row per arm, snapshot step and metric: `SUMMARY_COLUMNS`; low and high bound the
    95 % interval, n counts the independent units (prompts) behind it; step is NA for a final model.
    tables: detail tables by name. notes: one-line remarks a reader must see (caveats, not measured).
    """

    suite: str
    summary: pd.DataFrame
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write `summary.parquet`, one Parquet file a table and `notes.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.summary.to_parquet(folder / "summary.parquet", index=False)
        for name, table in self.tables.items():
            table.to_parquet(folder / f"{name}.parquet", index=False)
        (folder / "notes.json").write_text(json.dumps({"suite": self.suite, "notes": self.notes}, indent=2))

    @classmethod
    def load(cls, folder: Path) -> SuiteResult:
        """Read what `save` wrote. Raises UserError when the folder holds no suite result."""
        if not (folder / "summary.parquet").is_file():
            raise UserError(f"{folder}: no suite result here (summary.parquet is missing); run `cai eval` or `cai run`")
        meta = json.loads((folder / "notes.json").read_text())
        tables = {p.stem: pd.read_parquet(p) for p in sorted(folder.glob("*.parquet")) if p.stem != "summary"}
        return cls(meta["suite"], pd.read_parquet(folder / "summary.parquet"), tables, meta["notes"])


def summary_frame(suite: str, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of {arm, metric, estimate, low, high, n, step?} as a summary table with fixed columns and types."""
    frame = pd.DataFrame([{"suite": suite, "step": None, **row} for row in rows], columns=SUMMARY_COLUMNS)
    frame["step"] = frame["step"].astype("Int64")
    frame["n"] = frame["n"].astype("int64")
    return frame.astype({"estimate": "float64", "low": "float64", "high": "float64"})
