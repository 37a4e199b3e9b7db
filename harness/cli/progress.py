"""Progress on the terminal: one bar for the run's stages, one for the stage at work, with an ETA."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from harness.cli.console import Terminal
from harness.events import Pace, clock
from harness.text import line


class Bars:
    """A `harness.graph.Progress` drawn by rich; where there is no terminal, a line a stage, and one every minute."""

    def __init__(self, console: Terminal, every: float = 60.0):
        self.console, self.every = console, every
        self.name, self.place, self.pace = "", "", Pace(time.monotonic())
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
        self.work = self.progress.add_task("", total=None, note="")

    def __enter__(self) -> Bars:
        if self.console.is_terminal:
            self.progress.start()
        else:
            threading.Thread(target=self._tell, daemon=True).start()
        return self

    def _tell(self) -> None:
        while not self._closed.wait(self.every):
            if self.name:
                self.console.print(f"{self.place} {self.name}: {self.told()}")

    def told(self) -> str:
        """The share of the stage at work that is done, and when it ends."""
        now = time.monotonic()
        eta = self.pace.eta(now)
        if eta is None:
            return f"for {clock(now - self.pace.began)}"
        return f"{self.pace.done / self.pace.total:.0%}, ETA {clock(max(0.0, eta))}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self.console.is_terminal:
            self.progress.stop()

    def stage(self, name: str, position: int, total: int) -> None:
        self.progress.update(self.stages, completed=position - 1, total=total)
        self.progress.reset(self.work, description=line(name), total=None, note="")
        self.console.print(f"[{position}/{total}] {name}")
        self.name, self.place, self.pace = name, f"[{position}/{total}]", Pace(time.monotonic())

    def advance(self, done: float, total: float, note: str = "") -> None:
        self.progress.update(self.work, completed=done, total=total, note=line(note))
        self.pace.update(done, total, time.monotonic())

    def row(self, values: Mapping[str, Any]) -> None:
        return
