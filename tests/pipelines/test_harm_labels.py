"""Human labels of harm are counted where they are read, not where an arm's name suggests them."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.experiment import Experiment
from harness.graph import Stage, Work
from pipelines import arms
from pipelines.harm_labels import count, splits

PREFERENCES = pd.DataFrame(
    [("harmless", "train")] * 7
    + [("harmless", "gold")] * 5
    + [("harmless", "heldout")] * 3
    + [("helpful", "train")] * 11,
    columns=["kind", "split"],
)


def own(work: Work) -> None:
    raise NotImplementedError


def counted(training: arms.Training, **more: Stage) -> dict[str, int | None]:
    return count(splits(training.arms | more), PREFERENCES)


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "grpo", "dpo"])
def test_hh_rlhf_alone_reads_labels_of_harm_and_the_number_is_what_was_there(algorithm: str) -> None:
    training = arms.plan(Experiment(name="x", rl={"algorithm": algorithm}, scale={"preference_pairs": 135_296}))
    expected = dict.fromkeys(training.arms, 0) | {"hh_rlhf": 7}
    assert counted(training) == expected


def test_a_users_arm_counts_what_it_says_it_reads_and_is_unknown_where_it_does_not_say() -> None:
    training = arms.plan(Experiment(name="x"))
    data = {"data": training.data}
    found = counted(
        training,
        all_labels=Stage("all_labels", own, {"human": ["helpful", "harmless"]}, data),
        gold_labels=Stage("gold_labels", own, {"human": ["harmless"], "split": "gold"}, data),
        helpful_labels=Stage("helpful_labels", own, {"human": ["helpful"]}, data),
        silent=Stage("silent", own, {}, data),
        from_hh=Stage("from_hh", own, {}, {"policy": training.arms["hh_rlhf"]}),
        from_silent=Stage("from_silent", own, {}, {"policy": Stage("silent2", own, {}, data)}),
        merged=Stage("merged", own, {}, {"a": training.arms["rl_cai"], "b": training.pms["pm.hh_rlhf"]}),
    )
    assert found["all_labels"] == found["from_hh"] == found["merged"] == 7
    assert found["gold_labels"] == 5
    assert found["helpful_labels"] == 0
    assert found["silent"] is found["from_silent"] is None
