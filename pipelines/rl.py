"""Reinforcement learning of a policy against a PM: our PPO (the paper's method), or TRL's RLOO and GRPO (`grouped`).

Each leaves `model/` (full weights), `snapshots/step-*/` and a log with one row an update, as `dpo.py` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness import store
from harness.experiment import GROUP, Lora, Rl, Scale
from harness.graph import Progress, Work
from harness.models import checkpoints, scorer
from pipelines import card as cards
from pipelines.artefacts import load_pm, lora_of, start_of, train_prompts

SAMPLES = 3  # answers of an update that who watches a run is shown


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
    origin: str = "",
    progress: Progress,
    split: bool = False,
) -> pd.DataFrame:
    """RL from `start` against `pm` by PPO, RLOO or GRPO; the log (step, reward, kl, ...)."""
    policy, tokenizer = start_policy(start, lora, seed, split)
    card, engine = arm_card(arm, start, settings), None
    if settings.engine == "vllm":
        from harness.models import vllm

        engine = vllm.load(start)
    if settings.algorithm in GROUP:
        from pipelines import grouped

        return grouped.train(
            policy,
            tokenizer,
            prompts,
            pm,
            out,
            settings,
            scale,
            card=card,
            seed=seed,
            report_to=report_to,
            checkpoint_every=checkpoint_every,
            progress=progress,
            engine=engine,
        )
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
        reward_normalisation=settings.reward_normalisation,
        value_pretraining=settings.value_pretraining,
        checkpoint_every=checkpoint_every,
        snapshot_steps=snapshot_steps(settings.updates, settings.snapshots),
        seed=seed,
        origin=origin,
        mixed_precision="bf16" if checkpoints.device() == "cuda" else "no",
        report_to=None if report_to == "none" else report_to,
    )

    latest: list[dict[str, Any]] = []  # a few answers of the update under way

    def scored(asked: Sequence[str], answers: Sequence[str]) -> Any:
        scores = pm.score(asked, answers)
        if not latest:
            some = list(zip(asked, answers, map(float, scores), strict=True))[:SAMPLES]
            latest.extend({"prompt": p, "response": r, "score": score} for p, r, score in some)
        return scores

    def heard(row: dict[str, Any]) -> None:
        progress.advance(row["step"], settings.updates, f"PM score {row['reward']:+.2f}, KL {row['kl']:.2f}")
        progress.row(row | {"samples": list(latest)})
        latest.clear()

    # A split policy cannot be copied; with an adapter it is its own reference.
    reference = checkpoints.load_policy(start, dtype=policy.dtype, split=True)[0] if split and lora is None else None
    log = ppo.train(
        policy,
        tokenizer,
        prompts,
        scored,
        config,
        out,
        on_update=heard,
        model_card=card,
        engine=engine,
        reference=reference,
    )
    cards.write(out / "model", _final(card))
    return log


def start_policy(start: str | Path, lora: Lora | None, seed: int, split: bool) -> tuple[Any, Any]:
    """The policy to train and its tokenizer. split: its weights over all workers."""
    import torch

    torch.manual_seed(seed)
    policy, tokenizer = checkpoints.load_policy(start, dtype=torch.float32, split=split)
    if lora is not None:
        policy = checkpoints.add_lora(policy, checkpoints.LoraSettings(**lora.model_dump()))
    return policy, tokenizer


def run_trainer(
    job: Any,
    tokenizer: Any,
    out: Path,
    settings: Rl,
    card: str,
    progress: Progress,
    steps_per_update: int = 1,
) -> None:
    """Run a Hugging Face trainer with our snapshots and save the model."""
    from pipelines import trainer

    def save(model: Any, step: int) -> None:
        _snapshot(model, tokenizer, out, step // steps_per_update, card)

    updates = snapshot_steps(settings.updates, settings.snapshots)
    job.add_callback(trainer.Snapshots(save, [update * steps_per_update for update in updates]))
    trainer.run(job, out / "trainer", progress, settings.algorithm)
    checkpoints.save_merged(job.accelerator.unwrap_model(job.model), tokenizer, out / "model")
    cards.write(out / "model", _final(card))


def logged(job: Any) -> pd.DataFrame:
    """A trainer's log, one row an update."""
    return pd.DataFrame([row for row in job.state.log_history if "loss" in row])


def _snapshot(model: Any, tokenizer: Any, out: Path, step: int, card: str) -> None:
    folder = out / "snapshots" / f"step-{step:06d}"
    checkpoints.save(model, tokenizer, folder)
    cards.write(folder, card.format(step=step))


def arm_card(arm: str, start: str | Path, settings: Rl) -> str:
    """A snapshot's card, but for {step}."""
    used = {"kl_coef": settings.kl_coef, "learning_rate": settings.learning_rate, "updates": settings.updates}
    origin = cards.called(start).replace("{", "{{").replace("}", "}}")
    return cards.text(arm, f"A snapshot (step {{step}}) of the arm `{arm}`, by {settings.algorithm}", origin, used)


def _final(card: str) -> str:
    return card.format(step="").replace("A snapshot (step ) of the", "The final model of the")


_SHARED = (
    *("seed", "lora", "pm.max_length", "rl.algorithm", "rl.updates", "rl.snapshots"),
    *("rl.learning_rate", "rl.kl_coef", "rl.gradient_accumulation"),
)
_SAMPLING = (
    *_SHARED,
    *("scale.max_new_tokens", "rl.rollouts_per_update", "rl.minibatch_size", "rl.epochs", "rl.missing_eos_penalty"),
    "rl.engine",
)
SETTINGS = {  # by algorithm; and arm, human or prompts
    "ppo": (
        *_SAMPLING,
        *("rl.kl_target", "rl.reward_normalisation", "rl.value_pretraining"),
    ),
    "rloo": _SAMPLING,
    "grpo": _SAMPLING,
    "dpo": (*_SHARED, "rl.minibatch_size"),
}
OPTIONS = {
    "ppo": ("scale.batch_size", "report_to", "rl.checkpoint_every"),
    "rloo": ("scale.batch_size", "report_to", "rl.checkpoint_every"),
    "grpo": ("scale.batch_size", "report_to", "rl.checkpoint_every"),
    "dpo": ("report_to", "rl.checkpoint_every"),
}


def train_rl(work: Work) -> None:
    """RL from the input policy (or the base model) against the input PM, on train prompts of some kinds."""
    settings = work.settings
    log = train(
        start_of(work),
        train_prompts(work, *settings.prompts, uses=("chains", "rl")),
        load_pm(work.inputs["pm"], work),
        work.folder,
        settings.rl,
        settings.scale,
        arm=settings.arm,
        lora=lora_of(work),
        seed=settings.seed,
        report_to=work.options.report_to,
        checkpoint_every=work.options.rl.checkpoint_every,
        origin=work.origin,
        progress=work.progress,
        split=work.sharded,
    )
    work.count(log.attrs.get("tokens"))
    # How long updates took differs from run to run: it is logged, and kept out of the table.
    store.write_json(work.folder / "tracking" / "seconds.json", log.get("seconds", pd.Series(dtype=float)).tolist())
    if "value_pretraining" in log.attrs:
        store.write_json(work.folder / "value_pretraining.json", log.attrs["value_pretraining"])
    table = log.drop(columns="seconds", errors="ignore").assign(arm=settings.arm)
    store.write_table(work.folder / "training.parquet", table)
