"""Progress on the terminal: one bar for the run's stages, one for each at work, with an ETA."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from harness.cli.console import Terminal
from harness.events import Pace, clock
from harness.text import line


class Bars:
    """A `harness.graph.Watcher` drawn by rich; where there is no terminal, a line a stage, and one every minute."""

    def __init__(self, console: Terminal, every: float = 60.0):
        self.console, self.every = console, every
        self.at_work: dict[str, Bar] = {}
        self._closed = threading.Event()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
        )
        self.stages = self.progress.add_task("stages", total=None, note="")

    def __enter__(self) -> Bars:
        if self.console.is_terminal:
            self.progress.start()
        else:
            threading.Thread(target=self._tell, daemon=True).start()
        return self

    def _tell(self) -> None:
        while not self._closed.wait(self.every):
            for bar in list(self.at_work.values()):
                self.console.print(f"{bar.place} {bar.name}: {bar.told()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self.console.is_terminal:
            self.progress.stop()

    def stage(self, name: str, position: int, total: int) -> Bar:
        self.ended(name)  # one that begins again
        bar = Bar(self.progress, name, f"[{position}/{total}]")
        self.at_work[name] = bar
        self.progress.update(self.stages, completed=position - len(self.at_work), total=total)
        self.console.print(f"{bar.place} {name}")
        return bar

    def ended(self, name: str) -> None:
        bar = self.at_work.pop(name, None)
        if bar is not None:
            self.progress.remove_task(bar.task)
            self.progress.advance(self.stages)

    def say(self, line: str) -> None:
        self.console.print(line)


class Bar:
    """A `harness.graph.Progress`: the bar of one stage."""

    def __init__(self, progress: Progress, name: str, place: str):
        self.progress, self.name, self.place = progress, name, place
        self.task: TaskID = progress.add_task(line(name), total=None, note="")
        self.pace = Pace(time.monotonic())

    def told(self) -> str:
        """The share of the stage that is done, and when it ends."""
        now = time.monotonic()
        eta = self.pace.eta(now)
        if eta is None:
            return f"for {clock(now - self.pace.began)}"
        return f"{self.pace.done / self.pace.total:.0%}, ETA {clock(max(0.0, eta))}"

    def advance(self, done: float, total: float, note: str = "") -> None:
        self.progress.update(self.task, completed=done, total=total, note=line(note))
        self.pace.update(done, total, time.monotonic())

    def row(self, values: Mapping[str, Any]) -> None:
        return
