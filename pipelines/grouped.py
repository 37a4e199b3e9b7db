"""RLOO and GRPO by TRL's trainers, against our PM: answers to a prompt are compared with one another.

Answers are drawn by name, as everywhere, by the policy itself or an engine. TRL's own draws depend on what was drawn
before and on the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import trl
from datasets import Dataset

from harness import ranks, stats
from harness.experiment import GROUP, Rl, Scale
from harness.graph import Progress
from harness.models import chat, scorer
from pipelines import rollouts, trainer
from pipelines.any_workers import TorchCheckpoints
from pipelines.ppo_math import prompt_indices
from pipelines.rl import logged, run_trainer


def train(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    pm: scorer.PreferenceModel,
    out: Path,
    settings: Rl,
    scale: Scale,
    *,
    card: str,
    seed: int,
    report_to: str,
    checkpoint_every: int,
    progress: Progress,
    engine: rollouts.RolloutEngine | None = None,
) -> pd.DataFrame:
    """TRL's RLOO or GRPO with our PM as the reward function; the log, KL in nats a sequence.

    RLOO takes from each answer's reward the mean of the others (2 a prompt); GRPO the mean of all, in their standard
    deviations (4 a prompt; TRL's default loss, a mean over tokens). An update is what it is in PPO: rollouts_per_update
    answers, then `epochs` passes over them in optimiser steps of minibatch_size x gradient_accumulation, of all workers
    together. engine: samples the answers; None: the policy itself.
    """
    stop, name = chat.stop_ids(tokenizer), settings.algorithm.upper()
    policy.generation_config.eos_token_id = sorted(stop)  # by which TRL tells answers that were cut

    def pm_score(completions: list[str], asked: list[str], **_: Any) -> list[float | None]:
        return list(stats.finite(pm.score(asked, [chat.clean(text) for text in completions]), "PM score"))

    def missing_eos(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [0.0 if ids and ids[-1] in stop else -settings.missing_eos_penalty for ids in completion_ids]

    # Which prompts an update asks is drawn by name, too: TRL's order is another one after a kill.
    asked = settings.rollouts_per_update // GROUP[settings.algorithm]
    index = [i for turn in range(1, settings.updates + 1) for i in prompt_indices(len(prompts), asked, turn, seed)]
    rendered = [{"prompt": chat.render(tokenizer, chat.parse(prompts[i])), "asked": prompts[i]} for i in index]
    steps = settings.epochs * settings.rollouts_per_update
    steps //= settings.minibatch_size * settings.gradient_accumulation  # optimiser steps an update
    shared = trainer.arguments(out / "trainer", seed=seed, report_to=report_to, save_steps=steps * checkpoint_every)
    config = getattr(trl, f"{name}Config")(
        **(shared | {"logging_steps": steps}),
        max_steps=settings.updates * steps,
        generation_batch_size=settings.rollouts_per_update,
        per_device_train_batch_size=ranks.divided(settings.minibatch_size, "rl.minibatch_size"),
        gradient_accumulation_steps=settings.gradient_accumulation,
        num_iterations=settings.epochs,
        num_generations=GROUP[settings.algorithm],
        max_completion_length=scale.max_new_tokens,
        learning_rate=settings.learning_rate,
        beta=settings.kl_coef,
        shuffle_dataset=False,
    )

    class Trainer(TorchCheckpoints, getattr(trl, f"{name}Trainer")):  # type: ignore[misc]  # TRL's, by its name
        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
            turn, place = self.state.global_step // steps + 1, ranks.rank() * len(prompt_ids)
            sampler = self.accelerator.unwrap_model(self.model).eval()
            answers, _logp = rollouts.sampled(
                sampler,
                tokenizer,
                prompt_ids,
                [f"{turn}/{place + i}" for i in range(len(prompt_ids))],
                turn=turn,
                engine=engine,
                accelerator=self.accelerator,
                max_new_tokens=scale.max_new_tokens,
                temperature=config.temperature,
                seed=seed,
            )
            sampler.train()
            # GRPO would have the engine's log-probabilities; without them it learns from its own, as PPO does.
            return (answers, None) if name == "GRPO" else answers

    job = Trainer(
        model=policy,
        reward_funcs=[pm_score, missing_eos],
        args=config,
        train_dataset=Dataset.from_list(rendered),
        processing_class=tokenizer,
    )
    run_trainer(job, tokenizer, out, settings, card, progress, steps)
    log = logged(job)
    length = log["completions/mean_length"]
    columns = {"step": log["step"] // steps, "reward": log["rewards/pm_score/mean"], "policy_loss": log["loss"]}
    columns |= {"length": length, "ended_fraction": 1 - log["completions/clipped_ratio"]}
    columns |= {"kl": log["kl"] * length} if "kl" in log else {}  # TRL's is a mean over tokens, and absent at beta 0
    return pd.DataFrame(columns)
