"""How a run trains: how much of everything, and the settings of each method."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from harness.experiment.section import Batch, Count, Epochs, Rate, Section, Tokens
from harness.models.open import Engine


class Written(Section):
    """Prompts that the base model writes, beside those of people (`pipelines.written_prompts`): none by default."""

    chains: int = Field(0, ge=0, le=10**9)
    """Red-team prompts for chains, AI feedback and RL."""
    rl: int = Field(0, ge=0, le=10**9)
    """More of each kind, for RL alone."""


class Scale(Section):
    """How much of everything."""

    redteam_prompts: int = Field(24, ge=2, le=10**9)
    """Red-team prompts for chains, labels and RL."""
    helpful_prompts: int = Field(24, ge=2, le=10**9)
    """Helpfulness prompts for fine-tuning and RL."""
    heldout_prompts: int = Field(16, ge=2, le=10**9)
    """Held-out prompts of each kind, for the suites."""
    samples_per_prompt: int = Field(1, ge=1, le=10**6)
    """Answers of each arm to a held-out prompt."""
    written_prompts: Written = Written()
    """Prompts that a model writes, few-shot, beside those of the data."""
    preference_pairs: int = Field(32, ge=4, le=10**9)
    """Human pairs of each kind that the arms learn from."""
    gold_pairs: int = Field(32, ge=4, le=10**9)
    """Human pairs of each kind that only the gold PMs see."""
    equal_labels: bool = True
    """Whether hh_rlhf learns from as many labels of harm as rl_cai: the fewer of `redteam_prompts` and
    `preference_pairs`."""
    max_new_tokens: Tokens = 32
    """Tokens of an answer, at most."""
    max_prompt_tokens: int = Field(128, ge=8, le=10**6)
    """Longer prompts are left out."""
    batch_size: Batch = 32
    """Texts generated or scored at once; no result depends on it."""
    best_of: int = Field(8, ge=2, le=10**4)
    """Answers of SL-CAI of which the arm best_of_n picks one."""


class Lora(Section):
    """Low-rank adapters on the linear layers of every block."""

    rank: int = Field(16, ge=1, le=10**5)
    """Rank of the adapters."""
    alpha: int = Field(32, ge=1, le=10**6)
    """Their scale is `alpha / rank`."""
    top_layers: int | None = Field(None, ge=1, le=10**5)
    """Adapt only so many of the uppermost blocks; `null`: all of them."""


class _Training(Section):
    """What every supervised training has."""

    batch_size: Batch = 8
    """Rows in an optimiser step."""
    micro_batch_size: Batch | None = None
    """Of these, how many are computed at once; `null`: all. The result is the same."""

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class Sft(_Training):
    """SL-CAI's fine-tuning: revisions of red-team answers mixed with helpful-only answers (paper, section 3.1)."""

    epochs: Epochs = 1.0
    """Passes over the examples."""
    learning_rate: Rate = 2e-4
    """Peak learning rate."""
    train_on: Literal["final", "all"] = "final"
    """`final` takes the last revision of each chain, `all` every one."""
    helpful_per_prompt: int = Field(1, ge=0, le=10**4)
    """Helpful-only answers to each helpfulness prompt that are mixed in."""
    heldout: float = Field(0.05, ge=0, le=0.5)
    """Share of the chains that is kept back to tell what was learned; at least one chain, unless 0."""


class Revise(Section):
    """The critique-revision chain."""

    rounds: int = Field(4, ge=1, le=16)
    """Rounds of critique and revision in a chain."""
    critique: bool = True
    """`false` revises directly, without a critique (Figure 7)."""
    also_direct: bool = False
    """Makes a second, direct set of chains that is only measured (Figure 7)."""
    also_principles: tuple[Annotated[int, Field(ge=1, le=10**4)], ...] = ()
    """Makes further chains by so many principles each, which are only measured (Figure 6)."""
    context: Literal["latest", "chain"] = "latest"
    """What a request sees: the prompt and the `latest` answer, or the whole `chain`."""
    replacement: bool = True
    """Whether a principle may come twice in a chain; `false`: not before all have been used."""
    temperature: float = Field(1.0, ge=0, le=100)
    """Temperature of sampling in chains."""
    few_shot: bool = True
    """Whether worked examples precede a chain."""

    @field_validator("also_principles")
    @classmethod
    def _each_once(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(numbers)) < len(numbers):
            raise ValueError("a number of principles is named twice")
        return numbers


class Feedback(Section):
    """AI labels (paper, section 4.1)."""

    clamp: tuple[float, float] | None = (0.4, 0.6)
    """Bounds of labels with chain of thought; `null` leaves them as they are."""
    cot_tokens: Tokens = 48
    """Tokens of a reasoning, at most."""
    few_shot: bool = True
    """Whether worked examples precede a comparison."""

    @model_validator(mode="after")
    def _ordered(self) -> Feedback:
        if self.clamp is not None and not 0 <= self.clamp[0] < self.clamp[1] <= 1:
            raise ValueError("clamp must be two numbers, low < high, within 0 and 1")
        return self


