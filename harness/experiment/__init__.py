"""Experiment: one YAML file says what a run is. Every key has a default; an unknown key is an error.

`experiment.py` has the whole and reads it, `inputs.py` the sections of what a run is given, `training.py` those of how
it trains.
"""

from harness.experiment.experiment import ARMS, Experiment, load
from harness.experiment.inputs import Data, Models, Pairs
from harness.experiment.training import GROUP, Feedback, Lora, Pm, Revise, Rl, Scale, Sft

__all__ = [
    "ARMS",
    "GROUP",
    "Data",
    "Experiment",
    "Feedback",
    "Lora",
    "Models",
    "Pairs",
    "Pm",
    "Revise",
    "Rl",
    "Scale",
    "Sft",
    "load",
]
