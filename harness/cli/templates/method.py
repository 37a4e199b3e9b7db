"""my_method: the pretrained model fine-tuned on the answers that people chose. Put your own method in its place.

Name this file and the arm in an experiment, then train it beside the paper's arms with `cai run`:

    methods: [my_method.py]
    arms: [pretrained, helpful_only, sl_cai, rl_cai, my_method]
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from harness.experiment import Experiment
from harness.graph import Stage, Work
from pipelines.arms import Training


def arms(experiment: Experiment, training: Training) -> Mapping[str, Stage]:
    """The stages that this file adds, by arm. `training` has what the paper's arms are made of:

    training.data (prompts and preferences), training.arms["sl_cai"], training.pms["pm.rl_cai"], training.labels, and
    training.build, which makes further stages of their kinds: build.rl(...), build.pm(...), build.finetune(...).
    """
    return {
        "my_method": Stage(
            "my_method",
            train,
            # All that the function reads of the experiment; reading another key is an error. `human`: the kinds of
            # human labels it learns from, which the report counts.
            experiment.settings("seed", "sft", "pm.max_length") | {"human": ["helpful", "harmless"]},
            # Stages whose results it reads.
            {"data": training.data},
            # Models whose weights it loads.
            models={"base": experiment.models.base},
        )
    }


def train(work: Work) -> None:
    """Leaves a checkpoint in work.folder / "model"; sampling, suites and report come by themselves."""
    from pipelines import sft

    pairs = pd.read_parquet(work.inputs["data"] / "preferences.parquet")  # kind, split, prompt, chosen, rejected, p
    pairs = pairs[(pairs["split"] == "train") & pairs["kind"].isin(work.settings.human)]  # gold and heldout only judge
    examples = pairs.rename(columns={"chosen": "response"})[["prompt", "response"]]
    tokens = sft.train(
        work.models["base"],
        examples,
        work.folder,
        work.settings.sft,
        lora=None,  # all weights; give a harness.experiment.Lora for adapters, which are merged at the end
        max_length=work.settings.pm.max_length,
        seed=work.settings.seed,
        report_to="none",
        progress=work.progress,
    )
    work.count(tokens)
