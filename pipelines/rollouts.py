"""What PPO knows of sampled answers, who samples them, and how policy and value head read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from harness.models import chat, sharded
from harness.models import transformers as generation
from pipelines.ppo_math import Batch

_AT_ONCE = 64  # answers that the policy itself samples at once


class RolloutEngine(Protocol):
    """What samples rollouts in place of the policy itself: `harness.models.vllm.VllmModel`."""

    def sync(self, policy: Any, update: int) -> None:
        """Take the policy's weights; from now on rollouts are those of this update."""

    def rollout(
        self,
        contexts: Sequence[Sequence[int]],
        *,
        update: int,
        keys: Sequence[str],
        seed: int,
        max_new_tokens: int,
        temperature: float,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """(ids, their log-probabilities) of an answer to each context; an error if `update` is not what was synced."""

    def rest(self) -> None:
        """Leave the memory of a shared GPU to training, until the next `sync`."""


@dataclass
class Rollouts:
    """Sampled answers with what was known of them before the update; tensors are (rows, tokens)."""

    prompts: list[list[int]]
    responses: list[list[int]]
    scores: np.ndarray  # the scorer's own
    rewards: np.ndarray  # what of them is optimised: normalised, less the penalty of cut answers
    ended: np.ndarray
    mask: Tensor
    logp: Tensor
    ref_logp: Tensor
    values: Tensor
    entropy: Tensor
    sampled_logp: list[list[float]] | None = None  # the rollout engine's own
    advantages: Tensor = field(default_factory=lambda: torch.empty(0))
    returns: Tensor = field(default_factory=lambda: torch.empty(0))


class ActorCritic(nn.Module):
    """A policy and its value head; both read response positions only (the vocabulary is wide)."""

    def __init__(self, policy: Any, temperature: float):
        super().__init__()
        self.policy, self.temperature = policy, temperature
        self.value = nn.Linear(policy.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, batch: Batch, values_only: bool = False) -> tuple[Tensor, Tensor]:
        """(logits at the sampling temperature, values): at the states in which each response token was chosen.

        values_only: no gradient reaches the policy.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not values_only):
            logits, hidden = response_logits(self.policy, batch)
            logits = logits if self.temperature == 1 else logits / self.temperature
        return logits, self.value(hidden.to(self.value.weight.dtype)).squeeze(-1).float()


def response_logits(policy: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """(logits (rows, tokens, vocabulary) in float32, last hidden states), from which response tokens were drawn.

    The hidden states are what the output layer reads, taken there, so that every model's own last steps (norm,
    scaling, capping of logits) stay in force.
    """
    width = batch.response.shape[1]
    start = batch.ids.shape[1] - width - 1
    seen: list[Tensor] = []
    hook = policy.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = policy(
            input_ids=batch.ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            logits_to_keep=torch.arange(start, start + width, device=batch.ids.device),
            use_cache=False,
        ).logits
    finally:
        hook.remove()
    return logits.float(), seen[0]


def sampled(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    keys: Sequence[str],
    *,
    turn: int,
    engine: RolloutEngine | None,
    accelerator: Any,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> tuple[list[list[int]], list[list[float]] | None]:
    """An answer (ids) to each prompt, drawn from the streams `keys` by `engine`, or by the policy itself.

    The engine is given the policy's weights before, those of `turn`, and its log-probabilities come too.
    """
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    if engine is not None:
        engine.sync(policy, turn)
        found = engine.rollout(prompts, update=turn, keys=keys, **settings)
        engine.rest()
        return found
    answers: list[list[int]] = [[] for _ in prompts]
    with accelerator.autocast(), sharded.gathered(policy):
        for rows in generation.batches([len(row) for row in prompts], _AT_ONCE):
            said = generation.decode(
                policy,
                [prompts[i] for i in rows],
                keys=[keys[i] for i in rows],
                eos_ids=chat.stop_ids(tokenizer),
                pad_id=tokenizer.pad_token_id,
                **settings,
            )
            for i, answer in zip(rows, said, strict=True):
                answers[i] = answer
    return answers, None


def engine_gap(rollouts: Rollouts) -> dict[str, float]:
    """How far the engine's log-probabilities of the sampled tokens lie from the trainer's: mean and largest."""
    if rollouts.sampled_logp is None:
        return {}
    gaps = np.concatenate(
        [
            np.abs(rollouts.logp[i, : len(row)].cpu().numpy() - np.asarray(rollouts.sampled_logp[i][: len(row)]))
            for i, row in enumerate(rollouts.responses)
        ]
    )
    return {"engine_gap_mean": float(gaps.mean()), "engine_gap_max": float(gaps.max())}
