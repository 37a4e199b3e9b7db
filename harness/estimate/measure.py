"""Rates of this machine, measured with one model.

Others may be at work on it, so each is the best of several repetitions, and on a CPU what counts is the processor time
of a thread, which waiting for a turn does not lengthen (caches and memory that others use still do). Lengths and
batches are those of small experiments: 16 rows of 64 tokens read, 8 trained, 1 and 16 sampled.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from typing import Any

from harness import store
from harness.estimate.effort import of_config
from harness.estimate.rates import Rates

TOKENS, READ_ROWS, TRAIN_ROWS, DECODE_ROWS, STEPS = 64, 16, 8, 16, 4


def measure(name: str, *, repeats: int = 3, note: Callable[[str], None] = lambda said: None) -> Rates:
    """The rates of the device that models run on here, with the model `name`."""
    import psutil
    import torch

    from harness.models import checkpoints

    resident = psutil.Process().memory_info().rss
    device = checkpoints.device()

    def best(what: str, work: Callable[[], Any], threads: int = torch.get_num_threads()) -> float:
        """The least seconds of `work`, which runs in so many threads."""
        note(what)
        took = []
        for _ in range(repeats):
            began, spent = time.perf_counter(), time.process_time()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            wall, spent = time.perf_counter() - began, time.process_time() - spent
            took.append(spent / threads if device == "cpu" else wall)
        return min(took)

    start = best("opening", lambda: (checkpoints.load_config(name), checkpoints.load_tokenizer(name)), 1)
    whole = best("loading", lambda: checkpoints.load_policy(name), 1)
    model, tokenizer = checkpoints.load_policy(name)
    shape = of_config(model.config)
    weight = next(model.parameters()).element_size()
    ids = torch.randint(len(tokenizer) // 2, (READ_ROWS, TOKENS), device=model.device)

    def reading() -> None:
        with torch.inference_mode():
            model(input_ids=ids, logits_to_keep=1, use_cache=False)

    def decoding(rows: int) -> float:
        """Seconds of one decoding step of so many rows."""
        from harness.models.transformers import Session

        def steps() -> None:
            session.sample(first, draws, temperature=1.0, stop=set())

        import numpy as np

        session = Session(model, tokenizer.pad_token_id)
        first, draws = session.extend(ids[:rows].tolist())[:, -1], np.full((rows, STEPS + 1), 0.5)
        return best(f"decoding {rows} rows", steps) / STEPS

    read_flop = 2 * READ_ROWS * (TOKENS * shape.body + shape.head)
    read = read_flop / best("reading", reading)
    one, many = decoding(1), decoding(DECODE_ROWS)
    row = max(many - one, 0.01 * many) / (DECODE_ROWS - 1)  # seconds that one more row adds to a step
    fixed = max(one - row, 0.01 * one)
    rows = 2 * TRAIN_ROWS * TOKENS * (shape.body + shape.head)

    trained, _ = checkpoints.load_policy(name, dtype=torch.float32)

    def training() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = trained(input_ids=ids[:TRAIN_ROWS], labels=ids[:TRAIN_ROWS], use_cache=False).loss
        loss.backward()
        trained.zero_grad()

    train = 3 * rows / best("training", training)
    today = datetime.date.today().isoformat()
    return Rates(
        source=f"measured {today} on {store.device_name()} with {name}, {shape.parameters / 1e6:.0f}M parameters",
        read=read,
        train=train,
        weights=weight * shape.parameters / fixed,
        decode=2 * shape.parameters / row,
        disk=4 * shape.parameters / max(whole - start, 0.01 * whole),
        start=start,
        bytes_per_weight=weight,
        memory=float(torch.cuda.mem_get_info()[1] if device == "cuda" else psutil.virtual_memory().total),
        process=float(resident),
    )
