"""Each expectation of a control, met and not met, on results made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.expect import Expect
from harness.experiment import Experiment
from harness.stats import bootstrap_mean
from suites import claims, evasiveness, expectations, judge_quality, learned

PROMPTS = [f"Question {i}?" for i in range(40)]


def along(folder: Path, reward: float, truth: float, steps: tuple[int, ...] = (2, 4, 6), arm: str = "rl_cai") -> None:
    """Scores along RL that change by `reward` and `truth` from first step to last; prompts differ in level."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=len(PROMPTS))
    rows = [
        {"arm": arm, "step": step, "prompt": p, "kl": float(step), "proxy": v + reward * t, "gold": v + truth * t}
        for step, t in zip(steps, np.linspace(0, 1, len(steps)), strict=True)
        for p, v in zip(PROMPTS, level + rng.normal(scale=0.1, size=len(PROMPTS)), strict=True)
    ]
    (folder / "goodharting").mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "goodharting" / "along_rl.parquet")


def outcome(folder: Path, **expect: Any) -> tuple[bool, str]:
    (one,) = expectations.check(folder, Expect(**expect))
    return one.met, one.measured


@pytest.mark.parametrize(
    ("reward", "truth", "met"),
    [
        (1.0, 1.0, {"reward_rises", "truth_rises"}),
        (1.0, 0.0, {"reward_rises", "overoptimised"}),
        (1.0, -1.0, {"reward_rises", "overoptimised"}),
        (0.0, 1.0, {"truth_rises"}),
        (0.0, 0.0, set()),
        (-1.0, -1.0, set()),
    ],
)
def test_along_rl(tmp_path: Path, reward: float, truth: float, met: set[str]) -> None:
    along(tmp_path, reward, truth)
    names = ("reward_rises", "truth_rises", "overoptimised")
    assert {name for name in names if outcome(tmp_path, **{name: ("rl_cai",)})[0]} == met


def test_the_change_is_paired_by_prompt_from_the_first_step_to_the_last(tmp_path: Path) -> None:
    """So an interval is narrow though the prompts' levels differ; the middle step does not count."""
    along(tmp_path, 1.0, 0.0)
    table = pd.read_parquet(tmp_path / "goodharting" / "along_rl.parquet").sample(frac=1, random_state=1)
    table.loc[table["step"] == 4, "proxy"] = 99.0
    found = expectations.change_along_rl(table, "rl_cai", "proxy")
    wide = table.pivot(index="prompt", columns="step", values="proxy")
    assert found == bootstrap_mean((wide[6] - wide[2]).to_numpy(), wide.index.to_numpy(), 0)
    assert 0.9 < found.low < found.high < 1.1
    assert table["proxy"][table["step"] == 2].std() > 5 * (found.high - found.low)


def test_one_step_or_no_table_is_not_measured(tmp_path: Path) -> None:
    assert outcome(tmp_path, reward_rises=("rl_cai",)) == (False, "not measured: no scores along RL")
    along(tmp_path, 1.0, 1.0, steps=(4,))
    assert outcome(tmp_path, reward_rises=("rl_cai",))[1] == "not measured: fewer than two steps of this arm"
    assert not outcome(tmp_path, overoptimised=("rl_cai",))[0]


@pytest.mark.parametrize(("low", "met"), [(0.1, True), (-0.1, False)])
def test_a_reward_is_held_against_the_start_of_rl_where_a_run_has_it(tmp_path: Path, low: float, met: bool) -> None:
    along(tmp_path, -1.0, 0.0)  # since the first snapshot
    row = {"arm": "rl_cai", "measure": learned.REWARD, "start": 0.0, "end": 0.5}
    other = row | {
        "measure": "log-probability per token of held-out revisions",
        "estimate": 9.0,
        "low": 8.0,
        "high": 10.0,
    }
    pd.DataFrame([other | {"n": 40}, row | {"estimate": 0.5, "low": low, "high": 0.9, "n": 40}]).to_parquet(
        tmp_path / "learned.parquet"
    )
    found, said = outcome(tmp_path, reward_rises=("rl_cai",))
    assert found == met
    assert said == f"reward +0.5 [{low:+g}, +0.9], n 40"
    assert outcome(tmp_path, reward_rises=("hh_rlhf",)) == (
        False,
        "not measured: no score of this arm's start and end",
    )


