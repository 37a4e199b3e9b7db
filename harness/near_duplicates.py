"""Near-duplicate word sets: MinHash with banded LSH (Broder 1997; Leskovec et al., Mining of Massive Datasets, 3.4),
every candidate pair verified by its exact Jaccard similarity.

The signatures are computed band by band as numpy columns, so memory stays at one band; `datasketch`, which makes a
Python object a text, is the peer in benchmarks/boilerplate_mining.py. 16 bands of 4 rows find a pair of
similarity 0.7 with probability 0.99 and one of 0.8 with 0.9998; no pair below the threshold is ever returned.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

BANDS, ROWS = 16, 4
_BATCH = 200_000


def near_pairs(words: sparse.csr_matrix, hashes: np.ndarray, similarity: float, *, peers: int = 4) -> np.ndarray:
    """Pairs (i, j), i < j, of rows whose word sets have Jaccard similarity >= `similarity`: shape (pairs, 2).

    words: (texts, vocabulary) of zeros and ones, no empty row, in order of importance (earlier rows are the ones that
    others are compared with). hashes: (vocabulary,) uint64, a hash of each word's content, so that the
    outcome does not depend on how the vocabulary is numbered. peers: a bucket's members are compared with its first
    (highest ranked) so many, which keeps the work linear in the bucket's size.
    """
    n = words.shape[0]
    if n < 2:
        return np.empty((0, 2), dtype=np.int64)
    multipliers = np.random.default_rng(20221215).integers(1, 2**63, size=(BANDS, ROWS), dtype=np.uint64) * 2 + 1
    starts, token_hashes = words.indptr[:-1].astype(np.int64), hashes[words.indices]
    sizes = np.diff(words.indptr)
    seen, kept = np.empty(0, dtype=np.int64), []
    for band in multipliers:
        pairs = _bucket_pairs(_band_keys(token_hashes, starts, band), peers)
        codes = np.setdiff1d(pairs[:, 0] * n + pairs[:, 1], seen)
        seen = np.union1d(seen, codes)
        for batch in np.split(codes, range(_BATCH, len(codes), _BATCH)):
            i, j = batch // n, batch % n
            shared = np.asarray(words[i].multiply(words[j]).sum(axis=1)).ravel()
            kept.append(batch[shared >= similarity * (sizes[i] + sizes[j] - shared) - 1e-9])
    codes = np.sort(np.concatenate(kept))
    return np.stack([codes // n, codes % n], axis=1)


def leader_clusters(n: int, pairs: np.ndarray) -> np.ndarray:
    """The leader of each of n texts, given in order of importance: shape (n,).

    The first text that no leader has yet taken leads all untaken texts that are near it. Unlike single linkage,
    every member is near its leader, so clusters cannot drift.
    """
    leader = np.arange(n)
    if not len(pairs):
        return leader
    taken = np.zeros(n, dtype=bool)
    order = np.argsort(pairs[:, 0], kind="stable")
    heads, members = pairs[order, 0], pairs[order, 1]
    firsts = np.flatnonzero(np.diff(heads, prepend=-1))
    for head, group in zip(heads[firsts], np.split(members, firsts[1:]), strict=True):
        if not taken[head]:
            free = group[~taken[group]]
            leader[free] = head
            taken[free] = True
    return leader


def _band_keys(token_hashes: np.ndarray, starts: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """One key a text: equal where all min-hashes of the band agree."""
    keys = np.zeros(len(starts), dtype=np.uint64)
    for multiplier in multipliers:
        # The high half of a multiplicative hash is its well-mixed half.
        permuted = ((token_hashes * multiplier) >> np.uint64(32)).astype(np.uint32)
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + np.minimum.reduceat(permuted, starts)
    return keys


def _bucket_pairs(keys: np.ndarray, peers: int) -> np.ndarray:
    """Each text with the first few of its bucket: (pairs, 2), first < second."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], keys[order][1:] != keys[order][:-1]]))
    start_of = np.repeat(starts, np.diff(np.append(starts, len(keys))))
    place = np.arange(len(keys)) - start_of
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for peer in range(min(peers, int(place.max()))):
        late = np.flatnonzero(place > peer)
        pairs.append(np.stack([order[start_of[late] + peer], order[late]], axis=1))
    return np.concatenate(pairs)
