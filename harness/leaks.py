"""Keeping apart what is trained on and what is measured on.

Conversations are compared by their openings, the first human turn: a held-out prompt that opens a training pair has
been seen, however the pair goes on. Openings count as the same when their word sets have a Jaccard similarity of at
least 0.8, which on HH-RLHF finds reworded and repeated prompts, and keeps "What do you think of X?" for another X.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from harness.models import chat

SIMILARITY = 0.8
_PEERS = 256  # more held-out openings with the same hash are alike, and one of them is found


def opening(prompt: str) -> str:
    """The first human turn of a prompt, which may be plain text or in HH layout."""
    return next((message["content"] for message in chat.parse(prompt)), "")


def apart(prompts: pd.DataFrame, pairs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """(prompts, pairs) without the rows that would leak, and a note for each kind that lost some.

    Both have columns kind, split, prompt. Training rows that open like a held-out prompt or pair of any kind are left
    out, as are gold pairs that open like one, and gold pairs that open like a training pair.
    """
    held = [*prompts.loc[prompts["split"] == "heldout", "prompt"], *pairs.loc[pairs["split"] == "heldout", "prompt"]]
    seen = pairs.loc[pairs["split"] == "train", "prompt"]
    leaks = {
        "training prompts": (prompts["split"] == "train") & opens_like(prompts["prompt"], held),
        "training pairs": (pairs["split"] == "train") & opens_like(pairs["prompt"], held),
        "gold pairs": (pairs["split"] == "gold") & opens_like(pairs["prompt"], [*held, *seen]),
    }
    notes = []
    for kind in pairs["kind"].unique():
        counts = [
            f"{int((leak & (table['kind'] == kind)).sum())} {what}"
            for (what, leak), table in zip(leaks.items(), (prompts, pairs, pairs), strict=True)
        ]
        if any(not count.startswith("0 ") for count in counts):
            notes.append(f"{kind}: left out {', '.join(counts)}, which open like a held-out prompt or another split's")
    kept_pairs = pairs[~(leaks["training pairs"] | leaks["gold pairs"])]
    return prompts[~leaks["training prompts"]], kept_pairs, notes


def opens_like(prompts: Iterable[str], others: Iterable[str]) -> np.ndarray:
    """(n,) bool: which of `prompts` have the opening of one of `others`, or nearly."""
    mine, theirs = ([_words(opening(prompt)) for prompt in texts] for texts in (prompts, others))
    known = sorted(set(theirs))
    new = sorted(set(mine) - set(known))
    alike = {*known, *np.array(new, dtype=object)[_near(new, known)]}
    return np.array([text in alike for text in mine], dtype=bool)


def first_of_its_kind(prompts: Sequence[str]) -> np.ndarray:
    """(n,) bool: which of `prompts` open like no earlier one that is kept, or nearly."""
    from harness.near_duplicates import leader_clusters, near_pairs
    from harness.words import encode, word_sets

    texts = [_words(opening(prompt)) for prompt in prompts]
    both = encode(texts)
    spoken = np.flatnonzero(both.lengths > 0)
    near = np.empty((0, 2), dtype=np.int64)
    if len(spoken):
        near = near_pairs(word_sets(both, spoken), both.hashes, SIMILARITY, peers=_PEERS)
    leader = np.arange(len(texts))
    leader[spoken] = spoken[leader_clusters(len(spoken), near)]
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(text, i)
    return np.array([leader[i] == i and first[text] == i for i, text in enumerate(texts)], dtype=bool)


def _words(text: str) -> str:
    signs = (f"u{ord(sign):x}" for sign in text if not sign.isspace())  # of emoji alone, say
    return " ".join(re.findall(r"\w+", text.lower()) or signs)


def _near(texts: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """(n,) bool: which of `texts` nearly have the words of one of `known`; all are given as words and spaces."""
    from harness.near_duplicates import near_pairs
    from harness.words import encode, word_sets

    near = np.zeros(len(texts), dtype=bool)
    if not texts or not known:
        return near
    both = encode([*known, *texts])
    spoken = np.flatnonzero(both.lengths > 0)  # each is one sentence: it has no punctuation
    found = spoken[near_pairs(word_sets(both, spoken), both.hashes, SIMILARITY, peers=_PEERS)]
    across = found[(found[:, 0] < len(known)) & (found[:, 1] >= len(known))]
    near[across[:, 1] - len(known)] = True
    return near
