"""What every Hugging Face or TRL trainer of the pipelines shares: arguments, resuming, progress, precision."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging as hf_logging

from harness import ranks, store
from harness.errors import UserError
from harness.graph import Progress
from harness.models import checkpoints


def arguments(folder: Path, *, seed: int, report_to: str, save_steps: int) -> dict[str, Any]:
    """Keyword arguments for a TRL trainer's config that checkpoints into `folder` every `save_steps` steps.

    bf16 is TRL's default and must be switched off by name where the device is slow in it.
    """
    on_gpu = checkpoints.device() == "cuda"
    return {
        "output_dir": str(folder),
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": max(1, save_steps),
        "save_only_model": True,  # `TorchCheckpoints` saves the optimiser's moments with it
        "save_total_limit": 1,
        "logging_steps": 1,
        "report_to": report_to,
        "bf16": on_gpu,
        "use_cpu": checkpoints.device() == "cpu",  # without it accelerate takes no notice of other workers on CPUs
        "activation_checkpointing": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu,
        "lr_scheduler_type": "constant",
    }


def batches(size: int, micro: int | None, key: str) -> dict[str, Any]:
    """Keyword arguments for optimiser steps on `size` rows of all workers.

    Each worker has at most `micro` at once (None: all). Raises UserError, which names `key`, where the workers do not
    divide the rows.
    """
    own = ranks.divided(size, key)
    at_once = math.gcd(micro or own, own)
    return {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": own // at_once}


def run(trainer: Any, folder: Path, progress: Progress, note: str) -> None:
    """Train, from the last whole checkpoint in `folder` if there is one, and remove the checkpoints.

    Raises UserError when the loss is not finite.
    """
    hf_logging.set_verbosity_error()
    trainer.add_callback(_Heard(progress, note))
    trainer.pop_callback(_printer())
    if trainer.accelerator.num_processes != ranks.size():
        raise RuntimeError(f"accelerate sees {trainer.accelerator.num_processes} workers where {ranks.size()} train")
    trainer.train(resume_from_checkpoint=ranks.told(last_checkpoint(folder) if ranks.main() else None))
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    if any(not abs(float(loss)) < float("inf") for loss in losses):
        raise UserError(f"{note}: the training loss is not finite; lower the learning rate in the experiment file")
    for checkpoint in folder.glob("checkpoint-*"):  # the tracker's log stays
        store.remove(checkpoint)


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint in `folder` that was written whole; a torn one, left by a kill, is removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1])) if folder.is_dir() else []
    while found:
        newest = found.pop()
        if (newest / "trainer_state.json").is_file():  # the trainer writes it last
            return str(newest)
        shutil.rmtree(newest)
    return None


def _printer() -> Any:
    from transformers import PrinterCallback

    return PrinterCallback


class _Heard(TrainerCallback):
    """Tells a Progress of each optimiser step."""

    def __init__(self, progress: Progress, note: str):
        self.progress, self.note = progress, note

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.advance(state.global_step, state.max_steps, self.note)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:  # the last log of a training is of its time
            self.progress.row({"step": state.global_step} | logs)


class Snapshots(TrainerCallback):
    def __init__(self, save: Callable[[Any, int], None], steps: Sequence[int]):
        self.save, self.steps = save, set(steps)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            self.save(model, state.global_step)
