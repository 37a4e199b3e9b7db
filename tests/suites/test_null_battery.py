"""Noise decides nothing, and what is there is found: the claims on simulated studies.

A quick version of benchmarks/null_battery.py, whose whole table is in docs/claims-validation.md.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from suites import claims
from tests.suites import claims_studies as studies

QUICK = {"identical arms": 24, "random judge": 4, "random judge, trusted": 24}  # studies; Elo takes its time
OTHERS = 80
DECISIVE = (claims.REPRODUCED, claims.CONTRADICTED)


@pytest.mark.parametrize("kind", sorted(studies.NULLS))
def test_where_nothing_is_so_at_most_one_verdict_in_twenty_is_decisive(kind: str) -> None:
    """Per claim and kind of null, up to what chance makes of 5 % in so few studies (one in 10,000)."""
    null, numbers = studies.NULLS[kind]
    runs, found = QUICK.get(kind, OTHERS), {number: Counter[str]() for number in numbers}
    with studies.counts_kept():
        for run in range(runs):
            rng = np.random.default_rng([run, len(kind)])
            frames = null([50, 200][run % 2], [0.01, 1.0, 10.0][run % 3], rng)
            for number, verdict in studies.verdicts(frames, numbers).items():
                found[number][verdict] += 1
    most = stats.binom.ppf(1 - 1e-4, runs, 0.05)
    assert {number: count for number, count in found.items() if sum(count[v] for v in DECISIVE) > most} == {}
    if kind == "random judge":
        assert all(count == Counter({claims.CANNOT_TELL: runs}) for count in found.values())


@pytest.mark.parametrize("number", sorted(c.id for c in studies.CLAIMS))
def test_an_effect_of_the_size_that_mde_says_is_found_in_four_studies_of_five(number: int) -> None:
    """Alone and as one of 16 claims, with prompts enough for the t statistic to be nearly normal and with few."""
    runs = 300
    for n, tests in ((50, 1), (200, 16)):
        assert studies.found_at_mde(number, n, runs, tests) >= stats.binom.ppf(1e-3, runs, 0.8) / runs
