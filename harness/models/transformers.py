"""The transformers engine: sampling and scoring with a causal language model loaded in this process.

`Session` holds a batch of growing contexts with one KV cache; everything else is built on it. Each row
draws from a random stream of its own, seeded by (seed, key), so a sample does not depend on the batch it
is drawn in, and an interrupted run resumes sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from harness.draws import uniforms
from harness.models import chat
from harness.models.base import Choice, OneTurn, Prompt, Sample, batches, begun_human_turn, sample_of

_SHARED_PREFIX = 24  # tokens; a shorter common prefix is not worth a forward of its own


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest prefix that all rows share, leaving at least one token of each."""
    limit = min(len(row) for row in rows) - 1
    first = rows[0]
    return next((i for i in range(limit) if any(row[i] != first[i] for row in rows)), max(limit, 0))


class Session:
    """A batch of contexts with one KV cache: `extend` feeds tokens, `sample` draws answers, `select` forks rows."""

    def __init__(self, model: Any, pad_id: int):
        self.model, self.pad_id = model, pad_id
        self.cache: Any = None
        self.mask = torch.zeros((1, 0), dtype=torch.long, device=model.device)
        self.pending: list[list[int]] = []
        self.tokens = 0

    @torch.inference_mode()
    def extend(self, rows: Sequence[Sequence[int]], *, keep: int = 1) -> torch.Tensor:
        """Feed `rows` (ids, one list a context); logits (rows, keep, vocabulary) at each row's last tokens."""
        rows = [[*pending, *row] for pending, row in zip(self.pending or [[]] * len(rows), rows, strict=True)]
        self.pending = []
        if self.cache is None:
            shared = common_prefix(rows) if len(rows) > 1 else 0
            if shared >= _SHARED_PREFIX:
                self._forward([list(rows[0][:shared])], 1)
                self.select([0] * len(rows))
                rows = [row[shared:] for row in rows]
        return self._forward(rows, keep)

    def select(self, indices: Sequence[int]) -> None:
        """Keep the contexts at `indices`, in that order; an index given twice forks its context."""
        index = torch.tensor(indices, device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.mask = self.mask[index]
        if self.pending:
            self.pending = [list(self.pending[i]) for i in indices]

    @torch.inference_mode()
    def sample(
        self,
        logits: torch.Tensor,
        draws: np.ndarray,
        *,
        temperature: float,
        stop: set[int],
        ended: Callable[[list[int]], int] | None = None,
    ) -> list[list[int]]:
        """Continue from `logits` (rows, vocabulary) for up to draws.shape[1] tokens.

        ended: how many of the last ids are not the row's own, but begin another turn; with any, the row stops.
        Returns the sampled ids of each row, its stop token included where it ended. The cache then holds
        the answers without their stop tokens and other turns, so that a next turn begins with one.
        """
        n = logits.shape[0]
        out: list[list[int]] = [[] for _ in range(n)]
        alive, foreign, began = np.ones(n, dtype=bool), [0] * n, self.mask.shape[1]
        for t in range(draws.shape[1]):
            picked = pick(logits, draws[:, t], temperature).tolist()
            for i in np.flatnonzero(alive):
                out[i].append(picked[i])
                foreign[i] = ended(out[i]) if ended is not None and picked[i] not in stop else 0
                if picked[i] in stop or foreign[i]:
                    alive[i] = False
            if not alive.any() or t + 1 == draws.shape[1]:
                break
            logits = self._forward([[picked[i]] if alive[i] else [] for i in range(n)], 1)[:, -1]
        for i in np.flatnonzero(foreign):  # the last of them has not been fed
            self.mask[i, began + len(out[i]) - foreign[i] : began + len(out[i]) - 1] = 0
        # A row still alive has its last token unfed.
        self.pending = [out[i][-1:] if alive[i] else [] for i in range(n)]
        return out

    def _forward(self, rows: Sequence[Sequence[int]], keep: int) -> torch.Tensor:
        """One forward over left-padded `rows`; padding stays masked inside the cache for good."""
        width = max(1, max(len(row) for row in rows))
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.long)
        new = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            if row:
                ids[i, width - len(row) :] = torch.tensor(row)
                new[i, width - len(row) :] = 1
        new = new.to(self.mask.device)
        self.mask = torch.cat([self.mask.expand(len(rows), -1), new], dim=1)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -width:]
        result = self.model(
            input_ids=ids.to(self.mask.device),
            attention_mask=self.mask,
            position_ids=positions,
            cache=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        self.cache = result.cache
        self.tokens += sum(len(row) for row in rows)
        return result.logits


def pick(logits: torch.Tensor, draws: np.ndarray, temperature: float) -> torch.Tensor:
    """Token ids (rows,) by inverse CDF of softmax(logits / temperature) at `draws` (rows,); 0 is greedy."""
    if temperature == 0:
        return logits.argmax(-1)
    cdf = torch.softmax(logits.float() / temperature, -1).double().cumsum(-1)
    u = torch.tensor(draws, dtype=torch.float64, device=logits.device)[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, u, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def decode(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    keys: Sequence[str],
    seed: int,
    eos_ids: set[int],
    pad_id: int,
) -> list[list[int]]:
    """Sample one answer for each row of `prompt_ids`, in one batch; ids include the stop token of a row that ended."""
    session = Session(model, pad_id)
    draws = np.stack([uniforms(seed, key, max_new_tokens) for key in keys])
    return session.sample(session.extend(prompt_ids)[:, -1], draws, temperature=temperature, stop=eos_ids)


@dataclass
class Generator(OneTurn):
    """The `LanguageModel` of a policy and its tokenizer, loaded in this process; `batch_size` rows share a forward."""

    model: Any
    tokenizer: Any
    batch_size: int = 32
    tokens: int = 0

    @property
    def parameters(self) -> int:
        return int(self.model.num_parameters())

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
        """As in the protocol; the conversations of a batch need equally many turns, so they are batched by those."""
        rows = self._rows(prompts)
        results: list[list[Sample]] = [[] for _ in rows]
        for index in self._by_turns(rows, requests):
            session = self.session()
            feed: Sequence[Sequence[int]] = [rows[i] for i in index]
            for turn in range(len(keys[index[0]])):
                if turn:
                    feed = [chat.encode_next_turn(self.tokenizer, requests[i][turn - 1]) for i in index]
                said = self.answer(
                    session,
                    session.extend(feed)[:, -1],
                    [keys[i][turn] for i in index],
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    seed=seed,
                )
                for i, sample in zip(index, said, strict=True):
                    results[i].append(sample)
            self.tokens += session.tokens
            if on_batch is not None:
                on_batch(index, [results[i] for i in index])
        return results

    def converse_batches(
        self, prompts: Sequence[Prompt], requests: Sequence[Sequence[str]], processes: int
    ) -> list[list[int]]:
        """As in `spread.Splits`: the batches of `converse`, however many `processes` there are."""
        return self._by_turns(self._rows(prompts), requests)

    def _rows(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return [chat.encode_messages(self.tokenizer, chat.messages(prompt)) for prompt in prompts]

    def _by_turns(self, rows: Sequence[Sequence[int]], requests: Sequence[Sequence[str]]) -> list[list[int]]:
        members: dict[int, list[int]] = {}
        for i, asked in enumerate(requests):
            members.setdefault(len(asked), []).append(i)
        return [
            [some[b] for b in batch]
            for some in members.values()
            for batch in batches([len(rows[i]) for i in some], self.batch_size)
        ]

    def session(self) -> Session:
        """An empty batch of contexts."""
        return Session(self.model.eval(), self.tokenizer.pad_token_id)

    def answer(
        self,
        session: Session,
        logits: torch.Tensor,
        keys: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[Sample]:
        """Sample an answer for each context of `session`."""
        draws = np.stack([uniforms(seed, key, max_new_tokens) for key in keys])
        stop = chat.stop_ids(self.tokenizer)
        ended = None if self.tokenizer.chat_template is not None else partial(begun_human_turn, self.tokenizer)
        ids = session.sample(logits, draws, temperature=temperature, stop=stop, ended=ended)
        return [sample_of(self.tokenizer, row) for row in ids]

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
        """As in the protocol; a prefix that neighbours share (few-shot examples, the two orders) is read once."""
        rows = self._rows(prompts)
        names = keys if keys is not None else [str(i) for i in range(len(prompts))]
        opened = chat.encode_opening(self.tokenizer, opening)
        begun, options = chat.encode_choices(self.tokenizer, lead, choices, reasoned=think > 0)
        results: dict[int, Choice] = {}
        for index in self._by_prefix(rows, together):
            session = self.session()
            said: Sequence[Sample | None] = [None] * len(index)
            if think:
                logits = self.read(session, [rows[i] + opened for i in index])
                said = self.answer(
                    session, logits, [names[i] for i in index], max_new_tokens=think, temperature=1.0, seed=seed
                )
                logits = session.extend([begun] * len(index))[:, -1]
            else:
                logits = self.read(session, [rows[i] + begun for i in index])
            scores = self.score_options(session, logits, options)
            self.tokens += session.tokens
            done = [Choice(row, reasoning) for row, reasoning in zip(scores, said, strict=True)]
            results |= dict(zip(index, done, strict=True))
            if on_batch is not None:
                on_batch(index, done)
        return [results[i] for i in range(len(rows))]

    def choose_batches(self, prompts: Sequence[Prompt], together: int, processes: int) -> list[list[int]]:
        """As in `spread.Splits`: the batches of `choose`, however many `processes` there are."""
        return self._by_prefix(self._rows(prompts), together)

    def _by_prefix(self, rows: Sequence[Sequence[int]], together: int) -> list[list[int]]:
        if together > 1:
            groups = [list(range(len(rows)))[start : start + together] for start in range(0, len(rows), together)]
        else:
            groups = group_by_prefix(rows)
        longest = [max(len(rows[i]) for i in group) for group in groups]
        size = max(1, self.batch_size // max(together, 2))
        return [[i for g in batch for i in groups[g]] for batch in batches(longest, size)]

    def read(self, session: Session, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Begin `session` with `rows`, prefixes of neighbours read once; logits (rows, vocabulary) at their ends."""
        groups = group_by_prefix(rows)
        if all(len(group) == 1 for group in groups):
            return session.extend(rows)[:, -1]
        shared = [common_prefix([rows[i] for i in group]) for group in groups]
        session.extend([rows[group[0]][:n] for group, n in zip(groups, shared, strict=True)])
        session.select([g for g, group in enumerate(groups) for _ in group])
        return session.extend([rows[i][n:] for group, n in zip(groups, shared, strict=True) for i in group])[:, -1]

    @torch.inference_mode()
    def score_options(self, session: Session, logits: torch.Tensor, options: Sequence[list[int]]) -> np.ndarray:
        """Log-probability (rows, k) of each option's ids as the continuation of each context, from its `logits`."""
        first = torch.log_softmax(logits.float(), -1)
        scores = torch.stack([first[:, option[0]] for option in options], 1)
        if all(len(option) == 1 for option in options):
            return scores.double().cpu().numpy()
        n, k, width = len(logits), len(options), max(len(option) for option in options)
        session.select([i for i in range(n) for _ in range(k)])
        # Left padding puts the options' ends in line; a row's logits at its last len-1 tokens are its own.
        logprobs = torch.log_softmax(session.extend(list(options) * n, keep=width).float(), -1).view(n, k, width, -1)
        for j, option in enumerate(options):
            for t in range(1, len(option)):
                scores[:, j] += logprobs[:, j, width - len(option) + t - 1, option[t]]
        return scores.double().cpu().numpy()


def group_by_prefix(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Neighbouring rows that share more than half of the shorter one, as groups of indices.

    What all rows share (few-shot examples) does not count: `Session.extend` reads that once by itself.
    """
    common = common_prefix(rows) if len(rows) > 1 else 0
    own = [row[common:] for row in rows]
    groups: list[list[int]] = []
    for i, row in enumerate(own):
        first = own[groups[-1][0]] if groups else row
        if groups and common_prefix([first, row]) >= max(_SHARED_PREFIX, min(len(first), len(row)) // 2):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
