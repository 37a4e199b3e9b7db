"""The rows that a stage has made so far, kept batch by batch, so that after a kill it goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from harness.graph import Work

Rows = list[dict[str, Any]]


class Done:
    """The rows that a stage has made so far, kept in `done.jsonl` from which it resumes.

    A batch is one line of the file, so a kill loses batches and never a part of one. The rows that are left then fall
    into the same batches as without the kill, whose composition moves a model's last digits.
    """

    def __init__(self, work: Work, total: int, note: str):
        self.work, self.total, self.note = work, total, note
        self.path = work.folder / "done.jsonl"
        self.rows: Rows = [row for batch in _whole_lines(self.path) for row in batch]
        if self.rows:
            work.count(None)  # the tokens of the earlier try were not kept

    def keep(self, batch: Rows) -> None:
        """Store a batch of finished rows."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(batch) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.extend(batch)
        self.work.progress.advance(len(self.rows), self.total, self.note)

    def remove(self) -> None:
        """Forget the file, once the rows are in an artefact."""
        self.path.unlink(missing_ok=True)


def _whole_lines(path: Path) -> list[Rows]:
    """The batches in `path`; a last line that a kill cut short is removed from it."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with path.open("r+b") as file:
            file.truncate(end)
    return [json.loads(line) for line in content[:end].split(b"\n") if line]
