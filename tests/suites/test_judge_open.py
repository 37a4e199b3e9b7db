"""Opening judges by name, several judges beside one another, and how far they agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from harness import scoring
from harness.errors import UserError
from harness.experiment import Models
from suites import elo, judge_agreement, judge_open
from tests.suites.test_judges import responses

LENGTH = "def score(prompts, responses):\n    return [len(r) for r in responses]\n"


def scorer(folder: Path, text: str, name: str = "own") -> str:
    file = folder / f"{name}.py"
    file.write_text(text)
    return f"scorer:{file}"


def test_a_function_of_ones_own_judges(tmp_path: Path) -> None:
    judge = judge_open.open_judge(scorer(tmp_path, LENGTH))
    table = responses(4).assign(response=["aa", "a", "aaa", "a", "a", "aa", "aaa", "aa"])
    assert judge.compare(table, "harmless")["outcome"].tolist() == [1.0, 0.0, 0.5, 0.0]
    assert judge.score is not None
    assert judge.score(["x"], ["four"]).tolist() == [4.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def score(p, r):\n    return [1.0]\n", r"scores of shape \(1,\) for 2 answers"),
        ("def score(p, r):\n    raise SystemExit(0)\n", "SystemExit: 0; correct the file"),
        ("def score(p, r):\n    return [float('nan')] * len(r)\n", "row 0 is nan"),
        ("def points(p, r): ...\n", "no attribute 'score'"),
        ("score = (\n", "SyntaxError"),
    ],
)
def test_a_scorer_that_does_not_work_is_one_clear_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        scoring.scorer_of(Path(scorer(tmp_path, text).removeprefix("scorer:")))(["a", "b"], ["c", "d"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gold", "pm:", "scorer:none.py", "votes:v.csv"])
def test_what_is_no_judge_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"no such judge; give pm:NAME|file not found"):
        judge_open.open_judge(name)


def test_an_experiment_names_one_judge_or_several() -> None:
    assert Models().judge == ("gold_pm",)
    assert Models(judge="feedback").judge == ("feedback",)
    assert Models(judge=["gold_pm", "pm:org/reward"]).judge == ("gold_pm", "pm:org/reward")
    for wrong, said in (
        ("gold", "unknown judge 'gold'"),
        ("pm:", "unknown judge 'pm:'"),
        (["gold_pm", "gold_pm"], "named twice"),
        ([], "at least 1 item"),
        ("server:nowhere", "nowhere"),
    ):
        with pytest.raises(ValueError, match=said):
            Models(judge=wrong)


def test_further_judges_stand_beside_the_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 120)
    table = responses(60).assign(kind="harmless", step=pd.NA, response=["a" * n for n in lengths])
    longest = judge_open.open_judge(scorer(tmp_path, LENGTH, "longest"))
    shortest = judge_open.open_judge(scorer(tmp_path, LENGTH.replace("len(r)", "-len(r)"), "shortest"))
    others = {"shortest": shortest.compare}
    result = elo.by_kind(table.astype({"step": "Int64"}), longest.compare, others=others)
    value = result.summary.set_index(["metric", "arm"])["estimate"]
    assert value["elo_harmlessness", "rl_cai"] == pytest.approx(-value["elo_harmlessness@shortest", "rl_cai"])
    found = result.tables["harmlessness_agreement"].set_index("metric")
    assert found.loc["rank_correlation", "estimate"] == pytest.approx(-1)
    assert found.loc["kappa", "estimate"] < -0.5
    assert (found["n"] == 60).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 0.5, 1]), st.sampled_from([0, 0.5, 1])), min_size=2, max_size=40))
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[float, float]]) -> None:
    x, y = (pd.Series([pair[i] for pair in pairs]) for i in (0, 1))
    own = judge_agreement.kappa(x, y, pd.Series(range(len(x))), n_resamples=20)
    if x.nunique() == y.nunique() == 1 and x[0] == y[0]:
        assert np.isnan(own.estimate)
    else:
        theirs = cohen_kappa_score(x.astype(float).astype(str), y.astype(float).astype(str))
        assert own.estimate == pytest.approx(theirs, abs=1e-12)


def test_a_judge_agrees_with_itself() -> None:
    table = responses(40).assign(pm=np.random.default_rng(0).normal(size=80))
    compared = judge_open.judges.from_scores(table, "pm")
    found = judge_agreement.agreement({"a": compared, "b": compared}).set_index("metric")
    assert found["estimate"].tolist() == pytest.approx([1, 1])
    assert (found["low"] > 0.99).all()
