"""The near-duplicate index: no false pair, hardly a missed one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from harness.near_duplicates import leader_clusters, near_pairs


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_near_pairs_are_near_and_rarely_missed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.random((6, 40)) < 0.4
    rows = np.repeat(base, 4, axis=0) ^ (rng.random((24, 40)) < 0.03)
    rows[:, 0] = True
    shared = rows.astype(int) @ rows.T
    jaccard = shared / (rows.sum(1)[:, None] + rows.sum(1)[None] - shared)
    hashes = np.random.default_rng(1).integers(0, 2**63, size=40, dtype=np.uint64)
    pairs = near_pairs(sparse.csr_matrix(rows.astype(np.int32)), hashes, 0.7)
    assert (jaccard[pairs[:, 0], pairs[:, 1]] >= 0.7 - 1e-9).all()
    near = np.argwhere(np.triu(jaccard >= 0.85, 1))  # probability of a miss below 1e-5
    assert {tuple(p) for p in near} <= {tuple(p) for p in pairs}


def test_clusters_do_not_drift() -> None:
    """A chain 0-1-2-3 is no single cluster: 2 is not near 0."""
    assert leader_clusters(4, np.array([[0, 1], [1, 2], [2, 3]])).tolist() == [0, 0, 2, 2]


def test_with_enough_peers_a_crowded_bucket_hides_nothing() -> None:
    """Texts of one word, equal but for the last: each is compared with the first four, or with all before it."""
    words = sparse.csr_matrix(np.ones((9, 3), dtype=np.int32))
    hashes = np.arange(1, 4, dtype=np.uint64)
    assert len(near_pairs(words, hashes, 1.0)) == 8 + 7 + 6 + 5
    assert len(near_pairs(words, hashes, 1.0, peers=9)) == 9 * 8 // 2
