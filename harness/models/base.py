"""What every engine shares: batches of rows, and what choosing among options gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

# Indices of some of the conversations, log-probabilities of the choices for each (n, k), and what was said before.
Chosen = tuple[list[int], np.ndarray, list[str | None]]


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of `size`, longest first, so that rows of a batch need little padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]
