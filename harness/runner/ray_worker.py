"""What a worker of Ray does: holds its node against the driver's, then carries out a stage as the local runner does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from harness import code, logs, manifest, store
from harness.errors import UserError, one_line
from harness.experiment import Need
from harness.experiment.compute import TRAININGS
from harness.graph import Work
from harness.models.identity import identity
from harness.runner.work import Made, Task, alone, carry_out

EVERY = 0.5  # seconds between two reports of a worker's progress
VISIBLE = 90.0  # seconds that a network file system may take to show a node what another has written
TOKEN = ".driver"  # a file in the run's folder by which a worker knows that it sees the driver's
SAME = "install the same versions on all nodes (docs/cluster.md)"
T = TypeVar("T")


@dataclass(frozen=True)
class Driver:
    """What a worker holds itself against: whether it is of the same installation and sees the same run."""

    token: str
    versions: Mapping[str, str]
    sources: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Failed:
    """An error in a worker: a UserError, or one of another kind with its traceback."""

    said: str
    kind: str = ""
    trace: str = ""

    def error(self) -> Exception:
        if not self.kind:
            return UserError(self.said)
        error = type(self.kind, (Exception,), {})(self.said)  # itself it may not be pickled
        error.add_note(self.trace)
        return error


def work(given: tuple[Task, Driver], mail: Any, need: Need) -> Made | Failed:
    """Carry out a stage in this worker, or with others where it needs several."""
    task, driver = given
    node = socket.gethostname()
    os.environ.update(driver.environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # by which Ray cancels; after `nohup` it is ignored
    post = Post(mail, task.item.folder)

    def made() -> Made:
        post.send("began", (f"{node}, process {os.getpid()}",))
        check(task, driver, node)
        prepare(task)
        return carry_out(task, post, placed)

    def placed(work: Work) -> Mapping[str, Any]:
        with logs.printed_to(work.folder):
            facts = several(work) if (need.workers or 1) > 1 else alone(task, work)
        return {**facts, "gpus": (need.gpus or 0) * (need.workers or 1)}

    def several(work: Work) -> Mapping[str, Any]:
        if task.item.stage.kind in TRAININGS:
            from harness.runner import ray_train

            return ray_train.together(task, driver, need, mail, work)
        from harness.runner import ray_engines

        return ray_engines.shared(task, driver, lambda line: post.send("say", (line,)), work)

    return answer(task, made)


def answer(task: Task, asked: Callable[[], T]) -> T | Failed:
    """What `asked` gives, or what it raises."""
    try:
        return asked()
    except UserError as error:
        return Failed(str(error))
    except (Exception, SystemExit) as error:  # SystemExit would end the worker
        if type(error).__name__ == "OutOfMemoryError":  # torch's: of a GPU
            return Failed(
                f"node {socket.gethostname()}: {task.name} needs more memory than its GPU has ({one_line(error)}); "
                "lower its batch size, or ask for a whole GPU in compute"
            )
        return Failed(one_line(error), type(error).__name__, traceback.format_exc())


def why_lost(error: Exception) -> str:
    """Why Ray gave a worker up, in words."""
    import ray

    return "out of memory" if isinstance(error, ray.exceptions.OutOfMemoryError) else type(error).__name__


def remedy(kind: str, why: str) -> str:
    """What to do where workers of a stage are lost again and again."""
    if why == "out of memory":
        return f"give it more (compute: {{{kind}: {{memory: GIB}}}}), or lower its batch size"
    return "where the system killed it for memory, `dmesg` says so: ask for more in compute"


def taking(resources: Mapping[str, float]) -> dict[str, Any]:
    """Ray's options of a task or an actor that takes so much, as `compute.resources` names it."""
    return {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0), "memory": resources.get("memory")}


def prepare(task: Task) -> None:
    """Quiet libraries, and as many threads as the task was given cores, also in a worker that had a task before."""
    if task.item.stage.kind != "table":
        from harness.quiet import quiet

        quiet()
    torch = sys.modules.get("torch")
    if torch is not None and os.environ.get("OMP_NUM_THREADS", "").isdigit():
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def check(task: Task, driver: Driver, node: str) -> None:
    """Raise UserError where this node is not as the driver's: in versions, in what it sees, in what models are."""
    own = _installed()
    for name, version in driver.versions.items():
        if own[0].get(name) != version:
            raise UserError(f"node {node}: {name} {own[0].get(name)} where the driver has {version}; {SAME}")
    if own[1] != driver.sources:
        raise UserError(
            f"node {node}: another state of cai-harness's code than the driver's; where it was edited since the run "
            f"began, run the same command again, else {SAME}"
        )
    until(
        lambda: (task.run / TOKEN).read_text() == driver.token,
        f"node {node}: {task.run} is not the folder that the driver writes; give --out on a file system that all "
        "nodes share under the same path (docs/cluster.md)",
    )
    for folder in task.inputs.values():
        until(partial(finished, folder), f"node {node}: {folder} is not there")
    for path in task.item.stage.files.values():
        if not Path(path).exists():
            raise UserError(f"node {node}: {path}: not found, which the driver has; put it where all nodes see it")
    for role, name in task.item.stage.models.items():
        try:
            found = identity(name)
        except UserError as error:
            raise UserError(f"node {node}: {error}") from error
        if found != task.identities[role]:
            raise UserError(
                f"node {node}: model {name} is {found}, for the driver {task.identities[role]}; fetch the same there"
            )


@cache
def _installed() -> tuple[Mapping[str, str], str]:
    return store.versions(), code.sources()


def finished(folder: Path) -> bool:
    return manifest.read(folder) is not None


def until(seen: Callable[[], bool], otherwise: str) -> None:
    """Wait for what another machine has written to be seen here. Raises UserError where it does not come."""
    end = time.monotonic() + VISIBLE
    while True:
        with contextlib.suppress(OSError):
            if seen():
                return
        if time.monotonic() > end:
            raise UserError(otherwise)
        time.sleep(0.1)


class Post:
    """A `harness.graph.Progress` that sends what it hears to the driver."""

    def __init__(self, mail: Any, folder: Path):
        self.mail, self.folder, self.sent = mail, folder, 0.0

    def send(self, what: str, values: Sequence[Any]) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError):  # without its queue a stage goes on unheard
            self.mail.put((self.folder, what, values))

    def advance(self, done: float, total: float, note: str = "") -> None:
        if time.monotonic() - self.sent >= EVERY or done >= total:
            self.sent = time.monotonic()
            self.send("advance", (done, total, note))

    def row(self, values: Mapping[str, Any]) -> None:
        self.send("row", (dict(values),))
