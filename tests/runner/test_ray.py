"""Stages as tasks of Ray: at once, heard, with their errors; lost workers, and nodes that are not as they should be."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import code, events, logs, store
from harness.errors import UserError
from harness.experiment import Compute, Need
from harness.graph import Silent, Stage, Work
from harness.models.identity import identity
from harness.runner import local, ray, ray_worker
from harness.runner.schedule import News, Run
from harness.runner.work import Task
from tests.runner.support import NEEDS_RAY
from tests.runner.test_schedule import task_of

Cai = Callable[..., tuple[int, str, str]]
needs_ray = [pytest.mark.usefixtures("cluster"), *NEEDS_RAY]


def marked(test: Callable[..., None]) -> Callable[..., None]:
    for mark in needs_ray:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray.cluster():
        yield


def meet(work: Work) -> None:
    """Ends when the other has begun."""
    here = work.files["place"]
    (here / f"{work.settings.me}.begun").touch()
    end = time.monotonic() + 120
    while not (here / f"{work.settings.other}.begun").exists():
        assert time.monotonic() < end, "the other never began"
        time.sleep(0.01)
    work.progress.advance(1, 1, "met")
    work.progress.row({"step": 1, "loss": 0.5})
    work.count(5)
    (work.folder / "value.txt").write_text(work.settings.me)


def die(work: Work) -> None:
    """Is killed so many times, each time after another row of work."""
    rows = work.folder / "rows.txt"
    done = len(rows.read_text()) if rows.exists() else 0
    if done < work.settings.deaths:
        rows.write_text("x" * (done + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    (work.folder / "value.txt").write_text(f"after {done}")


def fall(work: Work) -> None:
    if work.settings.how == "user":
        raise UserError("the disk is full; free some space")
    if work.settings.how == "exit":
        sys.exit("no")
    print("about to")
    raise ZeroDivisionError("nothing\nto divide by")


def reserve(work: Work) -> None:
    """Notes the group that its process is in."""
    from ray.util import get_current_placement_group, placement_group_table

    group = get_current_placement_group()
    state = placement_group_table(group)["state"]
    (work.folder / "value.txt").write_text(f"{group.bundle_count} of {state}")


def slow(work: Work) -> None:
    (work.folder / "half").touch()
    work.progress.advance(1, 2)
    for _ in range(6000):  # one long sleep would not be interrupted
        time.sleep(0.1)


def on_ray(stages: list[Stage], run: Path, *, progress: Silent | None = None, **options: Any) -> dict[str, Path]:
    return ray.execute([Run(stages, run, 0)], progress, **options)[0]


@marked
def test_stages_that_do_not_wait_for_one_another_run_at_once(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    stages = [
        Stage(me, meet, {"me": me, "other": other}, files={"place": place}, kind="pm") for me, other in ("ab", "ba")
    ]
    found = on_ray(stages, tmp_path / "run", workers=2)
    assert {name: (folder / "value.txt").read_text() for name, folder in found.items()} == {"a": "a", "b": "b"}
    told = events.read(tmp_path / "run").stages["a"]
    assert (told.status, told.done, told.note, told.tokens) == ("done", 1, "met", 5)
    assert [row["loss"] for row in told.rows] == [0.5]
    assert json.loads((found["a"] / "manifest.json").read_text())["node"]


@marked
def test_a_lost_worker_is_told_and_another_goes_on(tmp_path: Path) -> None:
    said: list[str] = []

    class Listener(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    found = on_ray([Stage("s", die, {"deaths": 2})], tmp_path, progress=Listener())
    assert (found["s"] / "value.txt").read_text() == "after 2"  # it went on from what was kept
    assert len(said) == 2
    assert f"s: its worker on node {os.uname().nodename}" in said[0]
    assert "was lost (WorkerCrashedError); another goes on from what it has kept" in said[0]


@marked
def test_a_stage_that_loses_every_worker_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"s: lost 4 workers, the last on node {os.uname().nodename}.* in compute$"):
        on_ray([Stage("s", die, {"deaths": 9})], tmp_path)
    assert events.read(tmp_path).status == "failed"


@marked
@pytest.mark.parametrize("how", ["user", "other", "exit"])
def test_an_error_in_a_worker_is_the_one_that_it_would_be_here(tmp_path: Path, how: str) -> None:
    stage = Stage("s", fall, {"how": how})
    with pytest.raises(Exception) as there:  # noqa: PT011  of any kind: the two are compared below
        on_ray([stage], tmp_path / "ray")
    if how == "exit":
        assert type(there.value).__name__ == "SystemExit"
        return
    with pytest.raises(Exception) as here:  # noqa: PT011  as above
        local.execute([stage], tmp_path / "local", seed=0)
    assert type(there.value).__name__ == type(here.value).__name__
    assert str(there.value) == str(here.value).splitlines()[0]
    failed = [events.read(tmp_path / run).stages["s"].error for run in ("ray", "local")]
    assert failed[0] == failed[1]
    if how == "other":
        assert any("in fall" in note for note in there.value.__notes__)  # where in its code
        log = logs.newest(tmp_path / "ray", "s")
        assert log is not None
        assert "about to\n" in log.read_text()
        assert "ZeroDivisionError: nothing" in logs.tail(log)


@marked
def test_ctrl_c_stops_the_workers_and_keeps_what_they_had(tmp_path: Path) -> None:
    class Enough(Silent):
        def advance(self, done: float, total: float, note: str = "") -> None:
            raise KeyboardInterrupt

    stage = Stage("s", slow)
    with pytest.raises(KeyboardInterrupt):
        on_ray([stage], tmp_path, progress=Enough())
    (partial,) = tmp_path.glob("stages/s/*.partial")
    assert (partial / "half").exists()
    assert (partial / "spent.json").exists()
    assert events.read(tmp_path).status == "stopped"
    with store.locked(partial.parent, wait=10):  # no worker has it any more
        pass


def groups() -> list[str]:
    """States of the placement groups that have not been removed."""
    from ray.util import placement_group_table

    return [found["state"] for found in placement_group_table().values() if found["state"] != "REMOVED"]


@marked
@pytest.mark.parametrize("how", ["well", "user", "lost"])
def test_a_stage_of_several_workers_has_them_all_and_leaves_them(tmp_path: Path, how: str) -> None:
    function = {"well": reserve, "user": fall, "lost": die}[how]
    stages = [Stage(me, function, {"how": how, "deaths": 1}, kind="score") for me in "ab"]
    asked = Compute(score=Need(workers=2, cpus=1))  # the cluster of the tests may have two cores: one after the other
    with contextlib.nullcontext() if how != "user" else pytest.raises(UserError, match="the disk is full"):
        found = on_ray(stages, tmp_path, asked=asked)
        if how == "well":
            assert {(folder / "value.txt").read_text() for folder in found.values()} == {"2 of CREATED"}
    assert groups() == []


@marked
def test_a_training_of_several_workers_has_the_group_that_ray_train_makes(tmp_path: Path) -> None:
    """The stage's own process takes no core beside it, which the cluster of the tests may not have."""
    found = on_ray([Stage("s", reserve, kind="pm")], tmp_path, asked=Compute(pm=Need(workers=2, cpus=1)))
    assert (found["s"] / "value.txt").read_text() == "2 of CREATED"
    assert groups() == []


