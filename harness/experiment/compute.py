"""What each kind of stage needs of a machine, for runners that carry out several at once; no result depends on it."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from harness.experiment.section import Section

TRAININGS = ("sft", "pm", "rl")  # kinds of stages


class Need(Section):
    """Of each worker of one stage; what is left out is derived from the machines that are there."""

    workers: int | None = Field(None, ge=1, le=10**4)
    """Workers that carry out one stage together (Ray alone; else one)."""
    cpus: float | None = Field(None, gt=0, le=10**5)
    """Cores."""
    gpus: float | None = Field(None, ge=0, le=10**4)
    """GPUs; below 1, stages share one."""
    memory: float | None = Field(None, gt=0, le=10**6)
    """GiB that must be free of other stages."""
    shard: bool = False
    """Whether the workers of a training split the trained model between them (FSDP2); else each has all of it."""


class Compute(Section):
    """By kind of stage."""

    sample: Need = Need()
    """Answers and chains."""
    label: Need = Need()
    """AI feedback."""
    score: Need = Need()
    """PM scores and KL."""
    sft: Need = Need()
    """Supervised fine-tuning."""
    pm: Need = Need()
    """Training of preference models."""
    rl: Need = Need()
    """RL."""
    model: Need = Need()
    """Anything else that loads a model: judges, arms of your own."""
    table: Need = Need()
    """Data, tables, figures."""

    @model_validator(mode="after")
    def _shards_of_trainings(self) -> Self:
        for kind in type(self).model_fields:
            need: Need = getattr(self, kind)
            if need.shard and kind not in TRAININGS:
                raise ValueError(f"{kind}: nothing is trained, so there is nothing to shard; leave `shard` out")
            if need.shard and (need.workers or 1) == 1:
                raise ValueError(f"{kind}: one worker has nothing to shard; give `workers`, or leave `shard` out")
        return self

    @field_validator("table")
    @classmethod
    def _one_worker(cls, need: Need) -> Need:
        if (need.workers or 1) > 1:
            raise ValueError("a table is made by one worker; leave `workers` out")
        return need
