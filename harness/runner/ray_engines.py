"""Engines of a stage that shares its rows: actors with the same models, one in each further bundle of its group.

The stage's own process is one of the workers (`harness.models.spread`): it holds the stage's lock, keeps the rows that
come in, and carries out batches too. An engine that is lost costs the batch that it had, which another takes at once;
a new one comes in its place where there is room.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from harness import logs
from harness.errors import UserError
from harness.graph import Work
from harness.models import spread
from harness.models.spread import Loading, LostError
from harness.runner.ray_worker import Driver, Failed, answer, check, prepare, remedy, taking, why_lost
from harness.runner.work import Task, alone

RETRIES = 3  # of one engine


def shared(task: Task, driver: Driver, say: Callable[[str], None], work: Work) -> Mapping[str, Any]:
    """Carry out a stage, its rows shared with the engines of its group; as `harness.runner.work.alone`."""
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    helpers = [RayHelper(task, driver, group, bundle, say) for bundle in range(1, group.bundle_count)]
    with spread.among(helpers):
        facts = alone(task, work)
    nodes = [facts["node"], *(node for helper in helpers for node in helper.nodes)]
    return {**facts, "node": ", ".join(dict.fromkeys(nodes)), "workers": group.bundle_count}


class RayHelper:
    """A `spread.Helper`: an engine in a bundle of the stage's placement group, and the next one where that is lost."""

    def __init__(self, task: Task, driver: Driver, group: Any, bundle: int, say: Callable[[str], None]):
        self.task, self.driver, self.group, self.bundle, self.say = task, driver, group, bundle, say
        self.actor: Any = None
        self.opening: Any = None  # what the actor was last asked to open, and of which model
        self.opened = ""
        self.nodes: list[str] = []
        self.process, self.losses = 0, 0

    def ready(self, loading: Loading, wait: float) -> bool:
        import ray

        try:
            if self.actor is None:
                self.actor, self.opened = self._start(), ""
            if self.opened != loading.name:
                self.opening, self.opened = self.actor.open.remote(loading), loading.name
            if not ray.wait([self.opening], timeout=wait)[0]:
                return False
            node, self.process = self._value(self.opening)
            if node not in self.nodes[-1:]:
                self.nodes.append(node)
        except LostError:
            return False
        return True

    def call(self, loading: Loading, method: str, arguments: Mapping[str, Any]) -> tuple[Any, int]:
        result: tuple[Any, int] = self._value(self.actor.call.remote(loading.name, method, arguments))
        return result

    def forget(self, loading: Loading) -> None:
        if self.actor is not None:
            self.actor.forget.remote(loading.name)

    def _start(self) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        where = taking(self.group.bundle_specs[self.bundle])
        strategy = PlacementGroupSchedulingStrategy(self.group, self.bundle)
        return ray.remote(Engine).options(**where, scheduling_strategy=strategy).remote(self.task, self.driver)

    def _value(self, reference: Any) -> Any:
        """What the engine gave. Raises what it raised, and LostError where it was lost."""
        import ray

        try:
            found = ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # before our own code had begun
            raise UserError(f"{self.task.name}: an engine cannot be used ({error.cause})") from error
        except ray.exceptions.RayError as error:
            self._lost(why_lost(error))
            raise LostError from error
        if isinstance(found, Failed):
            raise found.error()
        return found

    def _lost(self, why: str) -> None:
        """Say so, and let the next one come. Raises UserError where too many were lost."""
        import ray

        if self.actor is not None:
            ray.kill(self.actor)
        self.actor, self.losses = None, self.losses + 1
        where = f"node {self.nodes[-1] if self.nodes else 'unknown'}"
        if self.losses > RETRIES:
            raise UserError(
                f"{self.task.name}: lost {self.losses} engines, the last on {where} ({why}); "
                f"{remedy(self.task.item.stage.kind, why)}"
            )
        self.say(f"{self.task.name}: an engine on {where} was lost ({why}); others take its batch, another its place")


class Engine:
    """An actor with models of its own. What its methods raise comes back as `Failed`."""

    def __init__(self, task: Task, driver: Driver):
        self.task, self.driver, self.checked = task, driver, False
        self.models: dict[str, Any] = {}
        self.printing = contextlib.ExitStack()

    def open(self, loading: Loading) -> tuple[str, int] | Failed:
        """(node, process) once the model is held."""
        return answer(self.task, lambda: self._open(loading))

    def _open(self, loading: Loading) -> tuple[str, int]:
        node = socket.gethostname()
        if not self.checked:
            os.environ.update(self.driver.environment)
            check(self.task, self.driver, node)
            prepare(self.task)
            self.printing.enter_context(logs.printed_to(self.task.item.partial))  # to its end
            self.checked = True
        if loading.name not in self.models:
            self.models[loading.name] = loading()
        return node, os.getpid()

    def call(self, name: str, method: str, arguments: Mapping[str, Any]) -> tuple[Any, int] | Failed:
        """(what the model's method gives, tokens read and written)."""
        return answer(self.task, lambda: self._call(self.models[name], method, arguments))

    def _call(self, model: Any, method: str, arguments: Mapping[str, Any]) -> tuple[Any, int]:
        before = getattr(model, "tokens", 0)  # a PM counts none
        return getattr(model, method)(**arguments), getattr(model, "tokens", 0) - before

    def forget(self, name: str) -> None:
        self.models.pop(name, None)
