"""How a run trains: how much of everything, and the settings of each method."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from harness.experiment.section import Batch, Count, Epochs, Rate, Section, Tokens
from harness.models.open import Engine


class Written(Section):
    """Prompts that the base model writes, beside those of people (`pipelines.written_prompts`): none by default."""

    chains: int = Field(0, ge=0, le=10**9, description="red-team prompts for chains, AI feedback and RL")
    rl: int = Field(0, ge=0, le=10**9, description="more of each kind, for RL alone")


class Scale(Section):
    """How much of everything."""

    redteam_prompts: int = Field(24, ge=2, le=10**9)
    helpful_prompts: int = Field(24, ge=2, le=10**9)
    heldout_prompts: int = Field(16, ge=2, le=10**9, description="of each kind, for the suites")
    samples_per_prompt: int = Field(1, ge=1, le=10**6)
    written_prompts: Written = Written()
    preference_pairs: int = Field(32, ge=4, le=10**9, description="human pairs of each kind, for the arms")
    gold_pairs: int = Field(32, ge=4, le=10**9, description="pairs of each kind that only the gold PMs see")
    # hh_rlhf learns from as many labels of harm as rl_cai: the fewer of redteam_prompts (a pair each) and
    # preference_pairs. False: from all there are
    equal_labels: bool = True
    max_new_tokens: Tokens = 32
    max_prompt_tokens: int = Field(128, ge=8, le=10**6, description="longer prompts are left out")
    batch_size: Batch = Field(32, description="for generation and scoring")
    best_of: int = Field(8, ge=2, le=10**4, description="answers of SL-CAI of which arm best_of_n is the best")


class Lora(Section):
    rank: int = Field(16, ge=1, le=10**5)
    alpha: int = Field(32, ge=1, le=10**6)
    top_layers: int | None = Field(None, ge=1, le=10**5)


class _Training(Section):
    """What every supervised training has."""

    batch_size: Batch = Field(8, description="rows in an optimiser step")
    micro_batch_size: Batch | None = Field(None, description="of them at once; None: all")

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class Sft(_Training):
    """SL-CAI's fine-tuning: revisions of red-team answers mixed with helpful-only answers (paper, section 3.1)."""

    epochs: Epochs = 1.0
    learning_rate: Rate = 2e-4
    train_on: Literal["final", "all"] = "final"
    helpful_per_prompt: int = Field(1, ge=0, le=10**4)
    heldout: float = Field(0.05, ge=0, le=0.5, description="share of chains that tests what was learned; at least one")


class Revise(Section):
    """The critique-revision chain."""

    rounds: int = Field(4, ge=1, le=16)
    critique: bool = True  # False: direct revision (Figure 7)
    also_direct: bool = False  # a second, direct set of chains, only measured
    # further chains by just so many principles, only measured (Figure 6)
    also_principles: tuple[Annotated[int, Field(ge=1, le=10**4)], ...] = ()
    context: Literal["latest", "chain"] = "latest"  # what a request sees: the latest answer, or the whole chain
    replacement: bool = True  # a principle may come twice in a chain; false: not before all have been used
    temperature: float = Field(1.0, ge=0, le=100)
    few_shot: bool = True

    @field_validator("also_principles")
    @classmethod
    def _each_once(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(numbers)) < len(numbers):
            raise ValueError("a number of principles is named twice")
        return numbers


class Feedback(Section):
    """AI labels (paper, section 4.1)."""

    clamp: tuple[float, float] | None = (0.4, 0.6)  # of CoT labels
    cot_tokens: Tokens = 48
    few_shot: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> Feedback:
        if self.clamp is not None and not 0 <= self.clamp[0] < self.clamp[1] <= 1:
            raise ValueError("clamp must be two numbers, low < high, within 0 and 1")
        return self


class Pm(_Training):
    """Preference models; `variants` of rl_cai's are trained beside it and only measured (claims 15 and 16)."""

    epochs: Epochs = 2.0
    learning_rate: Rate = 5e-4
    max_length: int = Field(256, ge=16, le=10**6)
    variants: tuple[Literal["hard", "one_principle"], ...] = ()


class Rl(Section):
    """RL against a PM. `ppo` is the paper's; `rloo`, `grpo` and `dpo` are TRL's algorithms on the same data.

    An update is `rollouts_per_update` answers and `epochs` passes over them, in optimiser steps of minibatch_size x
    gradient_accumulation; with dpo, which samples nothing, one optimiser step. kl_coef is DPO's beta.
    """

    algorithm: Literal["ppo", "rloo", "grpo", "dpo"] = "ppo"
    updates: Count = 6
    rollouts_per_update: Batch = 8
    minibatch_size: Batch = 8
    gradient_accumulation: Batch = 1
    epochs: int = Field(1, ge=1, le=10**4)
    learning_rate: Rate = 2e-4
    kl_coef: float = Field(0.05, ge=0, le=1000)
    kl_target: float | None = Field(None, gt=0, le=10**6, description="nats a sequence, held by adapting kl_coef")
    missing_eos_penalty: float = Field(0.0, ge=0, le=10**6, description="taken from the reward of a cut answer")
    # what PPO makes of a PM score: its distance from the mean of all so far in standard deviations ("running"), or
    # from the score of an answer of the start policy to the same prompt ("reference")
    reward_normalisation: Literal["none", "running", "reference"] = "none"
    value_pretraining: int = Field(0, ge=0, le=10**6, description="updates of PPO's value head before the first")
    snapshots: int = Field(2, ge=0, le=10**6, description="saved along the run, the last step not counted")
    # which snapshot counts as an arm's result: the last, that with the best score by its own PM (best_proxy), or that
    # nearest to a KL (kl:NATS); chosen on training prompts, so that held-out ones measure it unseen
    result: str = "last"
    checkpoint_every: Count = 1
    engine: Engine = "transformers"  # what samples PPO's rollouts

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
_SAMPLING = ("rollouts_per_update", "epochs", "missing_eos_penalty")  # keys of algorithms that sample
_PPO_ONLY = ("kl_target", "engine", "reward_normalisation", "value_pretraining")