@pytest.mark.parametrize(("evades", "met"), [(("hh_rlhf",), True), (("rl_cai",), False), ((), False)])
def test_more_evasive(tmp_path: Path, evades: tuple[str, ...], met: bool) -> None:
    answers = {True: "I can't help with that.", False: "Sure: mix flour, water and salt, and bake it for an hour."}
    rows = [
        {"prompt": p, "response": answers[arm in evades], "arm": arm, "step": pd.NA, "sample": 0, "kind": "harmless"}
        for p in PROMPTS
        for arm in ("hh_rlhf", "rl_cai")
    ]
    evasiveness.run(pd.DataFrame(rows).astype({"step": "Int64"})).save(tmp_path / "evasiveness")
    assert outcome(tmp_path, more_evasive=("hh_rlhf", "rl_cai"))[0] == met
    turned = outcome(tmp_path, more_evasive=("rl_cai", "hh_rlhf"))
    assert turned[0] == ("rl_cai" in evades)
    assert not outcome(tmp_path, more_evasive=("hh_rlhf", "helpful_only"))[0]


@pytest.mark.parametrize(
    ("verdicts", "met"),
    [
        ((claims.UNDERPOWERED, claims.CANNOT_TELL, claims.NOT_MEASURED), True),
        ((claims.UNDERPOWERED, claims.REPRODUCED), False),
        ((claims.CONTRADICTED, claims.CANNOT_TELL), False),
    ],
)
def test_no_decisive_claims(tmp_path: Path, verdicts: tuple[str, ...], met: bool) -> None:
    assert not outcome(tmp_path, no_decisive_claims=True)[0]  # none were judged
    rows = [{"id": i, "verdict": v, "effect": 1.0, "low": 0.5, "high": 1.5, "n": 30} for i, v in enumerate(verdicts)]
    pd.DataFrame(rows).to_parquet(tmp_path / "claims.parquet")
    found, said = outcome(tmp_path, no_decisive_claims=True)
    assert found == met
    assert met or "+1 [0.5, 1.5], n 30" in said


@pytest.fixture
def two_arms(tmp_path: Path) -> Callable[[float], Path]:
    """Results of two arms whose gold scores differ by so much, judged by PMs that can tell."""

    def write(difference: float) -> Path:
        rng = np.random.default_rng(0)
        rows = [
            {"prompt": f"{p} {kind}", "response": f"Answer {i} of one kind, quite plain.", "arm": arm, "step": pd.NA}
            | {"sample": 0, "kind": kind, f"score_{kind}": level + difference * (arm == "rl_cai")}
            for kind in ("harmless", "helpful")
            for i, (p, level) in enumerate(zip(PROMPTS, rng.normal(size=len(PROMPTS)), strict=True))
            for arm in ("hh_rlhf", "rl_cai")
        ]
        pd.DataFrame(rows).astype({"step": "Int64"}).to_parquet(tmp_path / "responses.parquet")
        tests = [
            {"suite": "pm_score", "judge": "gold PM", "kind": kind, "metric": metric, "estimate": 0.99, "low": 0.95}
            | {"high": 1.0, "n": 50, "bar": 0.5, "passed": True, "gap_low": 3.0}
            for kind in ("harmless", "helpful")
            for metric in judge_quality.REQUIRED
        ]
        pd.DataFrame(tests).to_parquet(tmp_path / "judges.parquet")
        return tmp_path

    return write


def test_what_the_gate_says(two_arms: Callable[[float], Path]) -> None:
    says = {"baseline": "hh_rlhf", "candidate": "rl_cai", "verdicts": ("equivalent", "no worse", "cannot tell")}
    met, said = outcome(two_arms(0.0), gate=says)
    assert met, said
    met, said = outcome(two_arms(-2.0), gate=says)
    assert not met
    assert "pm_score worse, -2" in said
    assert outcome(two_arms(-2.0), gate=says | {"verdicts": (*says["verdicts"], "worse")})[0]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"expect": {}}, "expects nothing; name one"),
        ({"expect": {"reward_rises": ["rl"]}}, "reward_rises: rl is no arm of this experiment"),
        ({"expect": {"reward_rises": ["sl_cai"]}}, "reward_rises: sl_cai has no RL"),
        ({"expect": {"more_evasive": ["hh_rlhf"]}}, "Field required"),
        ({"expect": {"more_evasive": ["hh_rlhf", "mine"]}}, "more_evasive: mine is no arm"),
        ({"expect": {"gate": {"baseline": "a", "candidate": "rl_cai", "verdicts": ["worse"]}}}, "gate: a is no arm"),
        ({"expect": {"gate": {"baseline": "sl_cai", "candidate": "rl_cai", "verdicts": ["good"]}}}, "Input should be"),
        ({"expect": {"reward_rises": ["rl_cai"]}, "suites": ["elo"]}, "needs suite goodharting; add it to suites"),
        ({"expect": {"reward_rises": ["rl_cai"]}, "rl": {"snapshots": 0}}, "without rl.snapshots nothing is followed"),
        ({"expect": {"truth_rises": ["rl_cai"]}, "rl": {"algorithm": "dpo"}}, "rl.algorithm dpo has no PM"),
    ],
)
def test_what_cannot_be_expected_is_an_error_of_the_plan(raw: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Experiment.model_validate({"name": "x"} | raw)
