"""How far a policy has moved from its reference on answers that it gave, and how likely given answers are to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from harness.models import chat
from harness.models.base import batches

_LOGITS = 2**27  # logits of one model held at once, half a gigabyte of float32
Rows = Sequence[tuple[list[int], list[int]]]  # (ids of the prompt, ids of the answer)


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

    def along(rows: Rows) -> np.ndarray:
        logs, _, answered = _read(rows, (policy, reference), tokenizer.pad_token_id)
        by_token = torch.nn.functional.kl_div(logs[1].to(logs[0].device), logs[0], reduction="none", log_target=True)
        sums = (by_token.sum(-1).cpu() * answered).sum(1).double()
        return sums.clamp(min=0).numpy()  # rounding may fall below 0

    return _by_answer(along, policy, tokenizer, prompts, responses, ended, batch_size, empty=0.0)


def mean_logprob(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    responses: Sequence[str],
    ended: Sequence[bool],
    *,
    batch_size: int = 32,
) -> np.ndarray:
    """(n,) mean log-probability of a token of each given answer, its end of turn included where it `ended`, in nats.

    NaN for an answer without tokens.
    """

    def along(rows: Rows) -> np.ndarray:
        logs, targets, answered = _read(rows, (policy,), tokenizer.pad_token_id)
        said = logs[0].gather(-1, targets.to(logs[0].device).unsqueeze(-1)).squeeze(-1).cpu()
        return ((said * answered).sum(1) / answered.sum(1)).double().numpy()

    return _by_answer(along, policy, tokenizer, prompts, responses, ended, batch_size, empty=np.nan)


def _by_answer(
    measure: Callable[[Rows], np.ndarray],
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    responses: Sequence[str],
    ended: Sequence[bool],
    batch_size: int,
    empty: float,
) -> np.ndarray:
    """(n,) `measure` of (prompt ids, answer ids), in batches whose logits fit; `empty` where an answer has no token."""
    import torch

    rows = []
    for prompt, response, whole in zip(prompts, responses, ended, strict=True):
        rows.append((chat.encode_prompt(tokenizer, prompt), chat.encode_response(tokenizer, response, ended=whole)))
    found = np.full(len(rows), empty)
    spoken = [i for i, (_, answer) in enumerate(rows) if answer]
    widest = max((len(rows[i][1]) for i in spoken), default=1)
    at_once = max(1, min(batch_size, _LOGITS // (widest * policy.get_input_embeddings().weight.shape[0])))
    for batch in batches([sum(map(len, rows[i])) for i in spoken], at_once):
        index = [spoken[i] for i in batch]
        with torch.inference_mode():
            found[index] = measure([rows[i] for i in index])
    return found


def _read(rows: Rows, models: Sequence[Any], pad_id: int) -> tuple[list[Any], Any, Any]:
    """(each model's log-probabilities of the next token (rows, width, vocabulary), the tokens that came, which count).

    rows are padded on the left, and read where their answers stand.
    """
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
    for model in models:
        logits = model(
            input_ids=ids.to(model.device),
            attention_mask=attention.to(model.device),
            position_ids=(attention.cumsum(1) - 1).clamp(min=0).to(model.device),
            logits_to_keep=width + 1,
            use_cache=False,
        ).logits
        logs.append(logits[:, :-1].float().log_softmax(-1))
    return logs, ids[:, -width:], answered
