"""Experiment: one YAML file says what a run is. Every key has a default; an unknown key is an error.

`experiment.py` has the whole and reads it, `inputs.py` the sections of what a run is given, `training.py` those of how
it trains, `compute.py` that of the machines.
"""

from harness.experiment.compute import Compute, Need
from harness.experiment.experiment import ARMS, Experiment, load
from harness.experiment.inputs import Data, Models, Pairs
from harness.experiment.training import GROUP, Feedback, Lora, Pm, Revise, Rl, Scale, Sft

__all__ = [
    "ARMS",
    "GROUP",
    "Compute",
    "Data",
    "Experiment",
    "Feedback",
    "Lora",
    "Models",
    "Need",
    "Pairs",
    "Pm",
    "Revise",
    "Rl",
    "Scale",
    "Sft",
    "load",
]
