"""The soft-label loss (paper, section 4.1) in TRL's RewardTrainer: only the loss and the label column are ours.

Loss of a pair with label p = P(chosen is better) and score difference d: -[p log s(d) + (1-p) log s(-d)]. A human
pair has p = 1, and then this is TRL's own loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference


def soft_label_loss(difference: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of sigmoid(difference) against the soft labels `p`; both of shape (pairs,)."""
    log_sigmoid = torch.nn.functional.logsigmoid
    return -(p * log_sigmoid(difference) + (1 - p) * log_sigmoid(-difference)).mean()


@dataclass
class SoftLabelCollator(DataCollatorForPreference):
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
