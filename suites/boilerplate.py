"""Boilerplate: text that one arm gives to unrelated prompts, mined with no phrase known in advance.

The over-trained RL-CAI policy of the paper ends answers with reassurance that fits nothing (section 4.3). Whatever
the words, such text gives itself away by recurring where the prompts have nothing in common. Two kinds are mined:

- template: five words in a row, inside one sentence;
- sentence: a cluster of sentences of at least four words whose word sets have Jaccard similarity >= 0.7 with the
  cluster's leader.

Either is boilerplate when it occurs for at least k different prompts. Samples of one prompt count once; prompts that
are near-duplicates (last human turn, same 0.7) count as one prompt; words taken from the response's own prompt do
not count. k is 3, or more where chance asks for it: k is the number of prompts that a phrase used 100 times in a
million words, whatever the prompt, would reach. That rate was fixed on other text: in 9,478 assistant turns of HH-RLHF
and AlpacaEval (0.58 million words) no five words in a row but "as an AI language model" were more frequent.
So k grows with the corpus, and more or longer answers do not make boilerplate by themselves.

A response holds boilerplate when it holds such a phrase, k - 1 of whose prompts are then *other* prompts. Mining is
exact for templates; sentence clusters may miss a near pair with probability 0.01 (see `harness.near_duplicates`).
Function words, order of rows and names of arms play no part. Words are runs of letters and digits, so scripts that put
no space between words are not served.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from harness.near_duplicates import leader_clusters, near_pairs
from harness.words import HASH_MULTIPLIER, Encoded, encode, word_sets

_SENTENCE = re.compile(r".+?(?:[.!?\u2026]+[\"')\]\u201d\u2019*]*(?=\s)|$|(?=\n))\s*", re.DOTALL)
_GROWN = 500  # n-grams, most frequent first, that are grown into the phrases listed
_LONGEST = 20  # words of a listed template
_SHARE = 0.8  # a longer phrase is listed in place of its part when it keeps this share of the part's prompts


@dataclass(frozen=True)
class Rules:
    """What counts as boilerplate; see the module's docstring. Lengths are in words, `per_million` in words."""

    ngram: int = 5
    similarity: float = 0.7
    min_words: int = 4
    min_prompts: int = 3
    per_million: float = 100.0

    def prompts_needed(self, words: Sequence[int] | np.ndarray) -> int:
        """k, from the number of words in the responses of each prompt."""
        chance = -np.expm1(-np.asarray(words, dtype=np.float64) * self.per_million / 1e6)
        return max(self.min_prompts, math.ceil(float(chance.sum())))


@dataclass(frozen=True)
class Mined:
    """held (N,) bool: the response holds boilerplate; coverage (N,): the share of its words that is boilerplate.

    phrases: one row a phrase, most widespread first: phrase, kind ("sentence" or "template"), words, prompts
    (distinct), responses, share (of all responses), sentence (a sentence as written that holds it), example_prompt.
    k: distinct prompts that a phrase needed.
    """

    held: np.ndarray
    coverage: np.ndarray
    phrases: pd.DataFrame
    k: int


# ---------------------------------------------------------------- prompts


def last_turn(prompt: str) -> str:
    """What the human said last, of a plain prompt or one in HH layout."""
    return re.sub(r"\s*Assistant:\s*$", "", prompt.rsplit("\n\nHuman:", 1)[-1]).strip()


def prompt_families(prompts: Sequence[str], similarity: float = 0.7) -> np.ndarray:
    """A family number for each prompt: equal where last turns are near-duplicates, so that their answers are alike
    because the questions are. Numbers mean nothing beyond that."""
    turns = [" ".join(re.findall(r"\w+", last_turn(prompt))) for prompt in prompts]
    # Shortest first, then by content: the outcome must not depend on the order of the rows.
    unique = sorted(set(turns), key=lambda turn: (len(turn), turn))
    text = encode(unique)
    spoken = np.flatnonzero(text.lengths > 0)  # such turns are one sentence each: the join left no sentence end
    leader = np.arange(len(unique))
    pairs = near_pairs(word_sets(text, spoken), text.hashes, similarity)
    leader[spoken] = spoken[leader_clusters(len(spoken), pairs)]
    number = dict(zip(unique, leader.tolist(), strict=True))
    return np.array([number[turn] for turn in turns])


