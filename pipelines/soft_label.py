"""The soft-label loss (paper, section 4.1) in the libraries' trainers: only the loss and the label column are ours.

Loss of a pair with label p = P(chosen is better) and difference d: -[p log s(d) + (1-p) log s(-d)]. For a PM d is the
difference of scores (TRL's RewardTrainer); for DPO it is that of the implied rewards, beta log(pi / pi_ref). A human
pair has p = 1, and then both are the usual losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import Trainer
from trl import RewardTrainer
from trl.trainer import dpo_trainer, reward_trainer

from harness import ranks
from pipelines.any_workers import AnyWorkers

BLANK = -1.0  # in place of a label: a pair that counts nothing


def soft_label_loss(difference: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of sigmoid(difference) against the soft labels `p`; both of shape (pairs,)."""
    log_sigmoid = torch.nn.functional.logsigmoid
    return -(p * log_sigmoid(difference) + (1 - p) * log_sigmoid(-difference)).mean()


def _with_labels(batch: dict[str, Any], examples: list[dict[str, Any]]) -> dict[str, Any]:
    return batch | {"p": torch.tensor([example["p"] for example in examples], dtype=torch.float)}


@dataclass
class SoftLabelCollator(reward_trainer.DataCollatorForPreference):
    """TRL's collator of pairs (chosen_ids, rejected_ids) with the label p."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return _with_labels(super().torch_call(examples), examples)


@dataclass
class SoftLabelDPOCollator(dpo_trainer.DataCollatorForPreference):
    """The same for DPO: prompt_ids beside both answers', and their reference log-probabilities."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return _with_labels(super().torch_call(examples), examples)


class _MeanOverPairs(AnyWorkers):
    """Mixin of a Trainer: the loss is the mean over all pairs of an optimiser step, in micro-batches of any sizes.

    A micro-batch is of pairs, or of one blank, which counts nothing.
    """

    loss_is_scaled_for_ga: Any = True

    def blank(self, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"p": BLANK}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        return sum(ranks.gathered([sum(_pairs(batch["p"]) for batch in batch_samples)]))

    @staticmethod
    def share(loss: torch.Tensor, p: torch.Tensor, num_items_in_batch: int | None) -> torch.Tensor:
        """The part of a step's loss that a micro-batch with the labels `p` and the mean `loss` contributes.

        Times the workers, over which DDP averages.
        """
        return loss if num_items_in_batch is None else loss * _pairs(p) / num_items_in_batch * ranks.size()


def _pairs(p: torch.Tensor) -> int:
    return int((p != BLANK).sum())


class SoftLabelRewardTrainer(_MeanOverPairs, RewardTrainer):
    """TRL's RewardTrainer with a column `p` and the soft-label loss."""

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["chosen_ids", "rejected_ids", "p"]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        p = inputs.pop("p")
        outputs = model(**inputs, use_cache=False)
        chosen, rejected = outputs.logits.squeeze(-1).float().chunk(2)
        loss, args = soft_label_loss(chosen - rejected, p), cast(Any, self.args)
        if weight := args.center_rewards_coefficient:
            loss = loss + weight * ((chosen + rejected) ** 2).mean()
        loss = self.share(loss, p, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


class SoftLabelDPOTrainer(_MeanOverPairs, Trainer):
    """DPO (Rafailov et al. 2023) on soft labels; `args` is a DPOConfig.

    The reference is the policy at the start, whose log-probabilities the rows hold (ref_chosen_logps,
    ref_rejected_logps), so that no second model is kept.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        chosen, rejected = sequence_logprobs(model, inputs).chunk(2)
        difference = (chosen - inputs["ref_chosen_logps"]) - (rejected - inputs["ref_rejected_logps"])
        args: Any = self.args
        margins = args.beta * difference
        p = inputs["p"]
        self.margins = [*getattr(self, "margins", []), *margins.detach()[p != BLANK].tolist()]
        loss = self.share(soft_label_loss(margins, p), p, num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean margin of implied rewards since the last entry."""
        margins, self.margins = [m for part in ranks.gathered([getattr(self, "margins", [])]) for m in part], []
        super().log(logs | ({"margin": sum(margins) / len(margins)} if margins else {}), start_time)


def sequence_logprobs(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """(rows,) log-probability of each row's completion, the tokens where completion_mask is 1, in nats."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    targets = batch["input_ids"][:, 1:]
    logits = logits[:, :-1].float()
    logprobs = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    return (logprobs * batch["completion_mask"][:, 1:]).sum(1)
