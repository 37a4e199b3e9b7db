"""Votes of the arena: one SQLite file, written by several browsers at once (WAL), exported as CSV for the Elo suite."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import text
from harness.errors import UserError
from reports.load import final_rows

WINNERS = ("a", "b", "tie")
CSV = ["prompt", "arm_a", "arm_b", "winner", "step_a", "step_b", "sample", "judge", "order"]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS votes (
    id TEXT PRIMARY KEY, created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    prompt TEXT NOT NULL, kind TEXT, arm_a TEXT NOT NULL, arm_b TEXT NOT NULL,
    winner TEXT NOT NULL CHECK (winner IN ('a', 'b', 'tie')),
    step_a INTEGER, step_b INTEGER, sample INTEGER, judge TEXT NOT NULL,
    "order" TEXT NOT NULL CHECK ("order" IN ('ab', 'ba'))
)"""


@dataclass(frozen=True)
class Pair:
    """A blind comparison. order "ab": response_a is shown first (at the left), "ba": second."""

    prompt: str
    kind: str | None
    sample: int | None
    arm_a: str
    step_a: int | None
    response_a: str
    arm_b: str
    step_b: int | None
    response_b: str
    order: str

    @property
    def shown(self) -> tuple[str, str]:
        """The responses as a voter sees them, left and right."""
        both = (self.response_a, self.response_b)
        return both if self.order == "ab" else (both[1], both[0])

    def winner(self, choice: str) -> str:
        """ "left", "right" or "tie" as a, b or tie."""
        if choice == "tie":
            return "tie"
        return "a" if (choice == "left") == (self.order == "ab") else "b"


class Votes:
    """The votes in the SQLite file `path`, which is made on the first vote. Each call opens its own connection."""

    def __init__(self, path: Path):
        self.path = path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=30)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                with connection:
                    connection.execute(_SCHEMA)
                    yield connection
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path}: votes cannot be read or written ({error}); move the file away") from error

    def add(self, pair: Pair, choice: str, judge: str, id: str | None = None) -> None:
        """Store a vote; the same `id` twice (a double click) counts once. choice: left, right or tie."""
        row = (id or str(uuid.uuid4()), pair.prompt, pair.kind, pair.arm_a, pair.arm_b, pair.winner(choice),
               pair.step_a, pair.step_b, pair.sample, judge, pair.order)  # fmt: skip
        names = 'id, prompt, kind, arm_a, arm_b, winner, step_a, step_b, sample, judge, "order"'
        with self._open() as connection:
            connection.execute(f"INSERT OR IGNORE INTO votes ({names}) VALUES ({','.join('?' * len(row))})", row)

    def table(self) -> pd.DataFrame:
        """All votes, oldest first: `CSV`, kind and created."""
        names = ", ".join(f'"{name}"' for name in [*CSV, "kind", "created"])
        if not self.path.is_file():
            return pd.DataFrame(columns=[*CSV, "kind", "created"])
        with self._open() as connection:
            table = pd.read_sql_query(f"SELECT {names} FROM votes ORDER BY created, id", connection)
        return table.astype({"step_a": "Int64", "step_b": "Int64", "sample": "Int64"})

    def csv(self, kind: str | None = None) -> str:
        """The votes (of one kind of prompt) as `suites.judges.from_votes` reads them."""
        table = self.table()
        return text.csv(table.loc[table["kind"] == kind if kind else slice(None), CSV])


def next_pair(
    responses: pd.DataFrame, seed: int, *, kind: str | None = None, done: pd.DataFrame | None = None
) -> Pair | None:
    """A random pair of final models' answers to one prompt and sample, in random order; None when all are voted on.

    Arms whose answers are the same word for word are passed over: a vote between them says nothing. done: the voter's
    own votes, not asked again.
    """
    table = final_rows(responses)
    if kind is not None and "kind" in table:
        table = table[table["kind"] == kind]
    table = table.assign(sample=table.get("sample", 0))
    seen = set()
    if done is not None:
        for row in done.itertuples():
            seen.add((row.prompt, row.sample, frozenset((row.arm_a, row.arm_b))))
    rng = np.random.default_rng(seed)
    groups = table.groupby(["prompt", "sample"], sort=True).indices
    keys = list(groups)
    for place in rng.permutation(len(keys)):
        rows = table.iloc[groups[keys[place]]].drop_duplicates("arm").sort_values("arm")
        index = [(i, j) for i in range(len(rows)) for j in range(i + 1, len(rows))]
        for k in rng.permutation(len(index)):
            a, b = (rows.iloc[i] for i in index[k])
            asked = (a["prompt"], a["sample"], frozenset((a["arm"], b["arm"])))
            if asked not in seen and a["response"] != b["response"]:
                return _pair(a, b, "ab" if rng.random() < 0.5 else "ba")
    return None


def _pair(a: pd.Series, b: pd.Series, order: str) -> Pair:
    def whole(value: Any) -> int | None:
        return None if pd.isna(value) else int(value)

    kind = a.get("kind")
    return Pair(
        str(a["prompt"]), None if pd.isna(kind) else str(kind), whole(a["sample"]), str(a["arm"]),
        whole(a.get("step")), str(a["response"]), str(b["arm"]), whole(b.get("step")), str(b["response"]), order,
    )  # fmt: skip