def without(response: str, phrase: str, similarity: float = 0.7) -> str:
    """The response without the sentences that hold the phrase (in its mined form) or nearly equal it."""
    wanted = set(phrase.split())
    parts = _SENTENCE.findall(response)
    kept = []
    for part in parts:
        words = [w.strip("'") for w in re.findall(r"[\w']+", part.lower().replace("\u2019", "'"))]
        near = len(wanted & set(words)) >= similarity * len(wanted | set(words))
        if not (near or f" {phrase} " in f" {' '.join(words)} "):
            kept.append(part)
    return "".join(kept).strip()


# ---------------------------------------------------------------- who shares what


def _pair_keys(hashed: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """One well-mixed key for each (hash, group)."""
    mixed = (hashed ^ (hashed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = mixed + groups.astype(np.uint64) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(29))


def _contains(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Which keys are in the sorted table; a bit map spares most of them the search."""
    found = np.zeros(len(keys), dtype=bool)
    if len(table):
        bits = np.zeros(1 << 22, dtype=bool)
        bits[table >> np.uint64(42)] = True
        maybe = np.flatnonzero(bits[keys >> np.uint64(42)])
        at = np.minimum(np.searchsorted(table, keys[maybe]), len(table) - 1)
        found[maybe] = table[at] == keys[maybe]
    return found


def _support(items: np.ndarray, families: np.ndarray) -> np.ndarray:
    """For each occurrence of an item (a hash): the number of distinct families of prompts that hold the item."""
    unique, code = np.unique(items, return_inverse=True)
    _, firsts = np.unique(_pair_keys(items, families), return_index=True)
    return np.bincount(code[firsts], minlength=len(unique))[code]


def _frequent(hashed: np.ndarray, least: int) -> np.ndarray:
    """Occurrences whose hash may occur `least` times; counts in hashed buckets drop the rest (Park et al. 1995)."""
    bucket = (hashed >> np.uint64(40)).astype(np.int64)
    return np.flatnonzero(np.bincount(bucket, minlength=1 << 24)[bucket] >= least)


# ---------------------------------------------------------------- mining


def mine(
    prompts: Sequence[str],
    responses: Sequence[str],
    rules: Rules | None = None,
    *,
    k: int | None = None,
    listed: int = 50,
) -> Mined:
    """Mine the responses of one arm (at one step). N prompts for N responses.

    k: distinct prompts needed; by default from `rules`. listed: phrases described, most widespread first.
    """
    rules = rules or Rules()
    n = len(responses)
    if not n:
        return Mined(np.zeros(0, dtype=bool), np.zeros(0), _phrase_frame([]), k or rules.min_prompts)
    prompt_code, unique_prompts = pd.factorize(np.asarray(prompts, dtype=object))
    family = prompt_families(list(unique_prompts), rules.similarity)[prompt_code]
    text, asked = encode(responses), encode(list(unique_prompts))
    if k is None:
        k = rules.prompts_needed(np.bincount(family, text.lengths))
    miner = _Miner(text, asked, prompt_code, family, rules, k)
    at, grams, spread = miner.templates()
    sentences, cluster, sentence_spread = miner.sentences()

    covered = np.zeros(len(text.word) + 1, dtype=np.int64)
    np.add.at(covered, at, 1)
    np.add.at(covered, at + rules.ngram, -1)
    np.add.at(covered, text.starts[sentences], 1)
    np.add.at(covered, text.starts[sentences + 1], -1)
    inside = np.cumsum(covered[:-1]) > 0
    boilerplate_words = np.bincount(text.document[text.sentence], inside, n)
    candidates = miner.grown(at, grams, spread) + miner.clustered(sentences, cluster, sentence_spread)
    phrases = [miner.describe(c, list(unique_prompts)) for c in _distinct(candidates, listed)]
    return Mined(boilerplate_words > 0, boilerplate_words / np.maximum(text.lengths, 1), _phrase_frame(phrases), k)


@dataclass(frozen=True)
class _Candidate:
    """A phrase that could be listed: its words, distinct families, and the sentences that hold it."""

    phrase: str
    kind: str
    prompts: int
    sentences: np.ndarray


@dataclass(frozen=True)
class _Miner:
    text: Encoded
    asked: Encoded
    prompt_code: np.ndarray
    family: np.ndarray
    rules: Rules
    k: int

    def templates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where boilerplate n-grams start: (positions, their hashes, distinct families)."""
        at, grams = self.text.ngrams(self.rules.ngram)
        few = _frequent(grams, self.k)
        at, grams = at[few], grams[few]
        new = ~self._asked(self.rules.ngram, at, grams)
        at, grams = at[new], grams[new]
        document = self._document(at)
        support = _support(grams, self.family[document])
        held = support >= self.k
        return at[held], grams[held], support[held]

    def sentences(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boilerplate sentences: (their numbers, the sentence that leads their cluster, distinct families)."""
        text, rules = self.text, self.rules
        sizes = np.diff(text.starts)
        at, bigrams = text.ngrams(2)
        echoed = np.bincount(text.sentence[at], self._asked(2, at, bigrams), len(sizes))
        kept = np.flatnonzero((sizes >= rules.min_words) & (echoed < rules.similarity * (sizes - 1)))
        if not len(kept):
            return kept, kept, kept
        place = np.arange(len(text.word)) - text.starts[text.sentence]
        mixed = _pair_keys(text.hashes[text.word], place)
        sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(mixed)])
        hashed = (sums[text.starts[1:]] - sums[text.starts[:-1]])[kept]
        family = self.family[text.document[kept]]
        support = _support(hashed, family)
        unique, first, code = np.unique(hashed, return_index=True, return_inverse=True)
        order = np.lexsort((unique, -support[first]))
        words = word_sets(text, kept[first[order]])
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        leader = leader_clusters(len(order), near_pairs(words, text.hashes, rules.similarity))[rank[code]]
        support = _support(leader.astype(np.uint64), family)
        held = support >= self.k
        return kept[held], kept[first[order]][leader[held]], support[held]

    def grown(self, at: np.ndarray, grams: np.ndarray, spread: np.ndarray) -> list[_Candidate]:
        """Candidates for the list: the most widespread n-grams, and all they grow into word by word at k prompts."""
        text, n = self.text, self.rules.ngram
        unique, first = np.unique(grams, return_index=True)
        top = unique[np.lexsort((unique, -spread[first]))[:_GROWN]]
        chosen = np.isin(grams, top)
        at, grams, candidates = at[chosen], grams[chosen], []
        while len(at):
            document = self._document(at)
            support = _support(grams, self.family[document])
            wide = support >= self.k
            at, grams, support = at[wide], grams[wide], support[wide]
            candidates += self._templates_listed(at, grams, support, n)
            # A run grows where the run of the same length one word later is wide as well, in the same sentence.
            grows = np.isin(at + 1, at) & (text.sentence[at] == text.sentence[np.minimum(at + n, len(text.word) - 1)])
            at, grams = (at[grows], grams[grows]) if n < _LONGEST else (at[:0], grams[:0])
            grams = grams * HASH_MULTIPLIER + text.hashes[text.word[np.minimum(at + n, len(text.word) - 1)]]
            n += 1
        return candidates

    def clustered(self, sentences: np.ndarray, cluster: np.ndarray, spread: np.ndarray) -> list[_Candidate]:
        """Listed sentences: each cluster by its leader."""
        order = np.argsort(cluster, kind="stable")
        leaders, starts = np.unique(cluster[order], return_index=True)
        groups = np.split(sentences[order], starts[1:]) if len(leaders) else []
        return [
            _Candidate(
                self.text.words_at(self.text.starts[lead], self.text.starts[lead + 1] - self.text.starts[lead]),
                "sentence",
                int(families),
                np.concatenate([[lead], group]),
            )
            for lead, group, families in zip(leaders, groups, spread[order][starts], strict=True)
            if families >= self.k
        ]

    def describe(self, candidate: _Candidate, prompts: list[str]) -> list[object]:
        """The row of the phrase table."""
        documents = np.unique(self.text.document[candidate.sentences])
        if candidate.kind == "sentence":
            written = self.text.surface[int(candidate.sentences[0])].as_py()
        else:  # the shortest sentence around a template has least to do with its prompt
            surfaces = self.text.surface.take(pa.array(np.unique(candidate.sentences))).to_pylist()
            written = min(surfaces, key=lambda s: (len(s), s))
        shown = min((last_turn(prompts[code]) for code in self.prompt_code[documents]), key=lambda p: (len(p), p))
        n = len(candidate.phrase.split())
        share = len(documents) / self.text.n_documents
        return [
            candidate.phrase, candidate.kind, n, candidate.prompts, len(documents), share, written.strip(), shown,
        ]  # fmt: skip

    def _asked(self, n: int, at: np.ndarray, grams: np.ndarray) -> np.ndarray:
        """Which n-grams (at positions `at`) the response's own prompt holds too."""
        asked_at, asked_grams = self.asked.ngrams(n)
        table = np.unique(_pair_keys(asked_grams, self.asked.document[self.asked.sentence[asked_at]]))
        return _contains(table, _pair_keys(grams, self.prompt_code[self._document(at)]))

    def _document(self, at: np.ndarray) -> np.ndarray:
        return self.text.document[self.text.sentence[at]]

    def _templates_listed(self, at: np.ndarray, grams: np.ndarray, support: np.ndarray, n: int) -> list[_Candidate]:
        order = np.argsort(grams, kind="stable")
        starts = np.unique(grams[order], return_index=True)[1]
        return [
            _Candidate(self.text.words_at(at[g[0]], n), "template", int(support[g[0]]), self.text.sentence[at[g]])
            for g in np.split(order, starts[1:])
            if len(g)
        ]


def _distinct(candidates: list[_Candidate], listed: int) -> list[_Candidate]:
    """The most widespread phrases, each at the greatest length that keeps 80 % of its prompts, without those that
    mostly repeat one above (0.7 of the words of the shorter one)."""
    remaining = [
        (set(c.phrase.split()), f" {c.phrase} ", c)
        for c in sorted(candidates, key=lambda c: (-c.prompts, -len(c.phrase), c.phrase, c.kind))
    ]
    chosen: list[_Candidate] = []
    while remaining and len(chosen) < listed:
        _, part, widest = remaining[0]
        enough = _SHARE * widest.prompts
        words, _, best = max(
            (r for r in remaining if r[2].prompts >= enough and part in r[1]), key=lambda r: len(r[2].phrase.split())
        )
        chosen.append(best)
        remaining = [
            r for r in remaining[1:] if r[2] is not best and len(words & r[0]) < 0.7 * min(len(words), len(r[0]))
        ]
    return sorted(chosen, key=lambda c: (-c.prompts, -len(c.phrase), c.phrase))


def _phrase_frame(rows: list[list[object]]) -> pd.DataFrame:
    columns = ["phrase", "kind", "words", "prompts", "responses", "share", "sentence", "example_prompt"]
    types = {"words": "int64", "prompts": "int64", "responses": "int64", "share": "float64"}
    return pd.DataFrame(rows, columns=columns).astype(types)
