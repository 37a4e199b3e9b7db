"""Which stage comes when: each as soon as all that it reads is done. Where it runs is the runner's business."""

from __future__ import annotations

import contextlib
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


@dataclass(frozen=True)
class Run:
    """What is to be made: `targets` and all that they need, in a folder. label: its name among several runs."""

    targets: Sequence[Stage]
    folder: Path
    seed: int
    label: str = ""


def execute(runs: Sequence[Run], runner: Runner, progress: Watcher | None = None) -> list[dict[str, Path]]:
    """Carry out what is not done; of each run the folders by stage. Raises UserError when a run's folder is in use.

    A stage is examined when all that it reads is done: one whose damaged input was made again with the same bytes is
    still done. After an error no stage begins; those at work end first, as in make.
    """
    with contextlib.ExitStack() as opened:
        going: dict[Path, _Going] = {}
        for run in runs:
            opened.enter_context(store.locked(run.folder))
            log = opened.enter_context(events.Log(run.folder))
            going[run.folder] = _Going(run, progress or Silent(), log)

        def hear(news: News) -> None:
            begun = sum(len(one.done) + len(one.at_work) for one in going.values())
            going[news.task.run].hear(news, begun, sum(len(one.stages) for one in going.values()))

        failure: Exception | None = None
        try:
            while True:
                if failure is None:
                    for task in [task for one in going.values() for task in one.ready()]:
                        runner.submit(task)
                if not any(one.submitted for one in going.values()):
                    break
                task, ended = runner.wait(hear)
                failure = failure or (ended if isinstance(ended, Exception) else None)
                going[task.run].settle(task, ended)
        except BaseException as error:
            for one in going.values():
                one.stop(error)
            raise
        if failure is not None:
            raise failure
        for one in going.values():
            one.log.write("end")
        return [{name: item.folder for name, item in one.done.items()} for one in going.values()]


class _Going:
    """A run as it goes: what is done, what a runner was given, and what is at work."""

    def __init__(self, run: Run, watcher: Watcher, log: events.Log):
        self.run, self.stages, self.watcher, self.log = run, in_order(run.targets), watcher, log
        self.waiting = {stage.name: place for place, stage in enumerate(self.stages)}
        self.record = manifest.Record.of(run.folder)
        self.done: dict[str, Planned] = {}
        self.submitted: dict[str, Planned] = {}
        self.at_work: dict[str, tuple[Progress, Progress]] = {}
        log.begin({stage.name: [source.name for source in stage.inputs.values()] for stage in self.stages})

    def ready(self) -> list[Task]:
        """The stages that can begin now."""
        found = []
        for name, place in list(self.waiting.items()):
            stage = self.stages[place]
            if not all(source.name in self.done for source in stage.inputs.values()):
                continue
            del self.waiting[name]
            item = examine(stage, self.done, self.run.folder, self.record)
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
                    self.run.folder,
                    {role: source.folder for role, source in inputs.items()},
                    {role: source.digest for role, source in inputs.items()},
                    {role: identity(name) for role, name in stage.models.items()},
                    self.run.seed,
                )
            )
        return found

    def hear(self, news: News, begun: int, total: int) -> None:
        """Tell whoever watches, and the run's events; `begun` of `total` stages of all runs are done or at work."""
        name = news.task.name
        if news.what == "say":
            self.watcher.say(*news.values)
            self.log.say(*news.values)
        elif news.what == "began":
            again = name in self.at_work  # after a worker was lost
            own = len(self.done) + len(self.at_work) + 1 - again
            heard = self.watcher.stage(self._shown(name), begun + 1 - again, total)
            self.at_work[name] = heard, self.log.stage(name, own, len(self.stages))
        else:
            for progress in self.at_work[name]:
                getattr(progress, news.what)(*news.values)

    def settle(self, task: Task, ended: Made | Exception) -> None:
        """Note how a stage has ended."""
        item = self.submitted.pop(task.name)
        self.at_work.pop(task.name, None)
        self.watcher.ended(self._shown(task.name))
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

    def _shown(self, stage: str) -> str:
        return f"{self.run.label}/{stage}" if self.run.label else stage

    def _keep(self, item: Planned) -> None:
        for name in item.stage.published:
            _publish(item.folder / name, self.run.folder / name)
        self.done[item.stage.name] = item
        self.record.save()


def _publish(source: Path, target: Path) -> None:
    """Copy an artefact to the top of the run's folder, unless the same is there."""
    if not target.is_file() or target.read_bytes() != source.read_bytes():
        store.write_text(target, source.read_text(encoding="utf-8"))
