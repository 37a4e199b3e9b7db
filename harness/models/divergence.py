"""How far a policy has moved from its reference, measured on answers that the policy gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.models import chat
from harness.models.base import batches

_LOGITS = 2**27  # logits of one model held at once, half a gigabyte of float32


def sequence_kl(
    policy: Any,
    reference: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    responses: Sequence[str],
    ended: Sequence[bool],
    *,
    batch_size: int = 32,
) -> np.ndarray:
    """(n,) KL(policy || reference) over whole answers in nats, each estimated on one answer that the policy sampled.

    The sum of the divergences between the two next-token distributions along the answer, its end of turn included where
    it `ended`. At T = 1 its mean is that of log pi - log pi_ref, its variance is lower and it is never below 0.
    """
    import torch

    rows = []
    for prompt, response, whole in zip(prompts, responses, ended, strict=True):
        rows.append((chat.encode_prompt(tokenizer, prompt), chat.encode_response(tokenizer, response, ended=whole)))
    found = np.zeros(len(rows))
    spoken = [i for i, (_, answer) in enumerate(rows) if answer]
    widest = max((len(rows[i][1]) for i in spoken), default=1)
    at_once = max(1, min(batch_size, _LOGITS // (widest * policy.get_input_embeddings().weight.shape[0])))
    for batch in batches([sum(map(len, rows[i])) for i in spoken], at_once):
        index = [spoken[i] for i in batch]
        with torch.inference_mode():
            found[index] = _along([rows[i] for i in index], policy, reference, tokenizer.pad_token_id)
    return found


def _along(rows: Sequence[tuple[list[int], list[int]]], policy: Any, reference: Any, pad_id: int) -> np.ndarray:
    """(rows,) sums of token-wise divergences; rows are (prompt, answer), padded on the left."""
    import torch

    length, width = max(len(p) + len(a) for p, a in rows), max(len(a) for _, a in rows)
    ids = torch.full((len(rows), length), pad_id)
    attention = torch.zeros_like(ids)
    answered = torch.zeros((len(rows), width))
    for i, (prompt, answer) in enumerate(rows):
        ids[i, length - len(prompt) - len(answer) :] = torch.tensor(prompt + answer)
        attention[i, length - len(prompt) - len(answer) :] = 1
        answered[i, width - len(answer) :] = 1
    logs = []
    for model in (policy, reference):
        logits = model(
            input_ids=ids.to(model.device),
            attention_mask=attention.to(model.device),
            position_ids=(attention.cumsum(1) - 1).clamp(min=0).to(model.device),
            logits_to_keep=width + 1,
            use_cache=False,
        ).logits
        logs.append(logits[:, :-1].float().log_softmax(-1))
    by_token = torch.nn.functional.kl_div(logs[1].to(logs[0].device), logs[0], reduction="none", log_target=True)
    return (by_token.sum(-1).cpu() * answered).sum(1).double().clamp(min=0).numpy()  # rounding may fall below 0
