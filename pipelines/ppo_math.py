"""The formulas of PPO and the layout of its batches: pure functions of (rows, tokens) tensors.

The mask is 1 on real response tokens.

Schulman et al. 2017 (arXiv:1707.06347), Schulman et al. 2016 for GAE (arXiv:1506.02438), Ziegler et al. 2019 for
the KL penalty and its adaptive coefficient (arXiv:1909.08593).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Batch:
    """Rows of prompt (padded left) and response (padded right); `mask` (rows, tokens) is 1 on response tokens."""

    ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    response: Tensor
    mask: Tensor


def collate(prompts: Sequence[list[int]], responses: Sequence[list[int]], pad_id: int, device: Any) -> Batch:
    """A batch whose masks come from the lengths, never from token ids: an end of turn is no padding."""
    left, right = max(map(len, prompts)), max(map(len, responses))
    ids = torch.full((len(prompts), left + right), pad_id)
    attention = torch.zeros_like(ids)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids[i, left - len(prompt) : left + len(response)] = torch.tensor(prompt + response)
        attention[i, left - len(prompt) : left + len(response)] = 1
    ids, attention = ids.to(device), attention.to(device)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    return Batch(ids, attention, positions, ids[:, left:], attention[:, left:].float())


def prompt_indices(n_prompts: int, n_rollouts: int, update: int, seed: int) -> list[int]:
    """The prompts of `update` (from 1): a stretch of an endless row of shuffles, so all come equally often."""
    start = (update - 1) * n_rollouts
    shuffles: dict[int, np.ndarray] = {}
    index = []
    for place in range(start, start + n_rollouts):
        epoch, at = divmod(place, n_prompts)
        if epoch not in shuffles:
            shuffles[epoch] = np.random.default_rng([seed, epoch]).permutation(n_prompts)
        index.append(int(shuffles[epoch][at]))
    return index


def own_turn(tokenizer: Any, ids: list[int]) -> list[int]:
    """`ids` up to a human turn that a model without a chat template went on to write, which no scorer reads."""
    if tokenizer.chat_template is None:
        for n in range(1, len(ids)):
            if "\n\nHuman:" in tokenizer.decode(ids[max(0, n - 8) : n]):
                return ids[:n]
    return ids


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each of `ids` (rows, tokens) under `logits` (rows, tokens, vocabulary), in nats."""
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def entropies(logits: Tensor) -> Tensor:
    """Entropy (rows, tokens) of the distributions given by `logits`, in nats."""
    rows = (row.log_softmax(-1) for row in logits)  # one at a time: copies of all logits would be the peak of memory
    return torch.stack([-(logp.exp() * logp).sum(-1) for logp in rows])


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` over the places where `mask` is 1."""
    return (x * mask).sum() / mask.sum()


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with mean 0 and (population) variance 1 over real tokens; 0 elsewhere."""
    centred = x - masked_mean(x, mask)
    return centred * torch.rsqrt(masked_mean(centred**2, mask) + 1e-8) * mask


def token_rewards(scores: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """-kl_coef (log pi - log pi_ref) on every response token, and `scores` (rows,) on each row's last one.

    The last one is the end of turn, or the token at which the length limit cut (Ziegler et al. 2019, eq. 2).
    """
    rewards = -kl_coef * (logp - ref_logp) * mask
    last = mask.sum(1).long() - 1
    return rewards.scatter_add(1, last.unsqueeze(1), scores.to(rewards.dtype).unsqueeze(1))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """(advantages, returns), both (rows, tokens) and 0 on padding; the value after a row's last token is 0."""
    values = values * mask
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    delta = (rewards + gamma * after - values) * mask
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        running = delta[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages, advantages + values


def policy_losses(logp: Tensor, old_logp: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Clipped surrogate loss of each token (Schulman et al. 2017, eq. 7, negated)."""
    ratio = (logp - old_logp).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def clipped(logp: Tensor, old_logp: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """1 for each token whose clipped term is the one that counts, so that it has no gradient."""
    ratio = (logp - old_logp).exp()
    return (-advantages * ratio.clamp(1 - clip, 1 + clip) > -advantages * ratio).to(logp.dtype)


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error of each token's value, the larger of clipped and unclipped."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def adapt(kl_coef: float, kl: float, target: float, rate: float = 0.1) -> float:
    """The next KL coefficient, given a mean sequence KL in nats (Ziegler et al. 2019, section 2.2)."""
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + rate * error)
