"""A model whose opinions are known: what judges, labels and HHH ask is `choose` alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from harness.models.base import Choice, Sample


class FakeModel:
    """Log-probabilities of A and B from `judge(question, reasoning)`; its reasonings are `think(question, key)`."""

    def __init__(
        self,
        judge: Callable[[str, str], Sequence[float]],
        think: Callable[[str, str], str] = lambda question, key: "",
        parameters: int | None = None,
    ):
        self.judge, self.think, self.parameters = judge, think, parameters
        self.tokens = 0
        self.seen: list[str] = []
        self.calls: list[dict[str, Any]] = []

    def choose(
        self,
        prompts: Sequence[Any],
        choices: Sequence[str],
        *,
        keys: Sequence[str],
        think: int = 0,
        together: int = 1,
        on_batch: Callable[[list[int], list[Choice]], None] | None = None,
        **asked: Any,
    ) -> list[Choice]:
        assert list(choices) == ["A", "B"]
        assert len(set(keys)) == len(prompts)
        self.calls.append(asked | {"n": len(prompts), "think": think})
        found = []
        for prompt, key in zip(prompts, keys, strict=True):
            question = prompt[-1]["content"]
            self.seen.append(question)
            reasoning = self.think(question, key) if think else None
            logprobs = np.asarray(self.judge(question, reasoning or ""), dtype=float)
            found.append(Choice(logprobs, Sample(reasoning, True) if reasoning is not None else None))
        if on_batch is not None:
            for start in range(0, len(found), together):
                on_batch(list(range(start, start + together)), found[start : start + together])
        return found

    def sample(self, *_: Any, **__: Any) -> list[Sample]:
        raise NotImplementedError

    def converse(self, *_: Any, **__: Any) -> list[list[Sample]]:
        raise NotImplementedError
