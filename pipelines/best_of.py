"""Best of n: of n answers of SL-CAI, the one that RL-CAI's PM scores highest; the baseline that RL must beat.

Nothing is trained (Nakano et al. 2021; Gao et al. 2022): the answers are drawn where they are needed, in
`suites.sample`. The policy that this amounts to lies log n - (n - 1) / n nats from SL-CAI at most.
"""

from __future__ import annotations

import math

from harness import store
from harness.graph import Work

SETTINGS = ("scale.best_of",)


def kl(n: int) -> float:
    """Nats of the best of n from the policy that is drawn from; an upper bound where answers repeat or tie."""
    return math.log(n) - (n - 1) / n


def describe(work: Work) -> None:
    """The arm: best_of.json, of how many answers it is the best and how far from SL-CAI that is."""
    n = work.settings.scale.best_of
    store.write_json(work.folder / "best_of.json", {"n": n, "kl": kl(n)})
    work.count(0)
