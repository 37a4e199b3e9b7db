"""What the stages of the suites take: answers of every arm, scores of gold and proxy PMs, judges.

Statistics and the sentence encoder run beside models of any size in seconds to minutes and are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.estimate import effort
from harness.estimate.effort import Effort
from harness.estimate.judging import asked
from harness.estimate.lengths import Known
from harness.graph import Stage, Work
from suites import along_rl, chosen, goodharting, judge_quality, judge_stage, learned, registry, sample, stages, written

KINDS = sample.KINDS


def _answers(known: Known, kind: str | None = None) -> int:
    """Held-out answers of one checkpoint."""
    scale = known.experiment.scale
    return scale.heldout_prompts * scale.samples_per_prompt * (1 if kind else len(KINDS))


def _length(known: Known) -> float:
    scale = known.experiment.scale
    prompt = sum(known.prompt[kind] for kind in KINDS) / len(KINDS)
    return min(prompt + scale.max_new_tokens, known.experiment.pm.max_length)


def _checkpoints(policy: Stage | None, known: Known) -> int:
    """How many of an arm are sampled: its last, and its snapshots along RL."""
    along = policy is not None and any(name.startswith("rl.updates") for name in policy.settings)
    return 1 + (known.experiment.rl.snapshots if along else 0)


def sampled(stage: Stage, known: Known) -> Effort:
    scale, n = known.experiment.scale, _checkpoints(stage.inputs.get("policy"), known)
    prompt = _length(known) - scale.max_new_tokens
    one = effort.sample(known.base, _answers(known), scale.max_new_tokens, scale.batch_size, prompt)
    return (effort.opened(known.base) + one).times(n)


def best(stage: Stage, known: Known) -> Effort:
    scale = known.experiment.scale
    rows, prompt = _answers(known) * scale.best_of, _length(known) - scale.max_new_tokens
    return (
        effort.opened(known.base, 2)
        + effort.sample(known.base, rows, scale.max_new_tokens, scale.batch_size, prompt)
        + effort.read(known.base, rows, _length(known))
    )


def responses(stage: Stage, known: Known) -> Effort:
    """The gold PMs read every answer to a prompt of their kind."""
    every = [source for role, source in stage.inputs.items() if role.startswith("sample.")]
    rows = sum(_checkpoints(source.inputs.get("policy"), known) for source in every) * _answers(known)
    return effort.opened(known.base, len(KINDS)) + effort.read(known.base, rows, _length(known))


def chains(stage: Stage, known: Known) -> Effort:
    """Both gold PMs read every revision."""
    sets = sum(role.startswith("chains.") for role in stage.inputs)
    rows = len(KINDS) * sets * known.prompts("harmless") * (known.experiment.revise.rounds + 1)
    return effort.opened(known.base, len(KINDS)) + effort.read(known.base, rows, _length(known))


def reward(stage: Stage, known: Known) -> Effort:
    rows = 2 * _answers(known, "one") * len(stage.settings["kinds"])
    return effort.opened(known.base) + effort.read(known.base, rows, _length(known))


def likelihood(stage: Stage, known: Known) -> Effort:
    kept = max(1, round(known.prompts("harmless") * known.experiment.sft.heldout))
    rows = kept * (known.experiment.revise.rounds if known.experiment.sft.train_on == "all" else 1)
    new = known.experiment.scale.max_new_tokens
    return (effort.opened(known.base) + effort.read(known.base, rows, _length(known), logits=new)).times(2)


def along(stage: Stage, known: Known) -> Effort:
    """Proxy PM, policy and reference read every checkpoint's answers to red-team prompts."""
    n, rows, new = 1 + known.experiment.rl.snapshots, _answers(known, "one"), known.experiment.scale.max_new_tokens
    scores = effort.opened(known.base, 2) + effort.read(known.base, n * rows, _length(known))
    divergence = effort.opened(known.base, n) + effort.read(known.base, 2 * n * rows, _length(known), logits=new)
    return scores + divergence + Effort(beside=4 * known.base.parameters)


def choice(stage: Stage, known: Known) -> Effort:
    """Answers of every checkpoint to training prompts, and their score or KL."""
    scale, n = known.experiment.scale, 1 + known.experiment.rl.snapshots
    prompt = _length(known) - scale.max_new_tokens
    one = effort.opened(known.base, 2)
    one += effort.sample(known.base, chosen.PROMPTS, scale.max_new_tokens, scale.batch_size, prompt)
    return (one + effort.read(known.base, 2 * chosen.PROMPTS, _length(known))).times(n)


def judges(stage: Stage, known: Known) -> Effort:
    """Each judge compares held-out pairs, damaged answers and the shipped pairs; scorers read each text once."""
    scale, work = known.experiment.scale, Effort()
    damaged = min(judge_quality.MOST, len(known.experiment.arms) * _answers(known, "one"))
    shipped = len(judge_quality.nonevasive_pairs())
    for name in stage.settings["judges"]:
        for kind in KINDS:
            more = shipped if kind == "harmless" else 0
            if name.startswith(("gold_pm", "pm", "scorer")):
                work += effort.opened(known.base) + effort.read(known.base, 2 * scale.gold_pairs, known.pair[kind])
                whole, third = _length(known), _length(known) - 2 / 3 * scale.max_new_tokens
                work += effort.read(known.base, 3 * damaged + 2 * more, whole)  # as they are, moved, scrambled
                work += effort.read(known.base, damaged, third)  # truncated
            elif name.startswith(("model", "feedback")) and known.feedback is not None:
                pairs = scale.gold_pairs + len(judge_quality.PLANTED) * damaged + more
                work += effort.opened(known.feedback) + asked(known.feedback, pairs, known, kind, 30)
    return work


def nothing(stage: Stage, known: Known) -> Effort:
    """Tables and text alone."""
    return Effort()


def suite(stage: Stage, known: Known) -> Effort | None:
    """A suite's models, by what it needs; None for a user's own."""
    name, needs = stage.settings["suite"], set(stage.settings["needs"])
    if name not in registry.names():
        return None
    work, arms = Effort(), len(known.experiment.arms)
    if "scorer" in needs:  # the exploit probe reads changed answers
        texts = goodharting.PROBE_SIZE * (1 + arms * goodharting.PROBED)
        work += effort.opened(known.base) + effort.read(known.base, texts, _length(known))
    asks = [judge for judge in known.experiment.models.judge if judge.startswith(("model:", "feedback"))]
    if "compare" in needs and asks and known.feedback is not None:
        pairs = arms * (arms - 1) // 2 * _answers(known, "one")
        for kind in KINDS:
            work += (effort.opened(known.feedback) + asked(known.feedback, pairs, known, kind, 30)).times(len(asks))
    if "models" in needs and known.feedback is not None:
        work += effort.opened(known.feedback) + asked(known.feedback, 438, known, "harmless", 30)
        work += asked(known.feedback, 438 * stages.REASONINGS, known, "harmless", 30, cot=True)
    return work


COSTS: Mapping[Callable[[Work], None], Callable[[Stage, Known], Effort | None]] = {
    sample.sample_arm: sampled,
    sample.sample_best: best,
    sample.score_responses: responses,
    sample.score_chains: chains,
    learned.measure_reward: reward,
    learned.measure_likelihood: likelihood,
    along_rl.measure_along: along,
    chosen.choose: choice,
    judge_stage.measure_judges: judges,
    stages.measure: suite,
    written.measure: nothing,
}
