"""Which stage comes when: each as soon as all that it reads is done. Where it runs is the runner's business."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from harness import events, manifest, store
from harness.graph import Planned, Progress, Silent, Stage, Watcher, examine, in_order
from harness.models.identity import identity
from harness.runner.work import Made, Task


@dataclass(frozen=True)
class News:
    """What a runner hears of a stage: "began", "advance" or "row" (as `Progress`), or "say" (a line)."""

    task: Task
    what: str
    values: Sequence[Any] = ()


class Runner(Protocol):
    """Carries stages out, as many at once as it can."""

    def submit(self, task: Task) -> None:
        """Take on a stage, all of whose inputs are done."""

    def wait(self, hear: Callable[[News], None]) -> tuple[Task, Made | Exception]:
        """The next stage that has ended, well or with an error; `hear` is told what happens until then."""


def execute(
    targets: Sequence[Stage], run: Path, runner: Runner, *, seed: int, progress: Watcher | None = None
) -> dict[str, Path]:
    """Carry out what is not done; the folder of each stage by name. Raises UserError when the folder is in use.

    A stage is examined when all that it reads is done: one whose damaged input was made again with the same bytes is
    still done. After an error no stage begins; those at work end first, as in make.
    """
    with store.locked(run), events.Log(run) as log:
        going = _Going(in_order(targets), run, seed, progress or Silent(), log)
        failure: Exception | None = None
        try:
            while True:
                if failure is None:
                    for task in going.ready():
                        runner.submit(task)
                if not going.submitted:
                    break
                task, ended = runner.wait(going.hear)
                failure = failure or (ended if isinstance(ended, Exception) else None)
                going.settle(task, ended)
        except BaseException as error:
            going.stop(error)
            raise
        if failure is not None:
            raise failure
        log.write("end")
        return {name: item.folder for name, item in going.done.items()}


class _Going:
    """A run as it goes: what is done, what a runner was given, and what is at work."""

    def __init__(self, stages: Sequence[Stage], run: Path, seed: int, watcher: Watcher, log: events.Log):
        self.stages, self.run, self.seed, self.watcher, self.log = stages, run, seed, watcher, log
        self.waiting = {stage.name: place for place, stage in enumerate(stages)}
        self.record = manifest.Record.of(run)
        self.done: dict[str, Planned] = {}
        self.submitted: dict[str, Planned] = {}
        self.at_work: dict[str, tuple[Progress, Progress]] = {}
        log.begin({stage.name: [source.name for source in stage.inputs.values()] for stage in stages})

    def ready(self) -> list[Task]:
        """The stages that can begin now."""
        found = []
        for name, place in list(self.waiting.items()):
            stage = self.stages[place]
            if not all(source.name in self.done for source in stage.inputs.values()):
                continue
            del self.waiting[name]
            item = examine(stage, self.done, self.run, self.record)
            if item.status == "done":
                self.log.write("done", stage=stage.name)
                self._keep(item)
                continue
            self.submitted[stage.name] = item
            inputs = {role: self.done[source.name] for role, source in stage.inputs.items()}
            found.append(
                Task(
                    place,
                    item,
                    self.run,
                    {role: source.folder for role, source in inputs.items()},
                    {role: source.digest for role, source in inputs.items()},
                    {role: identity(name) for role, name in stage.models.items()},
                    self.seed,
                )
            )
        return found

    def hear(self, news: News) -> None:
        """Tell whoever watches, and the run's events."""
        name = news.task.name
        if news.what == "say":
            self.watcher.say(*news.values)
            self.log.say(*news.values)
        elif news.what == "began":
            position = len(self.done) + len(self.at_work.keys() - {name}) + 1
            told = (name, position, len(self.stages))
            self.at_work[name] = self.watcher.stage(*told), self.log.stage(*told)
        else:
            for progress in self.at_work[name]:
                getattr(progress, news.what)(*news.values)

    def settle(self, task: Task, ended: Made | Exception) -> None:
        """Note how a stage has ended."""
        item = self.submitted.pop(task.name)
        self.at_work.pop(task.name, None)
        self.watcher.ended(task.name)
        if isinstance(ended, Exception):
            self.log.failed(task.name, ended)
            return
        self.log.write("finished", stage=task.name, **ended.cost)
        self.record.add(ended.verified)
        self._keep(replace(item, status="done", problem="", digest=manifest.digest(ended.artefacts)))

    def stop(self, error: BaseException) -> None:
        """Note that the stages at work were stopped."""
        for name in self.at_work:
            self.log.failed(name, error)

    def _keep(self, item: Planned) -> None:
        for name in item.stage.published:
            _publish(item.folder / name, self.run / name)
        self.done[item.stage.name] = item
        self.record.save()


def _publish(source: Path, target: Path) -> None:
    """Copy an artefact to the top of the run's folder, unless the same is there."""
    if not target.is_file() or target.read_bytes() != source.read_bytes():
        store.write_text(target, source.read_text(encoding="utf-8"))
