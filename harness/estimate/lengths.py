"""How long texts are, in tokens, before any tokenizer is asked; and what else an estimate knows of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import constitutions
from constitutions import Constitution
from harness import data
from harness.errors import UserError
from harness.estimate.effort import Shape
from harness.experiment import Experiment, Lora

CHARACTERS = 4  # a token of English, as in harness.data
TURN = 5  # tokens of a chat template around a message
PROMPT = {"harmless": 17.0, "helpful": 17.0}  # where the data are on the hub: HH-RLHF's first turns, mean of 1,500
PAIR = {"harmless": 171.0, "helpful": 171.0}  # the same, of its whole conversations (harmless-base, train)


@dataclass(frozen=True)
class Known:
    """What efforts are computed from. prompt, pair: mean tokens of a prompt, and of a compared conversation."""

    experiment: Experiment
    base: Shape
    feedback: Shape | None  # None: behind a server, or no language model
    prompt: Mapping[str, float]
    pair: Mapping[str, float]
    constitution: Constitution
    notes: tuple[str, ...] = ()

    @property
    def lora(self) -> Lora | None:
        return self.experiment.lora

    def prompts(self, kind: str) -> int:
        scale = self.experiment.scale
        redteam = scale.redteam_prompts + scale.written_prompts.chains
        return redteam if kind == "harmless" else scale.helpful_prompts


def tokens(text: str) -> float:
    """Of a message in a chat template."""
    return len(text) / CHARACTERS + TURN


def of(experiment: Experiment, shape: Shape | None = None) -> Known:
    """What is known of `experiment`; its data are read where none is on the hub. Raises UserError for what is missing.

    shape: of every model of the run, where it is not to be had by its name.
    """
    prompt, pair, notes = dict(PROMPT), dict(PAIR), []
    if data.is_local(experiment.data):
        prompts, pairs, _ = data.select(experiment.data, experiment.scale, experiment.seed)
        for kind in data.KINDS:
            prompt[kind] = float(prompts.loc[prompts["kind"] == kind, "prompt"].map(tokens).mean())
            of_kind = pairs[pairs["kind"] == kind]
            answers = (of_kind["chosen"].map(tokens) + of_kind["rejected"].map(tokens)).mean() / 2
            pair[kind] = float(of_kind["prompt"].map(tokens).mean() + answers)
    else:
        prompt = {kind: n + TURN for kind, n in prompt.items()}
        notes.append(
            "the data are on the hub and were not read: prompts count as 17 tokens, compared conversations as 171, the "
            "means of 1,500 of HH-RLHF's harmless-base"
        )
    longest = experiment.pm.max_length
    pair = {kind: min(n, longest) for kind, n in pair.items()}
    base = shape or shape_of(experiment.models.base)
    named = experiment.models.feedback
    feedback: Shape | None = base
    if named is not None and named.startswith(("server:", "scorer:", "pm:")):
        feedback = None
        notes.append(f"what {named.partition(':')[0]} {named.partition(':')[2]} does is not counted")
    elif named is not None:
        feedback = shape or shape_of(named)
    return Known(experiment, base, feedback, prompt, pair, constitutions.load(experiment.constitution), tuple(notes))


def shape_of(name: str) -> Shape:
    """The shape of a model by its config. Raises UserError where it is not to be had."""
    from harness.estimate.effort import of_config
    from harness.models import checkpoints

    try:
        return of_config(checkpoints.load_config(name))
    except UserError as error:
        raise UserError(f"{error}; or give its size: --parameters 7e9") from error