@marked
def test_a_users_own_file_needs_to_be_nowhere_but_here(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "WORD = 'own'\n\n"
        "def write(work):\n    (work.folder / 'value.txt').write_text(WORD + str(work.settings.value))\n"
    )
    spec = importlib.util.spec_from_file_location("cai_method_mine", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cai_method_mine"] = module
    spec.loader.exec_module(module)
    found = on_ray([Stage("s", module.write, {"value": 3})], tmp_path / "run")
    assert (found["s"] / "value.txt").read_text() == "own3"


@marked
def test_more_than_the_cluster_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"compute\.pm: 9 GPUs.* asked, and no machine has that"):
        on_ray([Stage("s", slow, kind="pm")], tmp_path, asked=Compute(pm=Need(gpus=9)))


# ---------------------------------------------------------------- what a worker checks; Ray is not needed


@pytest.fixture
def checked(tmp_path: Path, tiny_model: Path) -> tuple[Task, ray_worker.Driver]:
    """A task, and a driver that is as this process is."""
    (tmp_path / "data.txt").write_text("x")
    stage = Stage("s", slow, files={"table": tmp_path / "data.txt"}, models={"base": str(tiny_model)})
    (tmp_path / "run" / ray_worker.TOKEN).parent.mkdir()
    (tmp_path / "run" / ray_worker.TOKEN).write_text("token")
    task = task_of(stage, tmp_path / "run")
    return task, ray_worker.Driver("token", store.versions(), code.sources(), {})


