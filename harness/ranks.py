"""The workers that carry one stage out together: each is a rank of torch's process group, and runs the same function.

Rank 0, the main one, writes what the stage leaves (`harness.store`, `harness.models.checkpoints`); the others compute
their share of the rows. Without a process group there is one worker, which is the main one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from harness.errors import UserError

T = TypeVar("T")


def size() -> int:
    """How many workers carry the stage out."""
    return int(_group().get_world_size()) if _group() else 1


def rank() -> int:
    """Which of them this process is, from 0."""
    return int(_group().get_rank()) if _group() else 0


def main() -> bool:
    """Whether this worker writes."""
    return rank() == 0


def share(items: Sequence[T]) -> list[T]:
    """This worker's part of `items`, of which every worker has the same list."""
    return list(items[rank() :: size()])


def portions(items: Sequence[T], most: int) -> list[list[T]]:
    """This worker's part of `items`, at most `most` at once; every worker has equally many, of which some are empty."""
    own = share(items)
    return [own[start : start + most] for start in range(0, -(-len(items) // size()), most)]


def gathered(part: Sequence[T]) -> list[T]:
    """The parts of all workers as one list, in the order that `share` took them from. Every worker must call it."""
    if size() == 1:
        return list(part)
    parts: list[list[T]] = [[] for _ in range(size())]
    _group().all_gather_object(parts, list(part))
    return [parts[i % size()][i // size()] for i in range(sum(map(len, parts)))]


def told(value: T) -> T:
    """The main worker's `value`, for all of them. Every worker must call it."""
    if size() == 1:
        return value
    box = [value]
    _group().broadcast_object_list(box, src=0)
    return box[0]


def add(tensor: Any) -> None:
    """Make `tensor` the sum of what all workers have in it."""
    if size() > 1:
        _group().all_reduce(tensor)


def divided(rows: int, what: str) -> int:
    """How many of an optimiser step's rows a worker has. Raises UserError where they do not divide."""
    if rows % size():
        raise UserError(
            f"{what}: an optimiser step of {rows} rows cannot be divided among {size()} workers; give a multiple, or "
            "other workers in compute"
        )
    return rows // size()


def _group() -> Any:
    """torch.distributed where this process is in a group; without torch there is none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed
