"""What a model is to all callers, whatever engine runs it: it samples, chooses among options and holds conversations.

Every draw is named: an answer is a function of (weights, prompt, seed, key) on one engine and machine, whatever batch
it is drawn in, so a stage submits all its rows at once and each engine batches as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from harness.models import chat

HUMAN_TURN = "\n\nHuman:"  # what a model without a chat template may go on with
Prompt = str | Sequence[chat.Message]  # plain text, HH layout, or messages


@dataclass(frozen=True)
class Sample:
    """One sampled answer. `ended`: the model ended it itself; else it was cut at the length limit.

    ids: its tokens, the stop token included where there is one; empty where the engine does not give them.
    """

    text: str
    ended: bool
    ids: Sequence[int] = ()


@dataclass(frozen=True)
class Choice:
    """Log-probabilities (k,) of the choices, in nats, and the reasoning that was sampled before them."""

    logprobs: np.ndarray
    reasoning: Sample | None = None


class LanguageModel(Protocol):
    """A model behind some engine (`open.open_model`). `on_batch(indices, results)` receives rows as they finish."""

    tokens: int  # read and written so far

    @property
    def parameters(self) -> int | None:
        """Number of weights; None where the engine does not say."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
        keys: Sequence[str] | None = None,
        on_batch: Callable[[list[int], list[Sample]], None] | None = None,
    ) -> list[Sample]:
        """One answer a prompt; `keys` name the random streams (default: its place); temperature 0 is greedy."""

    def converse(
        self,
        prompts: Sequence[Prompt],
        requests: Sequence[Sequence[str]],
        *,
        keys: Sequence[Sequence[str]],
        max_new_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
        on_batch: Callable[[list[int], list[list[Sample]]], None] | None = None,
    ) -> list[list[Sample]]:
        """Answers of growing conversations: to each prompt, then to each of its `requests` in view of all before.

        Row i has len(requests[i]) + 1 answers, drawn from the streams `keys[i]`.
        """

    def choose(
        self,
        prompts: Sequence[Prompt],
        choices: Sequence[str],
        *,
        lead: str = "",
        keys: Sequence[str] | None = None,
        seed: int = 0,
        think: int = 0,
        opening: str = "",
        together: int = 1,
        on_batch: Callable[[list[int], list[Choice]], None] | None = None,
    ) -> list[Choice]:
        """Log-probabilities of `choices` after the beginning `lead` of the answer to each prompt.

        think: tokens of reasoning, at most, that the model writes before `lead` (at T = 1, streams of `keys`).
        opening: what that reasoning begins with, given to the model; not repeated in `Choice.reasoning`.
        together: so many neighbours finish in one batch (the two orders of a comparison).
        """


class OneTurn:
    """`LanguageModel.sample` of an engine whose `converse` does all: conversations of one turn."""

    def converse(self, *args: Any, **kwargs: Any) -> list[list[Sample]]:
        raise NotImplementedError

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
        keys: Sequence[str] | None = None,
        on_batch: Callable[[list[int], list[Sample]], None] | None = None,
    ) -> list[Sample]:
        """As in the protocol."""
        names = keys if keys is not None else [str(i) for i in range(len(prompts))]

        def flat(index: list[int], chains: list[list[Sample]]) -> None:
            if on_batch is not None:
                on_batch(index, [chain[0] for chain in chains])

        chains = self.converse(
            prompts,
            [()] * len(prompts),
            keys=[(name,) for name in names],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            on_batch=flat,
        )
        return [chain[0] for chain in chains]


def logprobs(model: LanguageModel, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
    """(n, k) log-probabilities of each of `choices` as the beginning of the answer to each prompt, in nats."""
    found = [choice.logprobs for choice in model.choose(prompts, choices)]
    return np.stack(found) if found else np.empty((0, len(choices)))


def sample_of(tokenizer: Any, ids: Sequence[int]) -> Sample:
    """The answer whose sampled tokens are `ids`; one that goes on with a human turn of its own has ended before it."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    own = chat.clean(text)
    ended = (bool(ids) and ids[-1] in chat.stop_ids(tokenizer)) or own != text.strip()
    return Sample(own, ended, tuple(ids))


def begun_human_turn(tokenizer: Any, ids: Sequence[int]) -> int:
    """How many of the last `ids` write the beginning of a human turn; 0 where they write none."""
    last = list(ids[-8:])
    at = tokenizer.decode(last).find(HUMAN_TURN)
    if at < 0:
        return 0
    own = max((n for n in range(len(last)) if len(tokenizer.decode(last[:n])) <= at), default=0)
    return len(last) - own


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of `size`, longest first, so that rows of a batch need little padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]
