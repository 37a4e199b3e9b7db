"""The Ray runner: stages that do not wait for one another at once, on this machine or a cluster.

A stage is one task of one worker, which runs what `local` runs and writes the same folder, so all nodes must share the
run's file system. Retries are ours and not Ray's, so that a run tells of each worker that it lost; the next one goes on
from what the stage has kept.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harness import code, store
from harness.errors import UserError, one_line
from harness.experiment import Compute, Need
from harness.experiment.compute import TRAININGS
from harness.graph import Watcher, in_order
from harness.models.checkpoints import TRUST
from harness.runner import compute, schedule
from harness.runner.compute import Node
from harness.runner.ray_worker import (
    EVERY,
    SAME,
    TOKEN,
    Driver,
    Failed,
    finished,
    remedy,
    taking,
    until,
    why_lost,
    work,
)
from harness.runner.schedule import News, Run
from harness.runner.work import Made, Task

RETRIES = 3  # of a stage whose worker was lost
_NONE_THERE = "no Ray cluster there; start one with `ray start --head`, or correct the address"


def execute(
    runs: Sequence[Run],
    progress: Watcher | None = None,
    *,
    asked: Compute | None = None,
    address: str | None = None,
    workers: int | None = None,
) -> list[dict[str, Path]]:
    """As `schedule.execute`, on Ray: a cluster of this machine, or the one at `address`.

    asked: what stages need by kind. workers: so many stages at once where there are no GPUs. Raises UserError where Ray
    is not installed or cannot be reached, and for what a worker cannot do, naming the node.
    """
    with cluster(address) as nodes:
        compute.check([s for run in runs for s in in_order(run.targets)], asked or Compute(), nodes, workers)
        runner = Ray(asked or Compute(), nodes, workers)
        try:
            return schedule.execute([replace(run, folder=run.folder.resolve()) for run in runs], runner, progress)
        finally:
            runner.close()


@contextlib.contextmanager
def cluster(address: str | None = None) -> Iterator[list[Node]]:
    """A connection to Ray, and its nodes; one that the process has already is used and left open."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a run of red-team data phones nobody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a stage without a GPU sees none
    try:
        import ray
    except ImportError as error:
        raise UserError("runner ray: Ray is not installed; `pip install 'cai-harness[ray]'`") from error
    if ray.is_initialized():
        yield _nodes()
        return
    _connect(address)
    try:
        yield _nodes()
    finally:
        ray.shutdown()


def _connect(address: str | None, tries: int = 2) -> None:
    import ray

    own: dict[str, Any] = {"address": address}
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():  # Ray would try for a quarter of an hour
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"--address {address}: {_NONE_THERE} ({one_line(error)})") from error
    if address is None:
        here = compute.here()
        own = {"address": "local", "num_cpus": int(here.cpus), "num_gpus": int(here.gpus)}
        own |= {"include_dashboard": False, "object_store_memory": 2**27}  # artefacts go through files
    try:
        ray.init(**own, log_to_driver=False, logging_level="CRITICAL", configure_logging=True)
    except Exception as error:
        if address is not None:
            raise UserError(f"--address {address}: {_NONE_THERE} ({one_line(error)})") from error
        ray.shutdown()
        if tries > 1:  # a machine so busy that the 30 s that Ray gives itself were not enough
            return _connect(address, tries - 1)
        raise UserError(
            f"runner ray: Ray does not start ({one_line(error)}); end other programs and try again"
        ) from error