class Pm(_Training):
    """Preference models; `variants` of rl_cai's are trained beside it and only measured (claims 15 and 16)."""

    epochs: Epochs = 2.0
    """Passes over the pairs."""
    learning_rate: Rate = 5e-4
    """Peak learning rate."""
    max_length: int = Field(256, ge=16, le=10**6)
    """Tokens of a conversation, at most; a longer one loses its beginning."""
    center_rewards: float = Field(0.0, ge=0, le=1000)
    """Weight of the mean square of a pair's summed scores in the loss, which keeps scores near 0 (Eisenstein et al.
    2023, who take 0.01). Without it, those learnt from few pairs may all drift far from 0 and hardly differ."""
    variants: tuple[Literal["hard", "one_principle"], ...] = ()
    """Further PMs of rl_cai, trained on `hard` labels or by `one_principle`, which are only measured (claims 15 and
    16)."""


class Rl(Section):
    """RL against a PM. `ppo` is the paper's; `rloo`, `grpo` and `dpo` are TRL's algorithms on the same data.

    An update is `rollouts_per_update` answers and `epochs` passes over them, in optimiser steps of minibatch_size x
    gradient_accumulation; with dpo, which samples nothing, one optimiser step. kl_coef is DPO's beta.
    """

    algorithm: Literal["ppo", "rloo", "grpo", "dpo"] = "ppo"
    """`ppo` is the paper's; `rloo`, `grpo` and `dpo` are TRL's, on the same data."""
    updates: Count = 6
    """Updates of the policy."""
    rollouts_per_update: Batch = 8
    """Answers sampled for an update."""
    minibatch_size: Batch = 8
    """Answers in a minibatch."""
    gradient_accumulation: Batch = 1
    """Minibatches in an optimiser step."""
    epochs: int = Field(1, ge=1, le=10**4)
    """Passes over the answers of an update."""
    learning_rate: Rate = 2e-4
    """Learning rate."""
    kl_coef: float = Field(0.05, ge=0, le=1000)
    """Weight of the KL to the start of RL; with `dpo`, its beta."""
    kl_target: float | None = Field(None, gt=0, le=10**6)
    """A KL in nats per answer, held by adapting `kl_coef`; `null` leaves `kl_coef` as it is."""
    missing_eos_penalty: float = Field(0.0, ge=0, le=10**6)
    """Taken from the reward of an answer that was cut at the length limit."""
    reward_normalisation: Literal["none", "running", "reference"] = "none"
    """What PPO makes of a PM score: its distance from the mean of all so far in standard deviations (`running`), or
    from the score of an answer of the start policy to the same prompt (`reference`)."""
    value_pretraining: int = Field(0, ge=0, le=10**6)
    """Updates of PPO's value head before the policy moves."""
    snapshots: int = Field(2, ge=0, le=10**6)
    """Snapshots saved along the run, the last update not counted."""
    result: str = "last"
    """Which update counts as an arm's result: the `last`, the snapshot with the `best_proxy` (its own PM's score),
    or that nearest to a KL (`kl:NATS`). The choice sees training prompts only."""
    checkpoint_every: Count = 1
    """Updates between checkpoints to resume from."""
    engine: Engine = "transformers"
    """What samples the rollouts of `ppo`, `rloo` and `grpo`."""

    @field_validator("result")
    @classmethod
    def _a_rule(cls, rule: str) -> str:
        if rule not in ("last", "best_proxy") and not (re.fullmatch(r"kl:\d+(\.\d+)?", rule) and float(rule[3:]) > 0):
            raise ValueError(f"unknown rule {rule!r}; choose last, best_proxy or kl:NATS, such as kl:5")
        return rule

    @model_validator(mode="after")
    def _every_key_counts(self) -> Rl:
        """What an algorithm does not use is refused where it differs from the default."""
        unused = {"ppo": (), "rloo": _PPO_ONLY, "grpo": _PPO_ONLY, "dpo": (*_SAMPLING, *_PPO_ONLY)}
        for key in unused[self.algorithm]:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} means nothing to rl.algorithm {self.algorithm}; leave it out, or use ppo")
        if self.result != "last" and (self.algorithm == "dpo" or self.snapshots == 0):
            why = "dpo has no PM and no KL to choose by" if self.algorithm == "dpo" else "there are no rl.snapshots"
            raise ValueError(f"rl.result chooses between snapshots, and {why}; use last")
        if self.algorithm == "dpo" and self.kl_coef == 0:
            raise ValueError("kl_coef is DPO's beta, which cannot be 0; give a positive number, such as 0.1")
        step, group = self.minibatch_size * self.gradient_accumulation, GROUP.get(self.algorithm)
        if group and (self.rollouts_per_update % group or self.rollouts_per_update % step):
            raise ValueError(
                f"{self.algorithm} samples {group} answers a prompt, so it needs a rollouts_per_update that is a "
                f"multiple of {group} and of minibatch_size x gradient_accumulation ({step}), got "
                f"{self.rollouts_per_update}"
            )
        return self


GROUP = {"rloo": 2, "grpo": 4}  # answers a prompt, which such an algorithm compares with one another
_SAMPLING = ("rollouts_per_update", "epochs", "missing_eos_penalty", "engine")  # keys of algorithms that sample
_PPO_ONLY = ("kl_target", "reward_normalisation", "value_pretraining")
