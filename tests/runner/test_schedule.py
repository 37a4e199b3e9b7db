"""Which stage comes when, with a runner that ends its stages in any order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import events, store
from harness.errors import UserError
from harness.graph import Silent, Stage, Work
from harness.runner import local, schedule, work
from harness.runner.schedule import News, Run
from harness.runner.work import Made, Task, carry_out


def write(work: Work) -> None:
    text = "".join(sorted((folder / "value.txt").read_text() for folder in work.inputs.values()))
    (work.folder / "value.txt").write_text(f"{work.settings.value}({text})")


def fall(work: Work) -> None:
    raise UserError("no such luck")


class AnyOrder:
    """A runner that has taken on stages and ends one of them at a time, whichever `choose` says."""

    def __init__(self, choose: Callable[[int], int]):
        self.choose, self.tasks = choose, dict[str, Task]()
        self.most, self.order = 0, list[str]()

    def submit(self, task: Task) -> None:
        self.tasks[f"{task.name} of {task.run.name}"] = task
        self.most = max(self.most, len(self.tasks))

    def wait(self, hear: Callable[[News], None]) -> tuple[Task, Made | Exception]:
        for task in self.tasks.values():
            hear(News(task, "began"))
        task = self.tasks.pop(sorted(self.tasks)[self.choose(len(self.tasks))])
        self.order.append(task.name)
        try:
            return task, carry_out(task, Silent())
        except Exception as error:
            return task, error


def graph(edges: list[list[bool]]) -> list[Stage]:
    """Stages of which each reads those before it that its row names."""
    stages: list[Stage] = []
    for number, row in enumerate(edges):
        inputs = {stage.name: stage for stage, reads in zip(stages, row, strict=False) if reads}
        stages.append(Stage(f"s{number}", write, {"value": number}, inputs))
    return stages


@settings(max_examples=25)
@given(data=st.data())
def test_in_any_order_every_stage_comes_once_after_its_inputs(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    size = data.draw(st.integers(1, 6))
    stages = graph(data.draw(st.lists(st.lists(st.booleans(), min_size=size, max_size=size), max_size=size)))
    runner = AnyOrder(lambda n: data.draw(st.integers(0, n - 1)))
    here, there = tmp_path_factory.mktemp("any"), tmp_path_factory.mktemp("local")
    found = schedule.execute([Run(stages, here, 0)], runner)[0]
    alone = local.execute(stages, there, seed=0)
    assert sorted(runner.order) == [stage.name for stage in stages]
    for stage in stages:
        assert all(runner.order.index(name) < runner.order.index(stage.name) for name in stage.inputs)
        assert (found[stage.name] / "value.txt").read_bytes() == (alone[stage.name] / "value.txt").read_bytes()
        assert found[stage.name].name == alone[stage.name].name
    state = events.read(here)
    assert (state.status, {s.status for s in state.stages.values()} <= {"done"}) == ("done", True)


def test_locally_stages_come_in_the_order_of_the_plan(tmp_path: Path) -> None:
    first, second = Stage("first", write, {"value": 1}), Stage("second", write, {"value": 2})
    after = Stage("after", write, {"value": 3}, {"first": first})
    told = []

    class Listener(Silent):
        def stage(self, name: str, position: int, total: int) -> Silent:
            told.append((name, position, total))
            return self

    local.execute([after, second], tmp_path, seed=0, progress=Listener())
    assert told == [("first", 1, 3), ("after", 2, 3), ("second", 3, 3)]


def test_after_an_error_those_at_work_end_and_none_begins(tmp_path: Path) -> None:
    bad, good = Stage("a-bad", fall), Stage("good", write, {"value": 1})
    after_good = Stage("after-good", write, {"value": 2}, {"good": good})
    after_bad = Stage("after-bad", write, {"value": 3}, {"bad": bad})
    stages = [bad, good, after_good, after_bad]
    runner = AnyOrder(lambda n: 0)
    with pytest.raises(UserError, match="no such luck"):
        schedule.execute([Run(stages, tmp_path, 0)], runner)
    assert runner.order == ["a-bad", "good"]
    state = events.read(tmp_path)
    assert state.status == "failed"
    assert {name: stage.status for name, stage in state.stages.items()} == {
        "a-bad": "failed", "good": "done", "after-good": "to do", "after-bad": "to do",
    }  # fmt: skip


def test_several_runs_go_at_once_each_in_its_folder(tmp_path: Path) -> None:
    runs = []
    for seed in (0, 1):
        first = Stage("first", write, {"value": seed})
        runs.append(
            Run([Stage("second", write, {"value": 2}, {"first": first})], tmp_path / str(seed), seed, f"r{seed}")
        )
    told = []

    class Listener(Silent):
        def stage(self, name: str, position: int, total: int) -> Silent:
            told.append((name, position, total))
            return self

    runner = AnyOrder(lambda n: n - 1)
    found = schedule.execute(runs, runner, Listener())
    assert runner.most == 2
    assert [(folders["second"] / "value.txt").read_text() for folders in found] == ["2(0())", "2(1())"]
    assert {name for name, _, _ in told} == {"r0/first", "r0/second", "r1/first", "r1/second"}
    assert {total for _, _, total in told} == {4}
    assert max(position for _, position, _ in told) == 4
    for run in runs:
        assert events.read(run.folder).status == "done"
        assert json.loads(next(run.folder.glob("stages/second/*/manifest.json")).read_text())["seed"] == run.seed


def test_what_a_runner_says_reaches_the_user_and_the_events(tmp_path: Path) -> None:
    class Loses(AnyOrder):
        def wait(self, hear: Callable[[News], None]) -> tuple[Task, Made | Exception]:
            hear(News(next(iter(self.tasks.values())), "say", ("a worker was lost",)))
            return super().wait(hear)

    said: list[str] = []

    class Listener(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    schedule.execute([Run([Stage("s", write, {"value": 1})], tmp_path, 0)], Loses(lambda n: 0), Listener())
    assert said == ["a worker was lost"]
    notes = [json.loads(line) for line in (tmp_path / events.NAME).read_text().splitlines()]
    assert [event["note"] for event in notes if event["event"] == "note"] == said


def task_of(stage: Stage, run: Path) -> Task:
    taken: list[Task] = []

    class Takes(AnyOrder):
        def wait(self, hear: Any) -> tuple[Task, Made | Exception]:
            taken.extend(self.tasks.values())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        schedule.execute([Run([stage], run, 0)], Takes(lambda n: 0))
    return taken[0]


def test_two_workers_never_work_on_one_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    task = task_of(Stage("s", write, {"value": 1}), tmp_path)
    monkeypatch.setattr(work, "PATIENCE", 0.05)
    home = task.item.partial.parent
    home.mkdir(parents=True)
    with filelock.FileLock(home / ".lock"), pytest.raises(UserError, match="another `cai` command writes here"):
        carry_out(task, Silent())
    made = carry_out(task, Silent())
    written = (task.item.folder / "value.txt").stat().st_mtime_ns
    assert carry_out(task, Silent()) == made  # a worker whose result was lost had finished it
    assert (task.item.folder / "value.txt").stat().st_mtime_ns == written


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    def none(*_: object, **__: object) -> None:
        raise NotImplementedError("no flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    with pytest.raises(UserError, match="has no file locks"), store.locked(tmp_path):
        pass