def _nodes() -> list[Node]:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return [
        Node(
            node["NodeManagerHostname"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            node["Resources"].get("memory", 0.0),
        )
        for node in alive
    ]


class Ray:
    """A `schedule.Runner`: each stage is a task of Ray's."""

    def __init__(self, asked: Compute, nodes: Sequence[Node], workers: int | None = None):
        import ray
        from ray.util.queue import Queue

        self.asked, self.nodes, self.workers = asked, nodes, workers
        self.mail = Queue(actor_options={"num_cpus": 0, "max_restarts": -1})
        self.at_work: dict[Any, Task] = {}
        self.marked: set[Path] = set()  # runs' folders that hold the token
        self.lost: Counter[Path] = Counter()  # by the stage's folder
        self.node: dict[Path, str] = {}  # where a stage was last seen
        self.groups: dict[Path, Any] = {}  # placement groups of stages that have several workers
        self.remote = ray.remote(max_retries=0)(work)
        environment = {name: os.environ[name] for name in (TRUST, "HF_HUB_DISABLE_TELEMETRY") if name in os.environ}
        self.driver = Driver(uuid.uuid4().hex, store.versions(), code.sources(), environment)

    def submit(self, task: Task) -> None:
        import ray

        if task.run not in self.marked:
            store.write_text(task.run / TOKEN, self.driver.token)
            self.marked.add(task.run)
        module = sys.modules[task.item.stage.function.__module__]
        if module.__name__.split(".")[0] not in code.PACKAGES:  # a user's own file: no worker could import it
            ray.cloudpickle.register_pickle_by_value(module)
        alone = replace(task, item=replace(task.item, stage=replace(task.item.stage, inputs={})))
        try:
            given = ray.put((alone, self.driver))
        except TypeError as error:
            raise UserError(
                f"{task.name}: cannot be sent to a worker ({one_line(error)}); keep what cannot be pickled (locks, "
                "open files) out of the file's top level"
            ) from error
        need = compute.need(task.item.stage, self.asked, self.nodes, self.workers)
        if self.lost[task.item.folder] and (need.workers or 1) > 1:  # on what is left of the nodes
            need = need.model_copy(update={"workers": max(1, min(need.workers or 1, compute.room(need, _nodes())))})
        self.at_work[self.remote.options(**self._place(task, need)).remote(given, self.mail, need)] = task

    def _place(self, task: Task, need: Need) -> dict[str, Any]:
        """Where the stage runs, as Ray's options.

        Several workers that share a stage's rows are reserved at once, so that two stages cannot wait for each other's:
        its own process is one of them, which has the group's first bundle. Trainings take nothing here, since Ray Train
        reserves their workers itself, as one group too.
        """
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        kind = task.item.stage.kind
        each = compute.resources(need)
        where: dict[str, Any] = taking(each)
        if need.workers == 1:
            return where
        if kind in TRAININGS:
            return taking({})
        group = self.groups[task.item.folder] = placement_group([each] * (need.workers or 1), strategy="PACK")
        return where | {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, 0)}

    def _leave(self, task: Task) -> None:
        """Give back the workers of a stage that has ended; what runs on them is stopped."""
        from ray.util.placement_group import remove_placement_group

        group = self.groups.pop(task.item.folder, None)
        if group is not None:
            remove_placement_group(group)

    def wait(self, hear: Callable[[News], None]) -> tuple[Task, Made | Exception]:
        import ray

        while True:
            ended, _ = ray.wait(list(self.at_work), timeout=EVERY)
            self._pass_on(hear)
            if ended:
                task = self.at_work.pop(ended[0])
                self._leave(task)
                made = self._result(ended[0], task)
                if isinstance(made, Made | Exception):
                    return task, made
                hear(News(task, "say", (made,)))
                self.submit(task)

    def _pass_on(self, hear: Callable[[News], None]) -> None:
        """Tell what has arrived of the workers."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):  # the queue's process was lost: others come
            tasks = {task.item.folder: task for task in self.at_work.values()}
            for folder, what, values in self.mail.get_nowait_batch(self.mail.qsize()):
                if what == "began":
                    self.node[folder], values = values[0], ()
                if folder in tasks:  # the last words of a lost worker may come when its stage was given up
                    hear(News(tasks[folder], what, values))

    def _result(self, reference: Any, task: Task) -> Made | Exception | str:
        """What a task has come to; a line where its worker was lost and another may try."""
        import ray

        try:
            result: Made | Failed = ray.get(reference)
            if isinstance(result, Failed):
                return result.error()
            until(partial(finished, task.item.folder), f"{task.item.folder}: not visible here")
            return result
        except UserError as error:
            return error
        except ray.exceptions.RayTaskError as error:  # before our own code had begun
            return UserError(f"{task.name}: a worker cannot load the harness ({one_line(error.cause)}); {SAME}")
        except ray.exceptions.RayError as error:
            why, where = why_lost(error), f"node {self.node.get(task.item.folder, 'unknown')}"
            self.lost[task.item.folder] += 1
            if self.lost[task.item.folder] <= RETRIES:
                return f"{task.name}: its worker on {where} was lost ({why}); another goes on from what it has kept"
            return UserError(
                f"{task.name}: lost {RETRIES + 1} workers, the last on {where} ({why}); "
                f"{remedy(task.item.stage.kind, why)}"
            )

    def close(self) -> None:
        """Stop what is still at work; it has kept what it had."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            for reference in self.at_work:
                # Its calls to the queue go on: one that was cancelled would be taken for a queue that was lost.
                ray.cancel(reference, recursive=False)
            if self.at_work:
                ray.wait(list(self.at_work), num_returns=len(self.at_work), timeout=5)
            for task in self.at_work.values():
                self._leave(task)
            self.mail.shutdown(force=True)
