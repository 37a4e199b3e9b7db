"""What PPO makes of a scorer's scores before it optimises them (`rl.reward_normalisation`).

A PM is trained on differences, so that neither its zero nor its scale means anything, while PPO's KL coefficient and
value head are in its units. Both ways here are resumable: `state` is part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


class Normaliser(Protocol):
    """Turns the scores (n,) of answers to the prompts at the indices `prompts` into rewards (n,)."""

    def __call__(self, scores: np.ndarray, prompts: Sequence[int]) -> np.ndarray: ...

    def state(self) -> dict[str, Any]:
        """What `restore` needs, of plain values."""

    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass
class Unchanged:
    def __call__(self, scores: np.ndarray, prompts: Sequence[int]) -> np.ndarray:
        return scores

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


@dataclass
class Running:
    """Distance from the mean of all scores so far, these included, in their (population) standard deviations."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # summed, of distances from the mean

    def __call__(self, scores: np.ndarray, prompts: Sequence[int]) -> np.ndarray:
        mean, count = float(scores.mean()), self.count + len(scores)
        shift = mean - self.mean  # Chan et al. 1979: joins the moments of two sets
        self.squares += float(((scores - mean) ** 2).sum()) + shift**2 * self.count * len(scores) / count
        self.mean += shift * len(scores) / count
        self.count = count
        return (scores - self.mean) / np.sqrt(self.squares / count + 1e-8)

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def restore(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


@dataclass
class Reference:
    """Distance from the score of the start policy's own answer to the same prompt, sampled once for each prompt.

    So the offset of a prompt drops out, in log-odds (Shen et al. 2024, arXiv:2403.07708, with one answer a prompt).
    """

    answered: Callable[[Sequence[int]], np.ndarray]  # scores of the start policy's answers to those prompts
    scores: dict[int, float] = field(default_factory=dict)

    def __call__(self, scores: np.ndarray, prompts: Sequence[int]) -> np.ndarray:
        new = sorted(set(prompts) - set(self.scores))
        if new:
            self.scores |= zip(new, map(float, self.answered(new)), strict=True)
        return scores - np.array([self.scores[i] for i in prompts])

    def state(self) -> dict[str, Any]:
        return {"scores": self.scores}

    def restore(self, state: dict[str, Any]) -> None:
        self.scores = dict(state["scores"])
