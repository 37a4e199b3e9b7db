"""What each stage of the arms takes, from the experiment alone: one pure function a kind of stage.

Every answer counts at its full length, so that an estimate is an upper bound where answers end earlier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from constitutions import Excerpt
from harness import data
from harness.estimate import effort, judging
from harness.estimate.effort import Effort
from harness.estimate.lengths import TURN, Known, tokens
from harness.experiment import GROUP
from harness.graph import Stage, Work
from pipelines import (
    ai_feedback,
    best_of,
    critique_revise,
    dpo,
    preference_model,
    respond,
    rl,
    scored_feedback,
    sft,
    written_prompts,
)


def select(stage: Stage, known: Known) -> Effort:
    """Prompts and pairs are drawn without a model, unless an annotator labels them anew."""
    scale, work = known.experiment.scale, Effort()
    for kind in stage.settings.get("annotators", {}):
        pairs = scale.preference_pairs + 2 * scale.gold_pairs
        work += effort.opened(known.base) + effort.read(known.base, 2 * pairs, known.pair[kind])
    return work


def responses(stage: Stage, known: Known) -> Effort:
    scale, kind = known.experiment.scale, stage.settings["kind"]
    rows = known.prompts(kind) * stage.settings["samples"]
    asked = effort.sample(known.base, rows, scale.max_new_tokens, scale.batch_size, known.prompt[kind])
    return effort.opened(known.base) + asked if rows else Effort()


def written(stage: Stage, known: Known) -> Effort:
    """Twice as many attempts as prompts, as the first round makes; a model that repeats itself needs more."""
    scale, work = known.experiment.scale, effort.opened(known.base)
    for kind, uses in written_prompts.wanted(known.experiment).items():
        rows, length = 2 * sum(uses.values()), (written_prompts.SHOTS + 1) * (known.prompt[kind] + 2 * TURN + 10)
        most = min(written_prompts.TOKENS, scale.max_prompt_tokens)
        work += effort.sample(known.base, rows, most, scale.batch_size, length) if rows else Effort()
    return work


def chains(stage: Stage, known: Known) -> Effort:
    """Of each round, a critique and a revision; what a request sees is read, worked examples once a batch."""
    scale, revise, critique = known.experiment.scale, known.experiment.revise, stage.settings["critique"]
    new, excerpt = scale.max_new_tokens, Excerpt.model_validate(stage.settings["constitution"])
    every = excerpt.critique_revision
    requests = [sum(tokens(getattr(p, part)) for p in every) / len(every) for part in ("critique", "revision")]
    examples = critique_revise.few_shot(excerpt, critique=critique) if revise.few_shot else []
    shared = sum(tokens(message["content"]) for message in examples)
    asked, work = sum(requests) if critique else requests[1], effort.opened(known.base)
    turns = 2 if critique else 1
    for n in range(revise.rounds):
        earlier = n * (asked + turns * (new + TURN)) if revise.context == "chain" else 0
        seen = known.prompt["harmless"] + new + TURN + earlier
        said = [seen + requests[0], new + requests[1]] if critique else [seen + requests[1]]
        for turn, length in enumerate(said):
            rows = known.prompts("harmless")
            work += effort.sample(known.base, rows, new, scale.batch_size, length, shared=0 if turn else shared)
    return work


def finetuning(stage: Stage, known: Known) -> Effort:
    settings, scale = known.experiment.sft, known.experiment.scale
    kept = known.prompts("harmless") - math.ceil(settings.heldout * known.prompts("harmless"))
    revisions = kept * (known.experiment.revise.rounds if settings.train_on == "all" else 1)
    rows = revisions + known.prompts("helpful") * settings.helpful_per_prompt
    length = (known.prompt["harmless"] + known.prompt["helpful"]) / 2 + scale.max_new_tokens
    return effort.opened(known.base, 2) + effort.train(
        known.base,
        rows * settings.epochs,
        length,
        settings.batch_size,
        known.lora,
        logits=length,
        at_once=settings.micro_batch_size or 0,
    )


def preference(stage: Stage, known: Known) -> Effort:
    """Two texts a pair, then the held-out pairs of each kind it is measured on."""
    settings, scale, given = known.experiment.pm, known.experiment.scale, stage.settings
    of_people = {kind: scale.gold_pairs if given["split"] == "gold" else _pairs(kind, known) for kind in given["human"]}
    texts = {known.pair[kind]: 2.0 * n for kind, n in of_people.items()}
    if "labels" in stage.inputs:
        length = min(known.prompt["harmless"] + scale.max_new_tokens, settings.max_length)
        texts[length] = texts.get(length, 0) + 2.0 * data.labels_of_harm(scale)
    rows = sum(texts.values())
    mean = sum(length * n for length, n in texts.items()) / rows
    work = effort.opened(known.base, 3) + effort.train(
        known.base,
        rows * settings.epochs,
        mean,
        2 * settings.batch_size,
        known.lora,
        at_once=2 * (settings.micro_batch_size or settings.batch_size),
    )
    for kind in given["measured_on"]:
        work += effort.read(known.base, 2 * scale.gold_pairs, known.pair[kind])
    return work


def _pairs(kind: str, known: Known) -> int:
    scale = known.experiment.scale
    return min(scale.preference_pairs, data.labels_of_harm(scale)) if kind == "harmless" else scale.preference_pairs


def reinforcement(stage: Stage, known: Known) -> Effort:
    """PPO, RLOO or GRPO: an update samples, scores, reads by reference and policy, and takes `epochs` passes."""
    settings, scale, base = known.experiment.rl, known.experiment.scale, known.base
    new, rows = scale.max_new_tokens, settings.rollouts_per_update
    kinds = stage.settings["prompts"]
    total = sum(known.prompts(kind) for kind in kinds)
    prompt = sum(known.prompts(kind) * known.prompt[kind] for kind in kinds) / total
    step = settings.minibatch_size * settings.gradient_accumulation
    one = effort.sample(base, rows, new, scale.batch_size, prompt)
    one += effort.read(base, rows, min(prompt + new, known.experiment.pm.max_length))  # the PM
    # The reference reads all rows, and PPO's policy those that the forward of its first step does not.
    before = 0 if settings.algorithm in GROUP else max(0, rows - settings.minibatch_size)
    one += effort.read(base, rows + before, prompt + new, logits=new)
    updates = settings.updates + settings.value_pretraining
    trained = effort.train(
        base, rows * settings.epochs, prompt + new, step, known.lora, logits=new, at_once=settings.minibatch_size
    )
    work = _repeated(one, updates) + _repeated(trained, settings.updates)
    if settings.reward_normalisation == "reference":
        work += effort.sample(base, min(total, rows * updates), new, scale.batch_size, prompt)
    saved = settings.snapshots * (base.adapters(known.lora) or base.parameters)
    state = 3 * (base.adapters(known.lora) or base.parameters) * math.ceil(updates / settings.checkpoint_every)
    # Beside the policy in training: the PM, and with full weights the reference.
    beside = 4 * base.parameters * (1 if known.lora is not None else 2)
    return work + effort.opened(base, 3) + Effort(moved=4 * (saved + state), beside=beside)


def _repeated(work: Effort, n: int) -> Effort:
    """The same work n times, its parts kept few: readings and optimiser steps add up, samplings count."""
    parts: list[Any] = []
    for part in work.parts:
        if isinstance(part, effort.Sampling):
            parts.append(replace(part, times=part.times * n))
        elif isinstance(part, effort.Training):
            parts.append(replace(part, flop=part.flop * n, steps=part.steps * n))
        else:
            parts.append(replace(part, flop=part.flop * n))
    return Effort(work.tokens * n, tuple(parts))


def direct_preference(stage: Stage, known: Known) -> Effort:
    """DPO: one optimiser step an update over pairs; the reference reads every pair once."""
    settings, new = known.experiment.rl, known.experiment.scale.max_new_tokens
    kinds = stage.settings["human"]
    length = sum(known.pair[kind] for kind in kinds) / len(kinds)
    pairs = sum(_pairs(kind, known) for kind in kinds)
    if "labels" in stage.inputs:
        pairs += data.labels_of_harm(known.experiment.scale)
    step = settings.minibatch_size * settings.gradient_accumulation
    work = effort.read(known.base, 2 * pairs, length, logits=new)
    work += effort.train(
        known.base,
        2 * step * settings.updates,
        length,
        2 * step,
        known.lora,
        logits=length,
        at_once=2 * settings.minibatch_size,
    )
    return work + effort.opened(known.base, 2 + settings.snapshots)


def labels(stage: Stage, known: Known) -> Effort:
    """Both orders of each pair share the question; with chain of thought each reasons before it answers."""
    cot, model = stage.settings["cot"], known.feedback
    if model is None and not cot:
        return Effort()
    shape = known.base if model is None or "policy" in stage.inputs else model
    excerpt = Excerpt.model_validate(stage.settings["constitution"])
    question = sum(len(p.question) for p in excerpt.comparison) / len(excerpt.comparison) / 4
    examples = ai_feedback.few_shot(excerpt, cot=cot) if known.experiment.feedback.few_shot else []
    shared = sum(tokens(message["content"]) for message in examples)
    pairs = min(stage.settings["most"] or known.prompts("harmless"), known.prompts("harmless"))
    return effort.opened(shape) + judging.asked(shape, pairs, known, "harmless", question, shared, cot=cot)


def scored(stage: Stage, known: Known) -> Effort:
    """A scorer that is no language model of the run: its own size is not known, so its work counts as the base's."""
    scale = known.experiment.scale
    rows = 2 * min(stage.settings["most"] or known.prompts("harmless"), known.prompts("harmless"))
    length = known.prompt["harmless"] + scale.max_new_tokens
    return effort.opened(known.base) + effort.read(known.base, rows, length)


def nothing(stage: Stage, known: Known) -> Effort:
    """Tables and text alone."""
    return Effort()


COSTS: Mapping[Callable[[Work], None], Callable[[Stage, Known], Effort]] = {
    data.select_data: select,
    respond.respond: responses,
    critique_revise.revise: chains,
    sft.finetune: finetuning,
    preference_model.train_pm: preference,
    rl.train_rl: reinforcement,
    dpo.train_dpo: direct_preference,
    ai_feedback.label_pairs: labels,
    scored_feedback.label_pairs: scored,
    best_of.describe: nothing,
    written_prompts.write: written,
}
