"""Preference models: sequence classifiers with one output, loaded from a folder or the hub, scoring answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.models import chat, checkpoints, spread
from harness.models.base import batches


@dataclass
class PreferenceModel:
    """A sequence classifier with one output; its score of (prompt, response) is in log-odds."""

    model: Any
    tokenizer: Any
    batch_size: int = 32
    max_length: int = 512

    copies: spread.Copies | None = field(default=None, repr=False)  # of helpers that share the rows

    @classmethod
    def load(cls, name: str | Path, *, batch_size: int = 32, max_length: int = 512) -> PreferenceModel:
        """A PM from a folder (full weights or LoRA) or a hub id. Helpers of this process (`spread`) share its rows."""
        place = checkpoints.device()
        model, tokenizer = load_classifier(name, dtype=checkpoints.dtype_for(place))
        how: dict[str, Any] = {"name": name, "batch_size": batch_size, "max_length": max_length}
        copies = spread.Copies(cls.load, **how) if spread.processes() > 1 else None
        return cls(model.to(place).eval(), tokenizer, batch_size, max_length, copies)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """(n,) scores in log-odds, each read at its text's end of turn; the same alone and in any batch."""
        rows = [
            chat.encode_dialogue(self.tokenizer, prompt, response, self.max_length)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        scores = np.empty(len(rows))
        indices = list(batches([len(row) for row in rows], self.batch_size))
        if self.copies is None:
            for index in indices:
                scores[index] = self._read([rows[i] for i in index])
            return scores
        self.copies.each(
            indices,
            lambda index: self._read([rows[i] for i in index]),
            lambda index: (
                "score",
                {"prompts": [prompts[i] for i in index], "responses": [responses[i] for i in index]},
            ),
            scores.__setitem__,
        )
        return scores

    def _read(self, rows: Sequence[list[int]]) -> np.ndarray:
        """The scores of a batch."""
        import torch

        pad = torch.nn.utils.rnn.pad_sequence
        texts = [torch.tensor(row) for row in rows]
        ids = pad(texts, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        mask = pad([torch.ones_like(row) for row in texts], batch_first=True)
        with torch.inference_mode():
            logits = self.model(input_ids=ids.to(self.model.device), attention_mask=mask.to(self.model.device)).logits
        return logits[:, 0].float().cpu().numpy()


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
