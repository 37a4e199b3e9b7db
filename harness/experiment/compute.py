"""What each kind of stage needs of a machine, for runners that carry out several at once; no result depends on it."""

from __future__ import annotations

from pydantic import Field

from harness.experiment.section import Section


class Need(Section):
    """Of one stage; what is left out is derived from the machines that are there."""

    cpus: float | None = Field(None, gt=0, le=10**5)
    gpus: float | None = Field(None, ge=0, le=10**4, description="below 1: stages share one")
    memory: float | None = Field(None, gt=0, le=10**6, description="GiB that must be free of other stages")


class Compute(Section):
    """By kind of stage."""

    sample: Need = Need()  # answers and chains
    label: Need = Need()  # AI feedback
    score: Need = Need()  # PM scores and KL
    sft: Need = Need()
    pm: Need = Need()
    rl: Need = Need()
    model: Need = Need()  # anything else that loads a model: judges, arms of your own
    table: Need = Need()  # data, tables, figures