def test_a_node_that_is_as_the_driver_passes(checked: tuple[Task, ray_worker.Driver]) -> None:
    ray_worker.check(*checked, "n1")


def test_what_differs_on_a_node_is_said_with_its_name(
    checked: tuple[Task, ray_worker.Driver], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task, driver = checked
    monkeypatch.setattr(ray_worker, "VISIBLE", 0.05)
    older = {**driver.versions, "torch": "1.0"}
    model = str(task.item.stage.models["base"])
    for other, said in (
        (
            replace(driver, versions=older),
            r"node n1: torch 2\.\S+ where the driver has 1\.0; install the same",
        ),
        (replace(driver, sources="x"), "node n1: another state of cai-harness's code"),
        (
            replace(driver, token="x"),
            r"node n1: \S+/run is not the folder that the driver writes; give --out",
        ),
    ):
        with pytest.raises(UserError, match=said):
            ray_worker.check(task, other, "n1")
    with pytest.raises(UserError, match=f"node n1: model {model} is folder:.*, for the driver folder:x; fetch"):
        ray_worker.check(replace(task, identities={"base": "folder:x"}), driver, "n1")
    with pytest.raises(UserError, match=r"node n1: .*nowhere is not there"):
        ray_worker.check(replace(task, inputs={"data": tmp_path / "nowhere"}), driver, "n1")
    (tmp_path / "data.txt").unlink()
    with pytest.raises(UserError, match=r"node n1: \S+data\.txt: not found, which the driver has"):
        ray_worker.check(task, driver, "n1")
    assert identity(model) == task.identities["base"]


# ---------------------------------------------------------------- the command


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_there_is_one_line(cai: Cai, tiny_experiment: Path, tmp_path: Path) -> None:
    code, _, said = cai("run", tiny_experiment, "--out", tmp_path / "run", "--runner", "ray")
    assert code == 2
    assert said == "error: runner ray: Ray is not installed; `pip install 'cai-harness[ray]'`\n"


@pytest.mark.parametrize("option", [("--address", "auto"), ("--workers", 2)])
def test_options_of_ray_need_the_runner(cai: Cai, tiny_experiment: Path, option: tuple[str, Any]) -> None:
    code, _, said = cai("run", tiny_experiment, *option)
    assert code == 2
    assert f"{option[0]} means nothing to --runner local; add --runner ray" in said


@pytest.mark.ray
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed; `tox -e ray` has it")
def test_no_cluster_at_an_address_is_one_line(tiny_experiment: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness.cli", "run", str(tiny_experiment), "--out", str(tmp_path)]
    command += ["--runner", "ray", "--address", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --address 127.0.0.1:1: no Ray cluster there")
    assert "Traceback" not in done.stderr


@marked
def test_what_a_lost_worker_sent_late_is_left(tmp_path: Path) -> None:
    """A worker's last words may come when its stage has been given up, and another is at work."""
    runner = ray.Ray(Compute(), [])
    try:
        runner.mail.put((tmp_path / "given-up", "advance", (1, 2, "")))
        heard: list[News] = []
        runner._pass_on(heard.append)
        assert heard == []
    finally:
        runner.close()
