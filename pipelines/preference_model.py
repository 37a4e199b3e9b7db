"""The preference model: a sequence classifier trained on soft labels, human and AI (paper, section 4.1)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import ranks, store
from harness.experiment import Lora, Pm
from harness.graph import Progress, Work
from harness.models import chat, checkpoints, scorer
from pipelines import card
from pipelines.artefacts import load_pm, lora_of

PAIRS = ["prompt", "chosen", "rejected", "p", "chosen_ended", "rejected_ended"]  # p = P(chosen is better)


def train(
    base: str | Path,
    pairs: pd.DataFrame,
    out: Path,
    settings: Pm,
    *,
    lora: Lora | None,
    seed: int,
    report_to: str,
    progress: Progress,
    split: bool = False,
) -> int:
    """Train a PM on `pairs` (columns `PAIRS`) and save it to out/model; the number of tokens seen."""
    import torch
    from datasets import Dataset
    from trl import RewardConfig

    from pipelines import trainer
    from pipelines.soft_label import SoftLabelCollator, SoftLabelRewardTrainer

    torch.manual_seed(seed)
    model, tokenizer = scorer.load_classifier(base, split=split)
    if lora is not None:
        model = checkpoints.add_lora(model, checkpoints.LoraSettings(**lora.model_dump()), task="SEQ_CLS")
    rows: list[dict[str, Any]] = [
        {
            "chosen_ids": chat.encode_dialogue(tokenizer, row["prompt"], row["chosen"], settings.max_length),
            "rejected_ids": chat.encode_dialogue(tokenizer, row["prompt"], row["rejected"], settings.max_length),
            "p": float(row["p"]),
        }
        for row in pairs.to_dict("records")
    ]
    quarter = math.ceil(len(rows) / settings.batch_size * settings.epochs) // 4
    config = RewardConfig(
        **trainer.arguments(out / "trainer", seed=seed, report_to=report_to, save_steps=quarter),
        **trainer.batches(settings.batch_size, settings.micro_batch_size, "pm.batch_size"),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        max_length=settings.max_length,
        center_rewards_coefficient=settings.center_rewards,
        remove_unused_columns=False,
    )
    job = SoftLabelRewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=SoftLabelCollator(pad_token_id=tokenizer.pad_token_id),
    )
    trainer.run(job, out / "trainer", progress, "preference model")
    checkpoints.save(job.accelerator.unwrap_model(job.model), tokenizer, out / "model")
    used = {"pairs": len(rows), "epochs": settings.epochs, "learning_rate": settings.learning_rate}
    what = "A sequence classifier with one output, the score of an answer in log-odds"
    card.write(out / "model", card.text("Preference model", what, base, used))
    return int(sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows) * settings.epochs)


def evaluate(pm: scorer.PreferenceModel, pairs: pd.DataFrame) -> pd.DataFrame:
    """(prompt, p_chosen, correct, loss) of the PM on held-out human pairs: P(chosen is better) = s(d)."""
    chosen = pm.score(pairs["prompt"].tolist(), pairs["chosen"].tolist())
    rejected = pm.score(pairs["prompt"].tolist(), pairs["rejected"].tolist())
    difference = chosen - rejected
    return pd.DataFrame(
        {
            "prompt": pairs["prompt"].to_numpy(),
            "p_chosen": 1 / (1 + np.exp(-difference)),
            # An exact tie, as from an untrained head, is half a success.
            "correct": (difference > 0) + 0.5 * (difference == 0),
            "loss": np.logaddexp(0, -difference),
        }
    )


def quality(evaluated: pd.DataFrame, seed: int = 0) -> dict[str, float]:
    """Held-out accuracy with its interval, loss and expected calibration error of a PM."""
    from harness import stats
    from harness.stats import calibration

    accuracy = stats.bootstrap_mean(evaluated["correct"].to_numpy(), evaluated["prompt"].to_numpy(), seed=seed)
    # Pairs are listed chosen first; scored both ways round, calibration is not that of a one-sided test.
    p = np.concatenate([evaluated["p_chosen"], 1 - evaluated["p_chosen"]])
    y = np.concatenate([np.ones(len(evaluated)), np.zeros(len(evaluated))])
    return {
        "accuracy": accuracy.estimate,
        "low": accuracy.low,
        "high": accuracy.high,
        "loss": float(evaluated["loss"].mean()),
        "ece": float(calibration.expected_calibration_error(p, y)),
        "n": float(len(evaluated)),
    }


# and human, split, measured_on; with AI labels, hard
SETTINGS = (
    *("seed", "lora", "pm.epochs", "pm.learning_rate", "pm.batch_size", "pm.micro_batch_size", "pm.max_length"),
    "pm.center_rewards",
)
OPTIONS = ("scale.batch_size", "report_to")


def train_pm(work: Work) -> None:
    """A PM on human labels of the kinds `human` and of `split`, and on AI labels where there are any."""
    settings = work.settings
    preferences = pd.read_parquet(work.inputs["data"] / "preferences.parquet")
    of_kind = preferences[preferences["kind"].isin(settings.human)]
    pairs = of_kind[of_kind["split"] == settings.split].assign(chosen_ended=True, rejected_ended=True)[PAIRS]
    if "labels" in work.inputs:
        labels = pd.read_parquet(work.inputs["labels"] / "feedback.parquet")
        pairs = pd.concat([pairs, ai_pairs(labels, hard=settings.hard)], ignore_index=True)
    tokens = train(
        work.models["base"],
        pairs,
        work.folder,
        settings.pm,
        lora=lora_of(work),
        seed=settings.seed,
        report_to=work.options.report_to,
        progress=work.progress,
        split=work.sharded,
    )
    work.count(tokens)
    if not ranks.main():
        return  # one worker measures the PM
    pm = load_pm(work.folder, work)
    for kind in settings.measured_on:
        heldout = preferences[(preferences["kind"] == kind) & (preferences["split"] == "heldout")]
        evaluated = evaluate(pm, heldout)
        store.write_table(work.folder / f"heldout-{kind}.parquet", evaluated)
        store.write_json(work.folder / f"quality-{kind}.json", quality(evaluated))


def ai_pairs(labels: pd.DataFrame, *, hard: bool) -> pd.DataFrame:
    """AI labels as preference pairs; with `hard`, rounded to 0 or 1. Pairs of equal answers say nothing."""
    distinct = labels[labels["response_a"] != labels["response_b"]]
    p = (distinct["p_a"] > 0.5).astype(float) if hard else distinct["p_a"]
    columns = {"prompt": distinct["prompt"], "chosen": distinct["response_a"], "rejected": distinct["response_b"]}
    ended = {"chosen_ended": distinct["ended_a"], "rejected_ended": distinct["ended_b"]}
    return pd.DataFrame(columns | {"p": p} | ended)[PAIRS]
