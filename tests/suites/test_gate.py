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


@pytest.mark.parametrize(
    ("low", "high", "better", "expected"),
    [
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
    rule = Metric(better=better, margin=0.1)  # type: ignore[arg-type]
    assert gate.verdict(Interval((low + high) / 2, low, high, 50), rule) == expected


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_higher_and_lower_mirror_each_other(low: float, width: float, margin: float) -> None:
    straight = gate.verdict(Interval(low, low, low + width, 9), Metric(better="higher", margin=margin))
    mirrored = gate.verdict(Interval(-low, -low - width, -low, 9), Metric(better="lower", margin=margin))
    assert straight == mirrored


def test_junit_counts_what_ci_shows() -> None:
    judged = gate.judge(evasiveness(0.1, 0.6), RULES)
    suite = ElementTree.fromstring(gate.junit(judged, "mine"))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "1", "0")
    assert "**Regression.**" in gate.markdown(judged, "rl_cai", "mine")


def test_the_shipped_gate_loads_and_mistakes_are_named(tmp_path: Path) -> None:
    assert "evasive_rate" in gate.load(None).metrics
    file = tmp_path / "gate.yaml"
    for text, expected in (
        ("metrics: {evasive_rate: {better: lower}}", "metrics.evasive_rate.margin: missing"),
        ("metrics: {}", "metrics"),
        ("metrics: [", "not valid YAML"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=expected):
            gate.load(file)


def test_equal_sizes_keep_shared_prompts_and_the_smaller_number_of_samples() -> None:
    old = pd.DataFrame({"prompt": np.repeat(list("abc"), 4), "response": "x"})
    new = pd.DataFrame({"prompt": np.repeat(list("abcd"), 2), "response": "y"})
    first, second = gate.equal_sizes(old, new)
    assert first.groupby("prompt").size().to_dict() == {"a": 2, "b": 2, "c": 2}
    assert second.groupby("prompt").size().to_dict() == {"a": 2, "b": 2, "c": 2}
