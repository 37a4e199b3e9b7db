"""A Hugging Face trainer whose result is that of one worker, whatever their number (`harness.ranks`).

They train as DDP, which accelerate sets up by itself, and take the optimiser steps of one: the same rows in a step, and
the loss a mean over all of them. A checkpoint goes on with any number, the model split over them or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.distributed import checkpoint as torch_checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.utils.data import DataLoader, Dataset
from trl import SFTTrainer

from harness import ranks

STATE = "state"  # in a checkpoint: weights and moments


class TorchCheckpoints:
    """Mixin of a Trainer whose checkpoints are torch's own: what is trained, split or whole, for any number of workers.

    transformers keeps none of a model that is split. The scheduler is left out: the learning rate is constant.
    """

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        folder = Path(output_dir or self.args.output_dir)  # type: ignore[attr-defined]  # a Trainer's
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that one worker has no group
            torch_checkpoint.save(self._state(), checkpoint_id=folder / STATE)
        self._save_rng_state(str(folder))  # type: ignore[attr-defined]  # a Trainer's

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights are loaded with the optimiser's moments, once there is an optimiser."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = self._state()
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            torch_checkpoint.load(state, checkpoint_id=Path(checkpoint) / STATE)
        weights, moments = state["model"], state["optimizer"]
        options = StateDictOptions(strict=False)  # what is frozen is not there
        set_state_dict(*self._trained(), model_state_dict=weights, optim_state_dict=moments, options=options)

    def _state(self) -> dict[str, Any]:
        weights, moments = get_state_dict(*self._trained(), options=StateDictOptions(ignore_frozen_params=True))
        return {"model": weights, "optimizer": moments}

    def _trained(self) -> tuple[Any, Any]:
        trainer: Any = self
        return trainer.model, getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate's is a wrapper


class AnyWorkers(TorchCheckpoints):
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


class SharedSFTTrainer(AnyWorkers, SFTTrainer):
    """TRL's SFTTrainer, whose loss is a mean over the tokens of all workers."""

    def blank(self, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"labels": [-100] * len(row["input_ids"])}
