"""The local runner: stages one after the other, in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.graph import Stage, Watcher
from harness.runner import schedule
from harness.runner.schedule import News, Run
from harness.runner.work import Made, Task, carry_out


def execute(targets: Sequence[Stage], run: Path, *, seed: int, progress: Watcher | None = None) -> dict[str, Path]:
    """As `schedule.execute`, of one run in this process, on one GPU."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # seeing several, transformers would multiply the batch
    return schedule.execute([Run(targets, run, seed)], Local(), progress)[0]


class Local:
    """A `schedule.Runner`; of the stages that can begin, the first of the plan comes first."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def submit(self, task: Task) -> None:
        self.tasks.append(task)

    def wait(self, hear: Callable[[News], None]) -> tuple[Task, Made | Exception]:
        task = min(self.tasks, key=lambda task: task.place)
        self.tasks.remove(task)
        hear(News(task, "began"))
        try:
            return task, carry_out(task, _Heard(task, hear))
        except Exception as error:
            return task, error


class _Heard:
    """A Progress that turns into news."""

    def __init__(self, task: Task, hear: Callable[[News], None]):
        self.task, self.hear = task, hear

    def advance(self, done: float, total: float, note: str = "") -> None:
        self.hear(News(self.task, "advance", (done, total, note)))

    def row(self, values: Mapping[str, Any]) -> None:
        self.hear(News(self.task, "row", (values,)))
