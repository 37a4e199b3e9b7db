"""What each kind of stage needs of a machine, for runners that carry out several at once; no result depends on it."""

from __future__ import annotations

from pydantic import Field, field_validator

from harness.experiment.section import Section


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

    @field_validator("table")
    @classmethod
    def _one_worker(cls, need: Need) -> Need:
        if (need.workers or 1) > 1:
            raise ValueError("a table is made by one worker; leave `workers` out")
        return need
