"""Preference models: sequence classifiers with one output, loaded from a folder or the hub, scoring answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.models import chat, checkpoints


@dataclass
class PreferenceModel:
    """A sequence classifier with one output; its score of (prompt, response) is in log-odds."""

    model: Any
    tokenizer: Any
    batch_size: int = 32
    max_length: int = 512

    @classmethod
    def load(cls, name: str | Path, *, batch_size: int = 32, max_length: int = 512) -> PreferenceModel:
        """A PM from a folder (full weights or LoRA) or a hub id."""
        place = checkpoints.device()
        model, tokenizer = load_classifier(name, dtype=checkpoints.dtype_for(place))
        return cls(model.to(place).eval(), tokenizer, batch_size, max_length)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """(n,) scores in log-odds, each read at its text's end of turn; the same alone and in any batch."""
        import torch

        from harness.models.base import batches

        rows = [
            chat.encode_dialogue(self.tokenizer, prompt, response, self.max_length)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        scores = np.empty(len(rows))
        with torch.inference_mode():
            for index in batches([len(row) for row in rows], self.batch_size):
                padded = [torch.tensor(rows[i]) for i in index]
                ids = torch.nn.utils.rnn.pad_sequence(
                    padded, batch_first=True, padding_value=self.tokenizer.pad_token_id
                )
                mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in padded], batch_first=True)
                logits = self.model(
                    input_ids=ids.to(self.model.device), attention_mask=mask.to(self.model.device)
                ).logits
                scores[index] = logits[:, 0].float().cpu().numpy()
        return scores


def load_classifier(name: str | Path, *, dtype: Any = None, split: bool = False) -> tuple[Any, Any]:
    """(sequence classifier with one output, tokenizer); a causal model gets a new head, set to zero.

    A zero head makes every score 0 at the start, so the first loss is log 2 whatever the seed.
    """
    import torch
    from transformers import AutoModelForSequenceClassification
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    with suppress_seqcls_warning():
        model, tokenizer = checkpoints.load_model(
            AutoModelForSequenceClassification, name, split, num_labels=1, dtype=dtype or torch.float32
        )
    if checkpoints.lora_base(name) is None and not any("SequenceClassification" in a for a in _architectures(name)):
        torch.nn.init.zeros_(model.score.weight)
    return model, tokenizer


def _architectures(name: str | Path) -> list[str]:
    from transformers import AutoConfig

    return list(checkpoints.from_hub(AutoConfig, name).architectures or [])
