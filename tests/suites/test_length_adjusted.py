"""Length-adjusted win rates against judges whose taste for length is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit

from suites import elo, judges, length_adjusted

ARMS = {"pretrained": 100, "short": 70, "long": 140}  # mean lengths


def answers(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        {"prompt": f"Question {i}?", "arm": arm, "response": "a" * max(1, int(rng.normal(mean, 40))), "sample": 0}
        for i in range(n)
        for arm, mean in ARMS.items()
    ]
    return pd.DataFrame(rows).assign(step=pd.array([pd.NA] * len(rows), dtype="Int64"), kind="helpful")


def judged(table: pd.DataFrame, strength: dict[str, float], slope: float, seed: int = 1) -> pd.DataFrame:
    """Comparisons drawn from the model itself, with lengths in units of 50 characters."""
    rng = np.random.default_rng(seed)
    length = table["response"].str.len().to_numpy()
    pairs = judges.pair_responses(table)
    d = np.tanh((length[pairs["row_a"]] - length[pairs["row_b"]]) / 50)
    gap = pairs["arm_a"].map(strength).to_numpy(float) - pairs["arm_b"].map(strength).to_numpy(float)
    p = expit(gap + slope * d)
    return pairs.assign(outcome=(rng.random(len(p)) < p).astype(float), p=p, judge="own", order=pd.NA)


def rates(table: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    return length_adjusted.win_rates(comparisons, table, "pretrained").set_index("arm")


@pytest.mark.parametrize("slope", [2.0, 4.0])
def test_a_judge_that_likes_only_length_leaves_one_half(slope: float) -> None:
    table = answers(2000)
    found = rates(table, judged(table, dict.fromkeys(ARMS, 0.0), slope))
    assert (found["raw"] - 0.5).abs().min() > 0.1
    assert (found["estimate"] - 0.5).abs().max() < 0.04
    assert ((found["low"] <= 0.5) & (found["high"] >= 0.5)).all()


def test_a_judge_that_only_counts_characters_leaves_one_half() -> None:
    """Nothing is left to chance, so the likelihood alone has no maximum."""
    table = answers(1000)
    length = table["response"].str.len().to_numpy()
    pairs = judges.pair_responses(table)
    gap = length[pairs["row_a"]] - length[pairs["row_b"]]
    found = rates(table, pairs.assign(outcome=(np.sign(gap) + 1) / 2, judge="own", order=pd.NA))
    assert found.loc["long", "raw"] > 0.7
    assert (found["estimate"] - 0.5).abs().max() < 0.05


def test_without_an_effect_of_length_nothing_changes() -> None:
    table = answers(2000)
    found = rates(table, judged(table, {"pretrained": 0.0, "short": 1.0, "long": -1.0}, 0.0))
    assert found["slope"].abs().max() < 0.2
    assert (found["estimate"] - found["raw"]).abs().max() < 0.02
    equal = table.assign(response="a")  # no difference of length at all
    same = rates(equal, judged(table, {"pretrained": 0.0, "short": 1.0, "long": -1.0}, 0.0))
    assert same["estimate"].to_numpy() == pytest.approx(same["raw"].to_numpy(), abs=1e-4)
    assert same["low"].to_numpy() == pytest.approx(same["raw_low"].to_numpy(), abs=1e-3)


def test_strength_is_found_beneath_length() -> None:
    table = answers(4000)
    strength = {"pretrained": 0.0, "short": 0.8, "long": -0.5}
    found = rates(table, judged(table, strength, 2.0))
    assert found.loc["long", "raw"] > 0.5 > found.loc["short", "raw"] - 0.1  # the longer arm seems the better one
    for arm in ("short", "long"):
        assert found.loc[arm, "estimate"] == pytest.approx(expit(strength[arm]), abs=0.05)


def test_the_fit_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(0)
    player, x, weight = rng.integers(0, 3, 600), rng.normal(size=600), rng.integers(1, 4, 600).astype(float)
    y = (rng.random(600) < expit(np.array([0.5, -1.0, 0.0])[player] + 0.7 * x)).astype(float)
    strength, slope = length_adjusted.fit(player, x, y, weight)
    design = np.column_stack([np.eye(3)[player], x])
    theirs = sm.GLM(y, design, family=sm.families.Binomial(), freq_weights=weight).fit().params
    assert np.append(strength, slope) == pytest.approx(theirs, abs=5e-3)


def test_an_arm_that_always_wins_has_a_finite_rate_near_one() -> None:
    table = answers(200)
    comparisons = judged(table, {"pretrained": 0.0, "short": 50.0, "long": 0.0}, 0.0)
    found = rates(table, comparisons)
    assert 0.99 < found.loc["short", "estimate"] <= 1
    assert logit(found.loc["short", "estimate"]) < 40


def test_elo_reports_both_rates_of_helpfulness_and_names_the_slope() -> None:
    table = answers(60)
    comparisons = judged(table, dict.fromkeys(ARMS, 0.0), 3.0)
    result = elo.by_kind(table, lambda part, kind: comparisons)
    value = result.summary.set_index(["metric", "arm"])["estimate"]
    found = rates(table, comparisons)
    for arm in ("short", "long"):
        assert value["win_rate_helpfulness", arm] == pytest.approx(found.loc[arm, "raw"])
        assert value["win_rate_helpfulness_adjusted", arm] == pytest.approx(found.loc[arm, "estimate"])
    assert ("win_rate_helpfulness", "pretrained") not in value.index
    assert "helpfulness_length" in result.tables
