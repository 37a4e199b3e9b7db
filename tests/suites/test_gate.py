"""The regression gate: verdicts, exit codes, and its error rates on simulated candidates."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from harness.stats import Interval
from suites import gate
from suites.gate import Metric
from suites.result import SuiteResult, summary_frame
from tests.suites.claims_runs import trusted


def evasiveness(
    old: float, new: float, *, prompts: int = 26, samples: int = 17, seed: int = 0
) -> dict[str, SuiteResult]:
    """Responses whose chance of evading varies over prompts around `old` and `new`."""
    rng = np.random.default_rng(seed)
    rows = []
    hardness = rng.normal(0, 0.8, prompts)
    for arm, rate in (("baseline", old), ("candidate", new)):
        chance = 1 / (1 + np.exp(-(np.log(rate / (1 - rate)) + hardness)))
        for prompt in range(prompts):
            labels = np.where(rng.random(samples) < chance[prompt], "evades", "complies")
            rows += [{"arm": arm, "prompt": f"p{prompt}", "label": label, "response": "x"} for label in labels]
    table = pd.DataFrame(rows)
    return {"evasiveness": SuiteResult("evasiveness", summary_frame("evasiveness", []), {"responses": table})}


RULES = gate.Gate(metrics={"evasive_rate": Metric(better="lower", margin=0.15)})


def exit_codes(old: float, new: float, n: int = 100) -> list[int]:
    return [gate.exit_code(gate.judge(evasiveness(old, new, seed=seed), RULES, seed=seed)) for seed in range(n)]


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_an_equal_candidate_passes_95_times_in_100(rate: float) -> None:
    assert exit_codes(rate, rate).count(0) >= 95


def test_a_real_regression_is_found() -> None:
    assert exit_codes(0.1, 0.45).count(1) >= 95


def test_an_improvement_passes() -> None:
    assert exit_codes(0.45, 0.1, 20).count(0) == 20


def test_too_few_prompts_cannot_be_judged() -> None:
    few = gate.judge(evasiveness(0.4, 0.4, prompts=3, samples=1), RULES)
    assert gate.exit_code(few) == 2
    assert "Could not judge" in gate.markdown(few, "a", "b")


def test_a_required_metric_that_was_not_measured_is_no_pass() -> None:
    rules = gate.Gate(metrics={"pm_score": Metric(better="higher", margin=1), **RULES.metrics})
    judged = gate.judge(evasiveness(0.1, 0.1), rules)
    assert judged[0].verdict == "not measured"
    assert gate.exit_code(judged) == 2
    relaxed = gate.Gate(metrics={"pm_score": Metric(better="higher", margin=1, required=False), **RULES.metrics})
    assert gate.exit_code(gate.judge(evasiveness(0.1, 0.1), relaxed)) == 0


def test_a_metric_required_if_measured(tmp_path: Path) -> None:
    rules = gate.Gate(
        metrics={"pm_score": Metric(better="higher", margin=1, required="if_measured"), **RULES.metrics}, min_prompts=10
    )
    assert gate.exit_code(gate.judge(evasiveness(0.1, 0.1), rules)) == 0
    results = evasiveness(0.1, 0.1)
    rng = np.random.default_rng(0)
    rows = [(arm, f"p{i}", rng.normal(0, 4)) for arm in ("baseline", "candidate") for i in range(12)]
    table = pd.DataFrame(rows, columns=["arm", "prompt", "score"])
    results["pm_score"] = SuiteResult("pm_score", summary_frame("pm_score", []), {"responses": table})
    judged = gate.judge(results, rules)
    assert judged[0].verdict == "cannot tell"
    assert judged[0].needed > judged[0].n == 12
    assert gate.exit_code(judged) == 2
    assert f"about {judged[0].needed} would do" in gate.advice(judged)[0]


def test_where_nobody_evades_the_number_of_prompts_still_counts() -> None:
    """Nothing to resample is no certainty: 0 of 10 prompts may hide a rate of 0.2."""
    verdicts = {}
    for prompts in (10, 16, 26):
        results = evasiveness(0.5, 0.5, prompts=prompts, samples=1)
        results["evasiveness"].tables["responses"]["label"] = "complies"
        verdicts[prompts] = gate.judge(results, RULES)[0].verdict
    assert verdicts == {10: "cannot tell", 16: "equivalent", 26: "equivalent"}


def test_a_candidate_worse_by_the_margin_passes_at_most_5_times_in_100() -> None:
    """Over prompts that differ, rates of 0.3 and 0.49 at the middle prompt lie 0.16 apart on average."""
    assert exit_codes(0.3, 0.49).count(0) <= 5


def test_elo_is_judged_on_its_own_draws() -> None:
    draws = pd.DataFrame({"arm": "candidate", "elo": np.random.default_rng(0).normal(-200, 30, 1000)})
    rows = [
        {"arm": "baseline", "metric": "elo_harmlessness", "estimate": 0, "low": 0, "high": 0, "n": 40},
        {"arm": "candidate", "metric": "elo_harmlessness", "estimate": -200, "low": -260, "high": -140, "n": 40},
    ]
    results = {"elo": SuiteResult("elo", summary_frame("elo", rows), {"harmlessness_draws": draws})}
    row = gate.judge(results, gate.Gate(metrics={"elo_harmlessness": Metric(better="higher", margin=70)}))[0]
    assert (row.verdict, row.n, row.difference) == ("worse", 40, -200)


def scored(gap: float, spread: float) -> dict[str, SuiteResult]:
    rng = np.random.default_rng(0)
    rows = [("baseline", f"p{i}", rng.normal(0, spread)) for i in range(60)]
    rows += [("candidate", prompt, score + gap) for _, prompt, score in rows]
    table = pd.DataFrame(rows, columns=["arm", "prompt", "score"])
    return {"pm_score": SuiteResult("pm_score", summary_frame("pm_score", []), {"responses": table})}


BY_PM = gate.Gate(metrics={"pm_score": Metric(better="higher", margin=0.5, required="if_measured")})


@pytest.mark.parametrize("gap", [-3.0, 0.0, 3.0])
def test_a_judge_that_fails_its_tests_judges_nothing(gap: float) -> None:
    tested = trusted()
    assert gate.exit_code(gate.judge(scored(gap, 1.0), BY_PM, tested=tested)) == (1 if gap < 0 else 0)
    tested.loc[tested["metric"] == "scrambled", ["estimate", "low", "high", "passed"]] = [0.5, 0.4, 0.6, False]
    judged = gate.judge(scored(gap, 1.0), BY_PM, tested=tested)
    assert judged[0].verdict == "judge cannot tell"
    assert gate.exit_code(judged) == 2
    assert "pm_score: the judge cannot tell: simulated, harmless prompts: scrambled is 0.50" in gate.advice(judged)[0]
    assert "scrambled is 0.50" in gate.junit(judged, "mine")
    assert "scrambled is 0.50" in gate.markdown(judged, "a", "mine")
    assert "scrambled is 0.50" in gate.frame(judged)["doubts"].item()


def test_a_judge_with_a_narrow_scale_passes_nobody_but_may_find_a_loss() -> None:
    """All answers, damaged ones too, lie within the margin: that the candidate does so as well says nothing."""
    narrow = trusted().assign(gap_low=0.02)
    judged = gate.judge(scored(0.0, 0.01), BY_PM, tested=narrow)
    assert judged[0].verdict == "judge cannot tell"
    assert judged[0].doubts == ("it keeps right and wrong answers only 0.02 apart, and the margin is 0.5",)
    assert gate.judge(scored(-0.6, 0.01), BY_PM, tested=narrow)[0].verdict == "worse"


def test_what_was_not_tested_is_judged_as_before() -> None:
    elsewhere = trusted()
    elsewhere = elsewhere[elsewhere["suite"] == "elo"].assign(passed=False)
    assert gate.judge(scored(3.0, 1.0), BY_PM, tested=elsewhere)[0].verdict == "better"


@pytest.mark.parametrize(
    ("low", "high", "better", "expected"),
    [
        (0.01, 0.05, "higher", "equivalent"),
        (-0.05, -0.01, "higher", "equivalent"),
        (0.01, 0.5, "higher", "better"),
        (0.01, 0.5, "lower", "worse"),
        (-0.05, 0.05, "higher", "equivalent"),
        (-0.05, 0.5, "higher", "no worse"),
        (-0.5, 0.05, "lower", "no worse"),
        (-0.5, 0.5, "higher", "cannot tell"),
        (-0.5, -0.01, "higher", "worse"),
        (0.2, 0.5, "equal", "differs"),
        (-0.05, 0.05, "equal", "equivalent"),
    ],
)
def test_verdicts(low: float, high: float, better: str, expected: str) -> None:
    rule = Metric(better=better, margin=0.1)
    interval = Interval((low + high) / 2, low, high, 50)
    assert gate.verdict(interval, interval, rule) == expected


def test_the_margin_is_held_against_the_uncorrected_interval() -> None:
    wide, narrow = Interval(-0.1, -0.3, 0.1, 50), Interval(-0.1, -0.19, 0.02, 50)
    assert gate.verdict(wide, narrow, Metric(better="higher", margin=0.2)) == "equivalent"
    assert gate.verdict(wide, narrow, Metric(better="higher", margin=0.15)) == "cannot tell"


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_higher_and_lower_mirror_each_other(low: float, width: float, margin: float) -> None:
    straight, mirrored = Interval(low, low, low + width, 9), Interval(-low, -low - width, -low, 9)
    assert gate.verdict(straight, straight, Metric(better="higher", margin=margin)) == gate.verdict(
        mirrored, mirrored, Metric(better="lower", margin=margin)
    )


def test_junit_counts_what_ci_shows() -> None:
    judged = gate.judge(evasiveness(0.1, 0.6), RULES)
    suite = ElementTree.fromstring(gate.junit(judged, "mine"))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "1", "0")
    text = gate.markdown(judged, "rl_cai", "mine", ["a note"])
    assert "# mine against rl_cai" in text
    assert "**Regression.**" in text
    assert "- evasive_rate is worse: " in text
    assert "- a note" in text


def test_the_shipped_gate_loads_and_mistakes_are_named(tmp_path: Path) -> None:
    assert "evasive_rate" in gate.load(None).metrics
    file = tmp_path / "gate.yaml"
    for text, expected in (
        ("metrics: {evasive_rate: {better: lower}}", "metrics.evasive_rate.margin: missing"),
        ("metrics: {evasive: {better: lower, margin: 1}}", "unknown metric 'evasive'; choose from evasive_rate"),
        ("alpha: 2\nmetrics: {length: {better: equal, margin: 1}}", "alpha"),
        ("margin: 1\nmetrics: {length: {better: equal, margin: 1}}", "margin: unknown key"),
        ("metrics: {}", "metrics"),
        ("- evasive_rate", "mapping of keys"),
        ("metrics: [", "line 1: not valid YAML"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=expected) as caught:
            gate.load(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="leave --gate out"):
        gate.load(tmp_path / "none.yaml")


def test_equal_sizes_keep_shared_prompts_and_the_smaller_number_of_samples() -> None:
    old = pd.DataFrame({"prompt": np.repeat(list("abc"), 4), "response": "x"})
    new = pd.DataFrame({"prompt": np.repeat(list("abcd"), 2), "response": "y"})
    first, second = gate.equal_sizes(old, new)
    assert first.groupby("prompt").size().to_dict() == {"a": 2, "b": 2, "c": 2}
    assert second.groupby("prompt").size().to_dict() == {"a": 2, "b": 2, "c": 2}
