"""Diversity of responses at equal size: distinct-2, self-BLEU, compression ratio; and their length.

All but length depend on how much text is read, so every group of responses is read up to the same number of words (or
of responses, for self-BLEU), those of the smallest group. Prompts are taken in one seeded order, first one sample of
each, so groups that share prompts are read on the same ones.

- distinct_2: distinct word pairs over all word pairs (Li et al. 2016); lower is more repetitive.
- compression_ratio: bytes over bytes after zlib (Shaib et al. 2024); higher is more repetitive.
- self_bleu: mean BLEU of a response against responses to other prompts (Zhu et al. 2018), 0 to 100; higher is more
  repetitive.
- length: words of a response.

Each metric comes as values that average to it, one row a prompt or response, ready for a bootstrap by prompt. The
corpus statistics are spread over prompts by the jackknife (Efron and Tibshirani 1993, chapter 11).
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

METRICS = ("distinct_2", "self_bleu", "compression_ratio", "length")
MAX_WORDS = 10_000
MIN_WORDS = 100  # a group with fewer words is not measured: it would shrink the others to nothing
MAX_BLEU = 30  # responses compared, all pairs

Tokens = list[str]


class Values(NamedTuple):
    """values (N,) averaging to a metric, and the prompt of each."""

    values: np.ndarray
    prompts: np.ndarray


def measure(groups: Mapping[str, pd.DataFrame], seed: int = 0) -> tuple[dict[tuple[str, str], Values], list[str]]:
    """((group, metric) -> Values, notes) of response tables by name; equal sizes across the groups given."""
    notes, found = [], {}
    read = {}
    for name, table in groups.items():
        ordered = in_order(table, seed)
        tokens = [_tokens(response) for response in ordered["response"]]
        prompts = ordered["prompt"].to_numpy(dtype=object)
        found[name, "length"] = Values(np.array([float(len(r.split())) for r in ordered["response"]]), prompts)
        if sum(map(len, tokens)) < MIN_WORDS:
            notes.append(f"{name}: diversity not measured: fewer than {MIN_WORDS} words")
        else:
            read[name] = tokens, prompts
    if not read:
        return found, notes
    budget = min(MAX_WORDS, *(sum(map(len, tokens)) for tokens, _ in read.values()))
    size = min(MAX_BLEU, *(len(set(prompts)) for _, prompts in read.values()))
    notes.append(
        f"distinct_2 and compression_ratio read {budget} words of each arm and step, self_bleu {size} responses"
    )
    for name, (tokens, prompts) in read.items():
        by_prompt = _cut(tokens, prompts, budget)
        labels = np.array(list(by_prompt), dtype=object)
        texts = list(by_prompt.values())
        found[name, "distinct_2"] = Values(_spread(*_distinct_2(texts)), labels)
        found[name, "compression_ratio"] = Values(_jackknife(_compression, texts), labels)
        if size > 1:
            found[name, "self_bleu"] = Values(self_bleu([" ".join(t) for t in tokens[:size]]), prompts[:size])
    if size < 2:
        notes.append("self_bleu not measured: it needs two prompts in every arm and step")
    return found, notes


def in_order(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows in a seeded order of prompts, one sample of each first; the order of `table` plays no part."""
    keys = pd.util.hash_array(table["prompt"].to_numpy(dtype=object), hash_key=f"{seed % 10**16:016d}")
    ordered = table.assign(_key=keys).sort_values(["prompt", "sample", "response"])
    ordered["_round"] = ordered.groupby("prompt").cumcount()
    return ordered.sort_values(["_round", "_key", "prompt"]).drop(columns=["_key", "_round"])


def self_bleu(texts: Sequence[str]) -> np.ndarray:
    """BLEU (sacrebleu, effective order) of each tokenised text against all the others, 0 to 100: (len(texts),)."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True, tokenize="none")
    return np.array([bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts)])


def _tokens(text: str) -> Tokens:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _cut(tokens: list[Tokens], prompts: np.ndarray, budget: int) -> dict[str, list[Tokens]]:
    """The first `budget` tokens, by prompt."""
    by_prompt: dict[str, list[Tokens]] = {}
    for words, prompt in zip(tokens, prompts, strict=True):
        if budget <= 0:
            break
        by_prompt.setdefault(prompt, []).append(words[:budget])
        budget -= len(words)
    return by_prompt


def _distinct_2(texts: Sequence[Sequence[Tokens]]) -> tuple[float, np.ndarray]:
    """distinct-2 of all texts (prompts, responses, words), and without each prompt in turn."""
    pairs = [Counter(p for words in responses for p in pairwise(words)) for responses in texts]
    holders = Counter(pair for counts in pairs for pair in counts)
    total = sum(counts.total() for counts in pairs)
    own = np.array([sum(holders[pair] == 1 for pair in counts) for counts in pairs])
    left = np.array([total - counts.total() for counts in pairs])
    return len(holders) / max(total, 1), (len(holders) - own) / np.maximum(left, 1)


def _compression(texts: Sequence[Sequence[Tokens]]) -> float:
    raw = "\n".join(" ".join(words) for responses in texts for words in responses).encode()
    return len(raw) / len(zlib.compress(raw))


def _jackknife(statistic: Callable[[Sequence[Sequence[Tokens]]], float], texts: list[list[Tokens]]) -> np.ndarray:
    whole = statistic(texts)
    if len(texts) == 1:
        return np.array([whole])
    return _spread(whole, np.array([statistic([*texts[:i], *texts[i + 1 :]]) for i in range(len(texts))]))


def _spread(whole: float, left_out: np.ndarray) -> np.ndarray:
    """Jackknife influence values, centred on the statistic itself: (n,)."""
    n = len(left_out)
    return whole + (n - 1) * (left_out.mean() - left_out)
