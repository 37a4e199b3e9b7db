"""Reinforcement learning of a policy: our PPO (the paper's method), or TRL's RLOO and DPO on the same data.

Each leaves `model/` (full weights), `snapshots/step-*/` and a log with one row an update.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import stats, store
from harness.experiment import Lora, Rl, Scale
from harness.graph import Progress, Work
from harness.models import chat, checkpoints, scorer
from pipelines.artefacts import load_pm, lora_of, start_of
from pipelines.preference_model import PAIRS, ai_pairs


def snapshot_steps(updates: int, snapshots: int) -> tuple[int, ...]:
    """`snapshots` steps spread evenly before the last: (2, 4) of 6 updates."""
    return tuple(sorted({round(updates * i / (snapshots + 1)) for i in range(1, snapshots + 1)} - {0, updates}))


def train(
    start: str | Path,
    prompts: Sequence[str],
    pm: scorer.PreferenceModel,
    out: Path,
    settings: Rl,
    scale: Scale,
    *,
    arm: str,
    lora: Lora | None,
    seed: int,
    report_to: str,
    checkpoint_every: int = 1,
    progress: Progress,
) -> pd.DataFrame:
    """RL from `start` against `pm` by PPO or RLOO; the log (step, reward, kl, ...)."""
    policy, tokenizer = _policy(start, lora, seed)
    if settings.algorithm == "rloo":
        return _rloo(policy, tokenizer, prompts, pm, out, settings, scale, arm, start, seed, report_to, progress)
    from pipelines import ppo

    config = ppo.PPOConfig(
        updates=settings.updates,
        rollouts_per_update=settings.rollouts_per_update,
        minibatch_size=settings.minibatch_size,
        gradient_accumulation=settings.gradient_accumulation,
        epochs=settings.epochs,
        max_new_tokens=scale.max_new_tokens,
        learning_rate=settings.learning_rate,
        kl_coef=settings.kl_coef,
        kl_target=settings.kl_target,
        missing_eos_penalty=settings.missing_eos_penalty,
        checkpoint_every=checkpoint_every,
        snapshot_steps=snapshot_steps(settings.updates, settings.snapshots),
        seed=seed,
        mixed_precision="bf16" if checkpoints.device() == "cuda" else "no",
        report_to=None if report_to == "none" else report_to,
    )

    def heard(row: dict[str, Any]) -> None:
        progress.advance(row["step"], settings.updates, f"PM score {row['reward']:+.2f}, KL {row['kl']:.2f}")

    return ppo.train(
        policy, tokenizer, prompts, pm.score, config, out, on_update=heard, model_card=_card(arm, start, settings)
    )


def dpo(
    start: str | Path,
    pairs: pd.DataFrame,
    out: Path,
    settings: Rl,
    *,
    arm: str,
    lora: Lora | None,
    max_length: int,
    seed: int,
    report_to: str,
    progress: Progress,
) -> pd.DataFrame:
    """DPO from `start` on `pairs` (prompt, chosen, rejected, p); a label below one half swaps its pair."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from pipelines import trainer

    policy, tokenizer = _policy(start, lora, seed)
    rows = []
    for row in pairs.to_dict("records"):
        better, worse = ("chosen", "rejected") if row["p"] >= 0.5 else ("rejected", "chosen")
        prompt = chat.render(tokenizer, chat.parse(row["prompt"]))
        rows.append({"prompt": prompt, "chosen": row[better], "rejected": row[worse]})
    config = DPOConfig(
        **trainer.arguments(out / "trainer", seed=seed, report_to=report_to, steps=settings.updates),
        max_steps=settings.updates,
        per_device_train_batch_size=settings.minibatch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        beta=max(settings.kl_coef, 1e-3),
        max_length=max_length,
    )
    job = DPOTrainer(model=policy, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    return _finish(job, tokenizer, out, settings, arm, start, progress, {"rewards/margins": "reward"})


def _rloo(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    pm: scorer.PreferenceModel,
    out: Path,
    settings: Rl,
    scale: Scale,
    arm: str,
    start: str | Path,
    seed: int,
    report_to: str,
    progress: Progress,
) -> pd.DataFrame:
    """TRL's RLOO, two answers a prompt, with our PM as the reward function."""
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    from pipelines import trainer

    def pm_score(completions: list[str], asked: list[str], **_: Any) -> list[float | None]:
        return list(stats.finite(pm.score(asked, [chat.clean(text) for text in completions]), "PM score"))

    rendered = [{"prompt": chat.render(tokenizer, chat.parse(p)), "asked": p} for p in prompts]
    config = RLOOConfig(
        **trainer.arguments(out / "trainer", seed=seed, report_to=report_to, steps=settings.updates),
        max_steps=settings.updates,
        per_device_train_batch_size=settings.rollouts_per_update,
        gradient_accumulation_steps=settings.gradient_accumulation,
        num_generations=2,
        max_completion_length=scale.max_new_tokens,
        learning_rate=settings.learning_rate,
        beta=settings.kl_coef,
    )
    job = RLOOTrainer(
        model=policy,
        reward_funcs=pm_score,
        args=config,
        train_dataset=Dataset.from_list(rendered),
        processing_class=tokenizer,
    )
    return _finish(job, tokenizer, out, settings, arm, start, progress, {"reward": "reward", "kl": "kl"})


def _policy(start: str | Path, lora: Lora | None, seed: int) -> tuple[Any, Any]:
    import torch

    torch.manual_seed(seed)
    policy, tokenizer = checkpoints.load_policy(start, dtype=torch.float32)
    if lora is not None:
        policy = checkpoints.add_lora(policy, checkpoints.LoraSettings(**lora.model_dump()))
    return policy, tokenizer


def _finish(
    job: Any,
    tokenizer: Any,
    out: Path,
    settings: Rl,
    arm: str,
    start: str | Path,
    progress: Progress,
    columns: dict[str, str],
) -> pd.DataFrame:
    """Run a TRL trainer with our snapshots, save the model, and return its log with our column names."""
    from pipelines import trainer

    card = _card(arm, start, settings)
    steps = snapshot_steps(settings.updates, settings.snapshots)
    job.add_callback(trainer.Snapshots(lambda model, step: _snapshot(model, tokenizer, out, step, card), steps))
    trainer.run(job, out / "trainer", progress, settings.algorithm)
    tuned = job.accelerator.unwrap_model(job.model)
    checkpoints.save(
        tuned.merge_and_unload() if hasattr(tuned, "merge_and_unload") else tuned, tokenizer, out / "model"
    )
    log = pd.DataFrame([row for row in job.state.log_history if "loss" in row])
    named = {"step": log["step"].to_numpy()} | {new: log[old].to_numpy() for old, new in columns.items() if old in log}
    return pd.DataFrame(named).assign(policy_loss=log["loss"].to_numpy(dtype=np.float64))


def _snapshot(model: Any, tokenizer: Any, out: Path, step: int, card: str) -> None:
    folder = out / "snapshots" / f"step-{step:06d}"
    checkpoints.save(model, tokenizer, folder)
    (folder / "README.md").write_text(card.format(step=step), encoding="utf-8")


def _card(arm: str, start: str | Path, settings: Rl) -> str:
    return (
        f"# {arm}\n\nA snapshot (step {{step}}) of the arm `{arm}`, trained by cai-harness with {settings.algorithm} "
        f"from `{start}`: KL coefficient {settings.kl_coef}, learning rate {settings.learning_rate}.\n"
        "A research artefact: it has not been checked for any use.\n"
    )


_SHARED = (
    *("seed", "lora", "pm.max_length", "rl.algorithm", "rl.updates", "rl.snapshots"),
    *("rl.learning_rate", "rl.kl_coef", "rl.gradient_accumulation"),
)
SETTINGS = {  # by algorithm; and arm, human or prompts
    "ppo": (
        *_SHARED,
        *("scale.max_new_tokens", "rl.rollouts_per_update", "rl.minibatch_size", "rl.epochs"),
        *("rl.kl_target", "rl.missing_eos_penalty"),
    ),
    "rloo": (*_SHARED, "scale.max_new_tokens", "rl.rollouts_per_update"),
    "dpo": (*_SHARED, "rl.minibatch_size"),
}
OPTIONS = {
    "ppo": ("scale.batch_size", "report_to", "rl.checkpoint_every"),
    "rloo": ("scale.batch_size", "report_to", "rl.checkpoint_every"),
    "dpo": ("report_to",),
}


def train_rl(work: Work) -> None:
    """RL from the input policy (or the base model) against the input PM, on train prompts of some kinds."""
    settings = work.settings
    rows = pd.read_parquet(work.inputs["data"] / "prompts.parquet")
    chosen = rows[(rows["split"] == "train") & rows["kind"].isin(settings.prompts)]
    log = train(
        start_of(work),
        chosen["prompt"].tolist(),
        load_pm(work.inputs["pm"], work),
        work.folder,
        settings.rl,
        settings.scale,
        arm=settings.arm,
        lora=lora_of(work),
        seed=settings.seed,
        report_to=work.options.report_to,
        checkpoint_every=work.options.rl.checkpoint_every,
        progress=work.progress,
    )
    work.count(log.attrs.get("tokens"))
    store.write_table(work.folder / "training.parquet", log.assign(arm=settings.arm))


def train_dpo(work: Work) -> None:
    """DPO from the input policy on the pairs that a PM would have been trained on: human labels and AI labels."""
    settings = work.settings
    preferences = pd.read_parquet(work.inputs["data"] / "preferences.parquet")
    of_kind = preferences[preferences["kind"].isin(settings.human)]
    pairs = of_kind[of_kind["split"] == "train"].assign(p=1.0)[PAIRS]
    if "labels" in work.inputs:
        labels = pd.read_parquet(work.inputs["labels"] / "feedback.parquet")
        pairs = pd.concat([pairs, ai_pairs(labels, hard=False)], ignore_index=True)
    log = dpo(
        start_of(work),
        pairs,
        work.folder,
        settings.rl,
        arm=settings.arm,
        lora=lora_of(work),
        max_length=settings.pm.max_length,
        seed=settings.seed,
        report_to=work.options.report_to,
        progress=work.progress,
    )
    store.write_table(work.folder / "training.parquet", log.assign(arm=settings.arm))
