"""Named random draws: each stream is a function of (seed, key) alone, whatever else is drawn and in what order."""

from __future__ import annotations

import hashlib

import numpy as np


def uniforms(seed: int, key: str, n: int) -> np.ndarray:
    """(n,) uniform draws of the stream named (seed, key)."""
    digest = hashlib.blake2b(f"{seed}\x1f{key}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).random(n)


def request_seed(seed: int, key: str) -> int:
    """The seed, below 2^31, that makes an engine with random streams of its own draw the one named (seed, key)."""
    digest = hashlib.blake2b(f"{seed}\x1f{key}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1
