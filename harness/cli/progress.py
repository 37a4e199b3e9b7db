"""Progress on the terminal: one bar for the run's stages, one for the stage at work, with an ETA."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from harness.cli.console import Terminal
from harness.text import line


class Bars:
    """A `harness.graph.Progress` drawn by rich; where there is no terminal, one line a stage."""

    def __init__(self, console: Terminal):
        self.console = console
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
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.progress.stop()

    def stage(self, name: str, position: int, total: int) -> None:
        self.progress.update(self.stages, completed=position - 1, total=total)
        self.progress.reset(self.work, description=line(name), total=None, note="")
        self.console.print(f"[{position}/{total}] {name}")

    def advance(self, done: float, total: float, note: str = "") -> None:
        self.progress.update(self.work, completed=done, total=total, note=line(note))
