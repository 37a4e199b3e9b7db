"""What a stage needs of a machine, by its kind: the experiment's `compute`, and defaults from what is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.experiment import Compute, Need
from harness.graph import Stage

AT_ONCE = 4  # stages on a machine without a GPU: more of them share its memory, fewer leave cores idle


@dataclass(frozen=True)
class Node:
    """A machine. memory: bytes that stages may ask for."""

    name: str
    cpus: float
    gpus: float
    memory: float


def here() -> Node:
    """This machine, without torch where there is no sign of a GPU."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = 0
    if any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists():
        import torch

        gpus = torch.cuda.device_count()
    return Node("this machine", cores, gpus, psutil.virtual_memory().total)


def need(stage: Stage, asked: Compute, nodes: Sequence[Node], workers: int | None = None) -> Need:
    """What each worker of `stage` gets: what the experiment asks for its kind, and for the rest a share of a node.

    Where there are GPUs, a worker of a stage that loads a model has one, and its share of the node's cores. Without
    GPUs a node's cores are shared by `AT_ONCE` workers, or by `workers` on all nodes. Tables and figures have one core.
    """
    given = getattr(asked, stage.kind)
    together = given.workers or 1
    largest = max(nodes, key=lambda node: (node.gpus, node.cpus))
    if stage.kind == "table":
        cpus, gpus = 1.0, 0.0
    elif largest.gpus:
        cpus, gpus = max(1.0, largest.cpus // largest.gpus), 1.0
    else:
        at_once = AT_ONCE if workers is None else -(-max(workers, together) // len(nodes))
        cpus, gpus = max(1.0, largest.cpus // at_once), 0.0
    return Need(
        workers=together,
        cpus=cpus if given.cpus is None else given.cpus,
        gpus=gpus if given.gpus is None else given.gpus,
        memory=given.memory,
        shard=given.shard,
    )


def room(asked: Need, nodes: Sequence[Node]) -> int:
    """How many such workers the machines can have at once, each on one of them."""

    def on(node: Node) -> float:
        there = ((node.cpus, asked.cpus), (node.gpus, asked.gpus), (node.memory / 2**30, asked.memory))
        return min((have / need for have, need in there if need), default=1)

    return sum(int(on(node)) for node in nodes)


def resources(need: Need) -> dict[str, float]:
    """What one worker takes, as Ray names it; what it takes nothing of is left out. memory: bytes."""
    asked = (("CPU", need.cpus), ("GPU", need.gpus), ("memory", int((need.memory or 0) * 2**30)))
    return {name: amount for name, amount in asked if amount}


def fits(asked: Need, nodes: Sequence[Node]) -> bool:
    """Whether the machines have all that is asked for, of all workers at once."""
    return room(asked, nodes) >= (asked.workers or 1)


def check(stages: Sequence[Stage], asked: Compute, nodes: Sequence[Node], workers: int | None = None) -> None:
    """Raise UserError for a stage that none of the machines can carry out: it would wait for ever."""
    for stage in stages:
        found = need(stage, asked, nodes, workers)
        if not fits(found, nodes):
            there = "; ".join(
                f"{n.name}: {n.cpus:g} CPUs, {n.gpus:g} GPUs, {n.memory / 2**30:.0f} GiB" for n in nodes[:4]
            )
            none = "no machine has" if found.workers == 1 else "the machines have not"
            raise UserError(
                f"compute.{stage.kind}: {told(found)} asked, and {none} that ({there}); ask for less, or "
                "start Ray on larger ones"
            )


def told(need: Need) -> str:
    """ "1 CPU", "1 GPU, 8 CPUs, 64 GiB", "2 x (1 GPU, 8 CPUs)"."""
    parts = [f"{n:g} {what}{'' if n == 1 else 's'}" for n, what in ((need.gpus, "GPU"), (need.cpus, "CPU")) if n]
    each = ", ".join([*parts, *([f"{need.memory:g} GiB"] if need.memory else [])]) or "nothing"
    return f"{need.workers} x ({each})" if (need.workers or 1) > 1 else each
