"""What every Hugging Face or TRL trainer of the pipelines shares: arguments, rows, resuming, progress, precision.

Several workers (`harness.ranks`) train as DDP, which accelerate sets up by itself, and take the optimiser steps of one:
the same rows in a step, whatever their number, and the loss a mean over all of them.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback
from transformers.utils import logging as hf_logging
from trl import SFTTrainer

from harness import ranks, store
from harness.errors import UserError
from harness.graph import Progress
from harness.models import checkpoints


def arguments(folder: Path, *, seed: int, report_to: str, save_steps: int, split: bool) -> dict[str, Any]:
    """Keyword arguments for a TRL trainer's config that checkpoints into `folder` every `save_steps` steps.

    split: the model is (`harness.models.sharded`), and transformers keeps no checkpoints of it to resume from. bf16 is
    TRL's default and must be switched off by name where the device is slow in it.
    """
    on_gpu = checkpoints.device() == "cuda"
    return {
        "output_dir": str(folder),
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "no" if split else "steps",
        "save_steps": max(1, save_steps),
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


class StepsShared:
    """Mixin of a Trainer: each worker reads its share of the rows of an optimiser step, which are those of one worker.

    accelerate's own shares are equal because rows come twice; a worker that has no row here reads a `blank` one.
    """

    def blank(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row like `row` that counts nothing."""
        raise NotImplementedError

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()  # type: ignore[misc]  # a mixin: a Trainer comes after it
        if ranks.size() == 1:
            return loader
        args: Any = self.args  # type: ignore[attr-defined]  # a Trainer's
        at_once = args.per_device_train_batch_size
        step = at_once * args.gradient_accumulation_steps * ranks.size()
        shares = _Shares(len(loader.dataset), step, at_once, args.data_seed)
        rows, pinned = _Blank(loader.dataset, self.blank(loader.dataset[0])), args.dataloader_pin_memory
        return _Loader(rows, batch_sampler=shares, collate_fn=loader.collate_fn, pin_memory=pinned)


@dataclass
class _Blank(Dataset[Any]):
    """Rows, and a blank one after the last."""

    rows: Any
    blank: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.blank if i == len(self.rows) else self.rows[i]


class SharedSFTTrainer(StepsShared, SFTTrainer):
    """TRL's SFTTrainer, whose loss is a mean over the tokens of all workers."""

    def blank(self, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"labels": [-100] * len(row["input_ids"])}


class _Shares:
    """A batch sampler: a worker's shares of optimiser steps of `step` rows, which are those that one worker has."""

    def __init__(self, rows: int, step: int, at_once: int, seed: int):
        self.rows, self.step, self.at_once = rows, step, at_once
        self.order = SeedableRandomSampler(range(rows), data_seed=seed)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.order)
        for start in range(0, self.rows, self.step):
            for part in ranks.portions(order[start : start + self.step], self.at_once):
                yield part or [self.rows]

    def __len__(self) -> int:
        whole, rest = divmod(self.rows, self.step)
        return sum(n * len(ranks.portions(range(size), self.at_once)) for n, size in ((whole, self.step), (1, rest)))

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)


class _Loader(DataLoader[Any]):
    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]  # a _Shares


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
