"""SL-CAI's second half: fine-tune the pretrained model on revisions, helpful-only answers mixed in (section 3.1).

As in the paper: the loss counts answers only, one epoch, a constant learning rate, revisions and helpful answers
shuffled together. TRL's SFTTrainer does the work.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import store
from harness.draws import uniforms
from harness.experiment import Lora, Sft
from harness.graph import Progress, Work
from harness.models import chat, checkpoints
from pipelines import card
from pipelines.artefacts import lora_of

EXAMPLE = ["prompt", "response", "ended"]


def apart(chains: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(chains to learn from, chains kept back): a `share` of the prompts, rounded up, drawn at random by name."""
    prompts = sorted(set(chains["prompt"]))
    order = np.argsort([uniforms(seed, f"heldout chain/{prompt}", 1)[0] for prompt in prompts])
    kept = {prompts[i] for i in order[: math.ceil(share * len(prompts))]}
    back = chains["prompt"].isin(kept)
    return chains[~back], chains[back]


def revisions(chains: pd.DataFrame, train_on: str) -> pd.DataFrame:
    """`EXAMPLE` rows of the final revision of each chain, or of every one; none without text."""
    revised = chains[chains["revision"] > 0]
    if train_on == "final":
        revised = revised[revised["revision"] == revised["revision"].max()]
    return revised.loc[revised["response"].str.strip() != "", EXAMPLE].reset_index(drop=True)


def demonstrations(chains: pd.DataFrame, helpful: pd.DataFrame, *, train_on: str, seed: int) -> pd.DataFrame:
    """`EXAMPLE` rows to fine-tune on: the final revision of each chain, or every one, and helpful answers."""
    both = pd.concat([revisions(chains, train_on), helpful[EXAMPLE]], ignore_index=True)
    return both[both["response"].str.strip() != ""].sample(frac=1, random_state=seed).reset_index(drop=True)


def train(
    base: str | Path,
    examples: pd.DataFrame,
    out: Path,
    settings: Sft,
    *,
    lora: Lora | None,
    max_length: int,
    seed: int,
    report_to: str,
    progress: Progress,
    split: bool = False,
) -> int:
    """Fine-tune `base` on `examples` and save it to out/model; the number of tokens seen.

    examples: prompt, response, and ended where some are cut; a cut one's target has no end of turn.
    """
    import torch
    from datasets import Dataset
    from trl import SFTConfig

    from pipelines import trainer
    from pipelines.any_workers import SharedSFTTrainer

    torch.manual_seed(seed)
    policy, tokenizer = checkpoints.load_policy(base, dtype=torch.float32, split=split)
    if lora is not None:
        policy = checkpoints.add_lora(policy, checkpoints.LoraSettings(**lora.model_dump()))
    ended = examples["ended"] if "ended" in examples else [True] * len(examples)
    rows = [
        _tokens(tokenizer, prompt, response, max_length, ended=bool(whole))
        for prompt, response, whole in zip(examples["prompt"], examples["response"], ended, strict=True)
    ]
    quarter = math.ceil(len(rows) / settings.batch_size * settings.epochs) // 4
    config = SFTConfig(
        **trainer.arguments(out / "trainer", seed=seed, report_to=report_to, save_steps=quarter),
        **trainer.batches(settings.batch_size, settings.micro_batch_size, "sft.batch_size"),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        completion_only_loss=True,
        max_length=max_length,
    )
    job = SharedSFTTrainer(model=policy, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.run(job, out / "trainer", progress, "sft")
    checkpoints.save_merged(job.accelerator.unwrap_model(job.model), tokenizer, out / "model")
    used = {"examples": len(rows), "epochs": settings.epochs, "learning_rate": settings.learning_rate}
    card.write(out / "model", card.text("Fine-tuned", "A model fine-tuned on revisions and answers", base, used))
    return int(sum(len(row["input_ids"]) for row in rows) * settings.epochs)


def _tokens(tokenizer: Any, prompt: str, response: str, max_length: int, *, ended: bool) -> dict[str, list[int]]:
    answer = len(chat.encode_response(tokenizer, response, ended=ended))
    ids = chat.encode_dialogue(tokenizer, prompt, response, max_length, ended=ended)
    return {"input_ids": ids, "completion_mask": [0] * max(0, len(ids) - answer) + [1] * min(answer, len(ids))}


SETTINGS = (
    *("seed", "lora", "scale.max_prompt_tokens", "scale.max_new_tokens"),
    *("sft.epochs", "sft.learning_rate", "sft.batch_size", "sft.micro_batch_size", "sft.train_on", "sft.heldout"),
)
OPTIONS = ("report_to",)


def finetune(work: Work) -> None:
    """SL-CAI: the pretrained model on revisions and helpful-only answers; revisions kept back: heldout.parquet."""
    settings = work.settings
    every = pd.read_parquet(work.inputs["chains"] / "chains.parquet")
    chains, back = apart(every, settings.sft.heldout, settings.seed)
    store.write_table(work.folder / "heldout.parquet", revisions(back, settings.sft.train_on))
    helpful = pd.read_parquet(work.inputs["helpful"] / "responses.parquet")
    examples = demonstrations(chains, helpful, train_on=settings.sft.train_on, seed=settings.seed)
    store.write_table(work.folder / "demonstrations.parquet", examples)
    tokens = train(
        work.models["base"],
        examples,
        work.folder,
        settings.sft,
        lora=lora_of(work),
        max_length=settings.scale.max_prompt_tokens + settings.scale.max_new_tokens,
        seed=settings.seed,
        report_to=work.options.report_to,
        progress=work.progress,
        split=work.sharded,
    )
    work.count(tokens)
