"""The preference model: a sequence classifier trained on soft labels (paper, section 4.1).

Loss of a pair with label p = P(chosen is better) and score difference d: -[p log s(d) + (1-p) log s(-d)]. A human
pair has p = 1, and then this is TRL's own loss. RewardTrainer does the work; only the loss and the label column
are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from harness import chat, models, stats
from harness.experiment import Lora, Pm
from harness.stages import Progress
from pipelines import trainer

PAIRS = ["prompt", "chosen", "rejected", "p"]  # p = P(chosen is better)


def soft_label_loss(difference: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of sigmoid(difference) against the soft labels `p`; both of shape (pairs,)."""
    log_sigmoid = torch.nn.functional.logsigmoid
    return -(p * log_sigmoid(difference) + (1 - p) * log_sigmoid(-difference)).mean()


@dataclass
class _Collator(DataCollatorForPreference):
    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        batch["p"] = torch.tensor([example["p"] for example in examples], dtype=torch.float)
        return batch


class SoftLabelRewardTrainer(RewardTrainer):
    """TRL's RewardTrainer with a column `p` and the soft-label loss."""

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["chosen_ids", "rejected_ids", "p"]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        p = inputs.pop("p")
        outputs = model(**inputs, use_cache=False)
        chosen, rejected = outputs.logits.squeeze(-1).float().chunk(2)
        loss = soft_label_loss(chosen - rejected, p)
        return (loss, outputs) if return_outputs else loss


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
) -> int:
    """Train a PM on `pairs` (columns `PAIRS`) and save it to out/model; the number of tokens seen."""
    torch.manual_seed(seed)
    model, tokenizer = models.load_classifier(base)
    if lora is not None:
        model = models.add_lora(model, models.LoraSettings(**lora.model_dump()), task="SEQ_CLS")
    rows: list[dict[str, Any]] = [
        {
            "chosen_ids": chat.encode_dialogue(tokenizer, row["prompt"], row["chosen"], settings.max_length),
            "rejected_ids": chat.encode_dialogue(tokenizer, row["prompt"], row["rejected"], settings.max_length),
            "p": float(row["p"]),
        }
        for row in pairs.to_dict("records")
    ]
    steps = math.ceil(len(rows) / settings.batch_size * settings.epochs)
    config = RewardConfig(
        **trainer.arguments(out / "trainer", seed=seed, report_to=report_to, steps=steps),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        max_length=settings.max_length,
        remove_unused_columns=False,
    )
    job = SoftLabelRewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=_Collator(pad_token_id=tokenizer.pad_token_id),
    )
    trainer.run(job, out / "trainer", progress, "preference model")
    models.save(job.accelerator.unwrap_model(job.model), tokenizer, out / "model")
    return int(sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows) * settings.epochs)


def evaluate(pm: models.PreferenceModel, pairs: pd.DataFrame) -> pd.DataFrame:
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
    accuracy = stats.bootstrap_mean(evaluated["correct"].to_numpy(), evaluated["prompt"].to_numpy(), seed=seed)
    # Pairs are listed chosen first; scored both ways round, calibration is not that of a one-sided test.
    p = np.concatenate([evaluated["p_chosen"], 1 - evaluated["p_chosen"]])
    y = np.concatenate([np.ones(len(evaluated)), np.zeros(len(evaluated))])
    return {
        "accuracy": accuracy.estimate,
        "low": accuracy.low,
        "high": accuracy.high,
        "loss": float(evaluated["loss"].mean()),
        "ece": float(stats.expected_calibration_error(p, y)),
        "n": float(len(evaluated)),
    }
