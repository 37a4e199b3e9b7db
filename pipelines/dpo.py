"""DPO, which learns from labels themselves in place of a PM's scores (`rl.algorithm: dpo`; Rafailov et al. 2023)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from harness import ranks, store
from harness.experiment import Lora, Rl
from harness.graph import Progress, Work
from harness.models import chat
from pipelines import rl
from pipelines.artefacts import lora_of, start_of
from pipelines.preference_model import PAIRS, ai_pairs


def train(
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
    checkpoint_every: int = 1,
    progress: Progress,
    split: bool = False,
) -> pd.DataFrame:
    """DPO from `start` on `pairs` (prompt, chosen, rejected, p = P(chosen is better)); beta is `kl_coef`.

    A soft label is a target for the implied preference, not rounded. An optimiser step reads minibatch_size x
    gradient_accumulation pairs. Where `pairs` has chosen_ended and rejected_ended, a cut answer gets no end of turn.
    """
    from datasets import Dataset
    from trl import DPOConfig
    from trl.trainer.utils import disable_dropout_in_model

    from pipelines import trainer
    from pipelines.soft_label import SoftLabelDPOCollator, SoftLabelDPOTrainer

    policy, tokenizer = rl.start_policy(start, lora, seed, split)
    disable_dropout_in_model(policy)
    collator = SoftLabelDPOCollator(pad_token_id=tokenizer.pad_token_id)
    rows = [_pair(tokenizer, dict(row), max_length) for row in pairs.to_dict("records")]
    rows = _with_reference(policy, rows, collator, settings.minibatch_size)
    step = settings.minibatch_size * settings.gradient_accumulation
    config = DPOConfig(
        **trainer.arguments(out / "trainer", seed=seed, report_to=report_to, save_steps=checkpoint_every),
        **trainer.batches(step, settings.minibatch_size, "rl.minibatch_size x rl.gradient_accumulation"),
        max_steps=settings.updates,
        learning_rate=settings.learning_rate,
        beta=settings.kl_coef,
        remove_unused_columns=False,
    )
    job = SoftLabelDPOTrainer(
        model=policy,
        args=config,
        train_dataset=Dataset.from_list(rows),
        data_collator=collator,
        processing_class=tokenizer,
    )
    rl.run_trainer(job, tokenizer, out, settings, rl.arm_card(arm, start, settings), progress)
    log = rl.logged(job)
    return pd.DataFrame({"step": log["step"], "reward": log["margin"], "policy_loss": log["loss"]})


def _pair(tokenizer: Any, row: dict[Any, Any], max_length: int) -> dict[str, Any]:
    """Token ids of a pair; a prompt that is too long beside its longer answer loses its beginning."""
    answers = [
        chat.encode_response(tokenizer, row[which], ended=bool(row.get(f"{which}_ended", True)))[:max_length]
        for which in ("chosen", "rejected")
    ]
    prompt = chat.encode_prompt(tokenizer, row["prompt"])
    room = max(max_length - max(map(len, answers)), 1)
    return {"prompt_ids": prompt[-room:], "chosen_ids": answers[0], "rejected_ids": answers[1], "p": float(row["p"])}


def _with_reference(policy: Any, rows: list[dict[str, Any]], collator: Any, batch_size: int) -> list[dict[str, Any]]:
    """`rows` with the policy's log-probabilities of both answers: before training it is the reference."""
    import torch

    from pipelines.soft_label import sequence_logprobs

    policy.eval()
    own: list[tuple[float, float]] = []
    with torch.no_grad():
        for some in ranks.portions(rows, batch_size):
            batch = {key: value.to(policy.device) for key, value in collator(some or rows[:1]).items()}
            chosen, rejected = (half.tolist() for half in sequence_logprobs(policy, batch).chunk(2))
            own += list(zip(chosen, rejected, strict=True))[: len(some)]
    return [
        row | {"ref_chosen_logps": better, "ref_rejected_logps": worse}
        for row, (better, worse) in zip(rows, ranks.gathered(own), strict=True)
    ]


def train_dpo(work: Work) -> None:
    """DPO from the input policy on the pairs that a PM would have been trained on: human labels and AI labels."""
    settings = work.settings
    preferences = pd.read_parquet(work.inputs["data"] / "preferences.parquet")
    of_kind = preferences[preferences["kind"].isin(settings.human)]
    pairs = of_kind[of_kind["split"] == "train"].assign(chosen_ended=True, rejected_ended=True)[PAIRS]
    if "labels" in work.inputs:
        labels = pd.read_parquet(work.inputs["labels"] / "feedback.parquet")
        pairs = pd.concat([pairs, ai_pairs(labels, hard=False)], ignore_index=True)
    log = train(
        start_of(work),
        pairs,
        work.folder,
        settings.rl,
        arm=settings.arm,
        lora=lora_of(work),
        max_length=settings.pm.max_length,
        seed=settings.seed,
        report_to=work.options.report_to,
        checkpoint_every=work.options.rl.checkpoint_every,
        progress=work.progress,
        split=work.sharded,
    )
    store.write_table(work.folder / "training.parquet", log.assign(arm=settings.arm))
