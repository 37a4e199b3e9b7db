"""A training that several workers carry out together: Ray Train starts them as ranks of one process group.

Each runs the stage's function in the same folder (`harness.ranks`). The stage's own process holds its lock, waits, and
writes the manifest. Where a worker is lost the others are stopped, and all begin again from the stage's checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from harness import logs, ranks, store
from harness.errors import UserError, one_line
from harness.experiment import Need
from harness.graph import Silent, Work
from harness.models.open import rest
from harness.runner import compute
from harness.runner.ray_worker import Driver, Post, check, prepare, remedy
from harness.runner.work import PATIENCE, Task

RETRIES = 3  # of a training that lost a worker
SETTINGS = {  # of Ray Train, by its environment
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1000000",  # other stages may have the cores or GPUs until then
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a model's path may be relative to where the command was given
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
FOLDER = ".workers"  # in the run's folder: what Ray Train notes, and the lock of the rank that writes


def together(task: Task, driver: Driver, need: Need, mail: Any, work: Work) -> Mapping[str, Any]:
    """Carry out a stage by `need.workers` workers; as `harness.runner.work.alone`."""
    os.environ.update(SETTINGS)
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    place = task.run / FOLDER / task.name
    place.mkdir(parents=True, exist_ok=True)
    post, losses = Post(mail, task.item.folder), 0
    while True:
        trainer = TorchTrainer(
            partial(_rank, task, driver, mail, work.origin, need.shard),
            scaling_config=ScalingConfig(
                num_workers=need.workers or 1, use_gpu=bool(need.gpus), resources_per_worker=compute.resources(need)
            ),
            # gloo beside NCCL, by which ranks exchange rollouts and numbers.
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if need.gpus else "gloo"),
            run_config=RunConfig(name=uuid.uuid4().hex, storage_path=str(place)),
        )
        try:
            facts: dict[str, Any] = trainer.fit().return_value
            break
        except TrainingFailedError as error:
            why, losses = _lost(error), losses + 1
            if losses > RETRIES:
                raise UserError(
                    f"{task.name}: lost a worker {losses} times ({why}); {remedy(task.item.stage.kind, why)}"
                ) from error
            post.send("say", (f"{task.name}: one of its workers was lost ({why}); all go on from what it has kept",))
    work.count(facts.pop("tokens"))
    shutil.rmtree(place, ignore_errors=True)
    return facts


def _rank(task: Task, driver: Driver, mail: Any, origin: str, sharded: bool) -> dict[str, Any]:
    """A worker's whole work; what the main one has to say of it."""
    item, node = task.item, socket.gethostname()
    os.environ.update(driver.environment)
    check(task, driver, node)
    prepare(task)
    nodes = ranks.gathered([node])
    store.reset_peak_memory()
    progress = Post(mail, item.folder) if ranks.main() else Silent()
    work = item.stage.work(item.partial, task.inputs, progress, origin)
    work.sharded = sharded
    # Workers of a stage whose process was lost may not have ended yet.
    writing = store.locked(task.run / FOLDER / task.name, wait=PATIENCE) if ranks.main() else contextlib.nullcontext()
    with writing, logs.printed_to(item.partial):
        item.stage.function(work)
        rest()
    return {
        "tokens": work.tokens,
        "node": ", ".join(dict.fromkeys(nodes)),
        "workers": ranks.size(),
        "device": store.device_name(),
        "peak_memory_bytes": store.peak_memory(),
    }


def _lost(error: Any) -> str:
    """Why a worker was lost. Raises what one of them raised by itself, and not for the loss of another."""
    failures = list(getattr(error, "worker_failures", {0: error}).values())
    own = [getattr(failure, "_base_exc", failure) for failure in failures]  # as Ray Train may wrap it
    own = [failure for failure in own if not type(failure).__module__.startswith("ray.")]
    for found in sorted(own, key=lambda failure: not isinstance(failure, UserError)):
        if isinstance(found, UserError) or not any(word in str(found) for word in ("gloo", "NCCL", "ProcessGroup")):
            found.add_note(str(error))
            raise found
    return one_line(next((f for f in failures if type(f).__module__.startswith("ray.")), failures[0]))[:200]
