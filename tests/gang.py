"""Several workers on this machine: processes in one gloo group, as Ray Train starts them on a cluster."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

WAIT = 300  # seconds, on a busy machine


def together(function: Callable[..., Any], *args: Any, workers: int = 2, start: str = "fork") -> list[Any]:
    """What `function(*args)` returns in each of so many workers, by rank. What one raises is raised here, as text.

    start: "fork" saves loading libraries again; with "spawn" workers inherit nothing, such as vLLM's engine and group.
    """
    context = multiprocessing.get_context(start)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends: list[Any] = []
    processes: list[Any] = []
    for rank in range(workers):
        here, there = context.Pipe(duplex=False)
        process: Any = context.Process(target=_worker, args=(rank, workers, port, there, function, args), daemon=True)
        process.start()
        ends.append(here)
        processes.append(process)
    try:
        found = [end.recv() if end.poll(WAIT) else ("no answer", None) for end in ends]
    finally:
        for process in processes:
            process.kill()
            process.join()
    for said, _ in found:
        assert not said, said
    return [value for _, value in found]


def _worker(rank: int, workers: int, port: int, answer: Any, function: Callable[..., Any], args: Any) -> None:
    import torch
    from accelerate.state import AcceleratorState

    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # the parent's, which is of one process
    try:
        torch.distributed.init_process_group("gloo")
        answer.send(("", function(*args)))
    except BaseException:
        answer.send((traceback.format_exc(), None))
