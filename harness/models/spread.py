"""The rows of one call spread over several processes, each of which holds the whole model.

The batches are those of one process, since what shares a batch moves a model's last digits: only who carries out which
differs, so the rows' values do not depend on how many processes there are. Who the others are is the runner's business
(`among`); without any, this process does all.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.models.base import Choice, LanguageModel, OneTurn, Prompt, Sample


class LostError(Exception):
    """A helper was lost, and with it the batch that it had."""


@dataclass(frozen=True)
class Loading:
    """How any process comes to hold a model: a module-level function and its arguments. name: among a process's."""

    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __call__(self) -> Any:
        return self.function(**self.arguments)


class Helper(Protocol):
    """Another process that can hold the models which this one holds."""

    def ready(self, loading: Loading, wait: float) -> bool:
        """Whether the model is held there, after `wait` seconds at most. Raises UserError where it will never be."""

    def call(self, loading: Loading, method: str, arguments: Mapping[str, Any]) -> tuple[Any, int]:
        """(what the model's method gives, the tokens it read and wrote). Raises `LostError`, or as the method."""

    def forget(self, loading: Loading) -> None:
        """The model is not needed any more."""


_helpers: list[Helper] = []  # of the stage that this process carries out


@contextlib.contextmanager
def among(helpers: Sequence[Helper]) -> Iterator[None]:
    """Models that are opened meanwhile spread their rows over this process and `helpers`."""
    _helpers[:] = helpers
    try:
        yield
    finally:
        _helpers.clear()


def processes() -> int:
    """This one, and its helpers."""
    return 1 + len(_helpers)


class Copies:
    """A model that this process holds, and its helpers too once there are batches for them. tokens: read by those."""

    def __init__(self, function: Callable[..., Any], **arguments: Any):
        self.loading, self.tokens = Loading(function, arguments), 0
        weakref.finalize(self, _forget, self.loading)

    def each(
        self,
        batches: Sequence[list[int]],
        here: Callable[[list[int]], Any],
        there: Callable[[list[int]], tuple[str, Mapping[str, Any]]],
        hear: Callable[[list[int], Any], None],
    ) -> None:
        """hear(batch, result) for each of `batches`, one at a time and in any order.

        here: what this process makes of a batch. there: the method and arguments by which a helper makes the same.
        """
        shares = _Shares(batches, hear)
        threads = [
            threading.Thread(target=self._serve, args=(shares, helper, there), daemon=True)
            for helper in (_helpers if len(batches) > 1 else ())
        ]
        for thread in threads:
            thread.start()
        try:
            while (batch := shares.take()) is not None:
                shares.ended(batch, here(batch))
        except BaseException as error:
            shares.stop(error)
            raise
        if shares.failure is not None:
            raise shares.failure
        for thread in threads:  # none asks its helper for this model once another is opened
            thread.join()
        self.tokens += shares.tokens

    def _serve(
        self, shares: _Shares, helper: Helper, there: Callable[[list[int]], tuple[str, Mapping[str, Any]]]
    ) -> None:
        """Have `helper` carry out batches until none is left."""
        try:
            while not shares.over():
                if not helper.ready(self.loading, wait=0.2):
                    continue
                batch = shares.take()
                if batch is None:
                    return
                try:
                    result, tokens = helper.call(self.loading, *there(batch))
                except LostError:
                    shares.give_back(batch)
                    continue
                shares.ended(batch, result, tokens)
        except BaseException as error:
            shares.stop(error)


def _forget(loading: Loading) -> None:
    for helper in _helpers:
        helper.forget(loading)


class _Shares:
    """Batches that threads take one by one; it is over when all have ended, or with the first failure."""

    def __init__(self, batches: Sequence[list[int]], hear: Callable[[list[int], Any], None]):
        self.todo, self.taken, self.tokens, self.hear = deque(batches), 0, 0, hear
        self.failure: BaseException | None = None
        self.changed = threading.Condition()

    def over(self) -> bool:
        return self.failure is not None or not (self.todo or self.taken)

    def take(self) -> list[int] | None:
        """The next batch, once there is one: a helper that was lost gives its own back. None when it is over."""
        with self.changed:
            self.changed.wait_for(lambda: self.todo or self.over())
            if self.over():
                return None
            self.taken += 1
            return self.todo.popleft()

    def give_back(self, batch: list[int]) -> None:
        with self.changed:
            self.todo.appendleft(batch)
            self.taken -= 1
            self.changed.notify_all()

    def ended(self, batch: list[int], result: Any, tokens: int = 0) -> None:
        with self.changed:
            if self.failure is None:
                self.hear(batch, result)
            self.tokens += tokens
            self.taken -= 1
            self.changed.notify_all()

    def stop(self, error: BaseException) -> None:
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()


class Splits(LanguageModel, Protocol):
    """An engine that says which rows one of several processes takes at a time."""

    def converse_batches(
        self, prompts: Sequence[Prompt], requests: Sequence[Sequence[str]], processes: int
    ) -> list[list[int]]:
        """Rows of `converse`, a list for each batch."""

    def choose_batches(self, prompts: Sequence[Prompt], together: int, processes: int) -> list[list[int]]:
        """Rows of `choose`, a list for each batch; groups of `together` neighbours are not parted."""


class SpreadModel(OneTurn):
    """The `LanguageModel` of an engine in this process and of its helpers' copies."""

    def __init__(self, own: Splits, copies: Copies):
        self.own, self.copies = own, copies
        self.tokens = 0

    @property
    def parameters(self) -> int | None:
        return self.own.parameters

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
        """As in the protocol."""
        results: dict[int, list[Sample]] = {}

        def rows(batch: list[int]) -> dict[str, Any]:
            taken: dict[str, Sequence[Any]] = {"prompts": prompts, "requests": requests, "keys": keys}
            how = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
            return {name: [values[i] for i in batch] for name, values in taken.items()} | how

        self.copies.each(
            self.own.converse_batches(prompts, requests, processes()),
            lambda batch: self.own.converse(**rows(batch)),
            lambda batch: ("converse", rows(batch)),
            _keeping(results, on_batch),
        )
        self.tokens = self.own.tokens + self.copies.tokens
        return [results[i] for i in range(len(prompts))]

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
        """As in the protocol."""
        names = keys if keys is not None else [str(i) for i in range(len(prompts))]
        results: dict[int, Choice] = {}

        def rows(batch: list[int]) -> dict[str, Any]:
            how = {"choices": choices, "lead": lead, "seed": seed, "think": think, "opening": opening}
            taken = {"prompts": [prompts[i] for i in batch], "keys": [names[i] for i in batch]}
            return taken | how | {"together": len(batch)}  # they are one batch

        self.copies.each(
            self.own.choose_batches(prompts, together, processes()),
            lambda batch: self.own.choose(**rows(batch)),
            lambda batch: ("choose", rows(batch)),
            _keeping(results, on_batch),
        )
        self.tokens = self.own.tokens + self.copies.tokens
        return [results[i] for i in range(len(prompts))]


def _keeping(results: dict[int, Any], on_batch: Callable[[list[int], Any], None] | None) -> Callable[..., None]:
    def hear(batch: list[int], found: Sequence[Any]) -> None:
        results.update(zip(batch, found, strict=True))
        if on_batch is not None:
            on_batch(batch, found)

    return hear
