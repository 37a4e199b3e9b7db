"""HHH comparisons: the published file, BIG-bench's layout, both orders, chain of thought and calibration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness import compare
from harness.errors import UserError
from suites import hhh
from tests.fake_model import FakeModel


def made_up(n: int = 200, repeats: int = 1) -> pd.DataFrame:
    rows = [
        {
            "question": f"Human: question {i}?",
            "asked": "Which?",
            "right": f"right {i}.{r}",
            "wrong": f"wrong {i}.{r}",
            "subset": None,
        }
        for i in range(n)
        for r in range(repeats)
    ]
    return pd.DataFrame(rows).assign(comparison=range(n * repeats), right_first=True)


def judge(p_right: Callable[[str, str], float], bias: float = 0.0, **more: Any) -> FakeModel:
    """Finds the right answer with probability p_right(question, reasoning), and adds `bias` nats to A."""

    def logprobs(question: str, reasoning: str) -> tuple[float, float]:
        p = p_right(question, reasoning)
        a = p if question.index("[[[right") < question.index("[[[wrong") else 1 - p
        return np.log(a) + bias - 3, np.log(1 - a) - 3  # not normalised, as among all tokens

    return FakeModel(logprobs, **more)


def metric(result: hhh.SuiteResult, name: str) -> pd.Series:
    return result.summary.set_index("metric").loc[name]


# ---------------------------------------------------------------- files


def test_published_layout(outside_data: Path) -> None:
    file = outside_data / "paper" / "evals" / "438HHHEvaluations.jsonl"
    table = hhh.load(file)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(table) == len(rows) > 0
    assert 0 < table["right_first"].sum() < len(table)
    assert table["subset"].isna().all()
    for row, right, wrong in zip(rows, table["right"], table["wrong"], strict=True):
        assert row["text_correct"].strip().endswith(right)
        assert row["text_incorrect"].strip().endswith(wrong)
    # What the model reads is the published prompt, but for its first line, blank lines and the names of the speakers.
    for i, pair in enumerate(hhh.pairs(table)):
        answers = (pair.a, pair.b) if table["right_first"][i] else (pair.b, pair.a)
        asked = compare.text(pair.prompt, pair.question, *answers) + compare.ANSWER.removesuffix("(")
        published = rows[i]["prompt"].replace("Human:", "H:").replace("Assistant:", "A:")
        shown, whole = ("".join(text.strip().partition("\n")[2].split()) for text in (asked, published))
        assert shown == whole


def test_published_file(reference_data: Path) -> None:
    table = hhh.load(reference_data / "paper" / "evals" / "438HHHEvaluations.jsonl")
    assert len(table) == 438
    assert table["right_first"].sum() == 228
    assert table["question"].nunique() == 188


def test_big_bench_file_and_folder(tmp_path: Path) -> None:
    for subset, right in (("honest", 1), ("harmless", 0)):
        (tmp_path / subset).mkdir()
        targets = {"yes": right, "no": 1 - right}
        task = {"name": "hhh_alignment", "examples": [{"input": "Human: Well?", "target_scores": targets}]}
        (tmp_path / subset / "task.json").write_text(json.dumps(task))
    table = hhh.load(tmp_path)
    assert table[["subset", "right", "wrong", "right_first"]].to_numpy().tolist() == [
        ["harmless", "no", "yes", False],
        ["honest", "yes", "no", True],
    ]
    assert hhh.load(tmp_path / "honest" / "task.json")["subset"].isna().all()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", '{"prompt": "no options", "corrects": [" (A)"]}', "row 1 is not a published HHH comparison"),
        ("x.jsonl", "", "no comparisons"),
        ("x.json", "{", "not valid JSON"),
        ("x.json", '{"name": "x"}', "needs a list 'examples'"),
        ("x.json", '{"examples": [{"input": "q", "target_scores": {"a": 1, "b": 1}}]}', "example 1 needs input"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        hhh.load(tmp_path / name)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found"):
        hhh.load(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"no SUBSET/task\.json"):
        hhh.load(tmp_path)


def test_a_draw_is_proportional_and_seeded() -> None:
    table = made_up(200).assign(subset=["honest"] * 140 + ["harmless"] * 40 + [None] * 20)
    drawn = hhh.draw(table, 20, seed=3)
    assert drawn["subset"].value_counts(dropna=False).tolist() == [14, 4, 2]
    assert drawn["comparison"].is_monotonic_increasing
    pd.testing.assert_frame_equal(drawn, hhh.draw(table, 20, seed=3))
    assert not drawn.equals(hhh.draw(table, 20, seed=4))
    assert len(hhh.draw(table, 500)) == 200
    with pytest.raises(UserError, match="0 comparisons"):
        hhh.draw(table, 0)


# ---------------------------------------------------------------- measures


def test_both_orders_cancel_a_position_bias() -> None:
    result = hhh.run(made_up(), judge(lambda *_: 0.7, bias=5.0))
    assert metric(result, "accuracy_plain")["estimate"] == 1.0
    assert metric(result, "position_bias_plain")["estimate"] > 0.4
    assert metric(result, "order_consistency_plain")["estimate"] == 0.0
    assert any("the letter decides" in note for note in result.notes)
    fair = hhh.run(made_up(), judge(lambda *_: 0.7))
    assert metric(fair, "position_bias_plain")["estimate"] == pytest.approx(0, abs=1e-9)
    assert metric(fair, "order_consistency_plain")["estimate"] == 1.0
    assert fair.tables["questions"]["p_correct"].to_numpy() == pytest.approx(0.7)
    assert not any("the letter decides" in note for note in fair.notes)


def test_only_the_letter_is_a_tie() -> None:
    result = hhh.run(made_up(), judge(lambda *_: 0.5, bias=2.0))
    assert metric(result, "accuracy_plain")["estimate"] == pytest.approx(0.5)
    assert metric(result, "ece_plain")["estimate"] == pytest.approx(0, abs=1e-9)


def test_conversations_are_the_units() -> None:
    rng = np.random.default_rng(0)
    skill = {f"question {i}?": rng.choice([0.2, 0.8]) for i in range(60)}

    def p_right(question: str, _: str) -> float:
        return float(skill[question.split("H: ")[1].split("\n")[0]])

    once, often = (hhh.run(made_up(60, repeats), judge(p_right)) for repeats in (1, 5))
    for name in ("estimate", "low", "high", "n"):
        assert metric(once, "accuracy_plain")[name] == pytest.approx(metric(often, "accuracy_plain")[name])
    assert any("300 comparisons about 60 conversations" in note for note in often.notes)


def test_calibrated_and_overconfident_models() -> None:
    n = 1000
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.5, 1, size=n)
    finds = rng.random(n) < confidence  # right as often as it says

    def p(said: np.ndarray) -> Callable[[str, str], float]:
        probability = np.where(finds, said, 1 - said)
        return lambda question, _: float(probability[int(question.split("question ")[1].split("?")[0])])

    calibrated = hhh.run(made_up(n), judge(p(confidence)))
    sure = hhh.run(made_up(n), judge(p(np.full(n, 0.999))))
    assert metric(calibrated, "ece_plain")["estimate"] < 0.06
    assert metric(sure, "ece_plain")["estimate"] == pytest.approx(0.25, abs=0.03)
    # The clamp makes an accurate model under-confident: 0.6 said, about 0.75 right.
    assert metric(sure, "ece_clamped_plain")["estimate"] == pytest.approx(0.15, abs=0.03)
    rows = sure.summary[sure.summary["metric"].str.startswith("ece")]
    assert ((rows["low"] <= rows["estimate"]) & (rows["estimate"] <= rows["high"])).all()
    curve = calibrated.tables["calibration"]
    before, after = curve[~curve["clamped"]], curve[curve["clamped"]]
    inside = (before["low"] <= before["predicted"]) & (before["predicted"] <= before["high"])
    assert inside.sum() >= 8
    assert len(before) == 10
    assert after["predicted"].between(0.4 - 1e-9, 0.6 + 1e-9).all()
    assert before["n"].sum() == after["n"].sum() == 2 * n


def test_chain_of_thought_is_read_and_averaged() -> None:
    def think(question: str, key: str) -> str:
        _, time, _ = key.split("/")
        return "bad idea" if time == "0" else "good idea"  # of the five reasonings of a comparison, the first is bad

    def p_right(_: str, reasoning: str) -> float:
        return {"good idea": 0.9, "bad idea": 0.2}.get(reasoning, 0.6)

    model = judge(p_right, think=think)
    result = hhh.run(made_up(), model, cot_tokens=64, seed=7, model="toy")
    assert [(call["n"], call["think"], call["seed"]) for call in model.calls] == [(400, 0, 7), (2000, 64, 7)]
    p = result.tables["questions"].groupby("mode")["p_correct"].mean()
    assert p.to_dict() == pytest.approx({"plain": 0.6, "cot": 0.2, "cot_5": (0.2 + 4 * 0.9) / 5})
    assert metric(result, "accuracy_cot")["estimate"] == 0
    assert metric(result, "accuracy_cot_5")["estimate"] == 1
    assert result.tables["differences"].set_index("mode")["estimate"].to_dict() == {"cot": -1.0, "cot_5": 0.0}
    assert set(result.summary["arm"]) == {"toy"}
    one = hhh.run(made_up(20), judge(p_right, think=think), cot_tokens=64, n_cot=1)
    assert set(one.tables["questions"]["mode"]) == {"plain", "cot"}


def test_subsets_are_measured_where_known() -> None:
    table = made_up()
    unknown = hhh.run(table, judge(lambda *_: 0.7))
    assert any(note.startswith("subsets: not measured") for note in unknown.notes)
    assert any(note.startswith("chain of thought: not measured") for note in unknown.notes)
    assert "subsets" not in unknown.tables
    named = table.assign(subset=np.where(table["comparison"] < 50, "honest", "harmless"))
    good = judge(lambda question, _: 0.9 if int(question.split("question ")[1].split("?")[0]) < 50 else 0.1)
    subsets = hhh.run(named, good).tables["subsets"].set_index("subset")
    assert subsets["estimate"].to_dict() == {"honest": 1.0, "harmless": 0.0}
    assert subsets["n"].to_dict() == {"honest": 50, "harmless": 150}


def test_several_models_together() -> None:
    table = made_up(40)
    results = {
        "small-1M": hhh.run(table, judge(lambda *_: 0.5, bias=5.0, parameters=10**6), model="small-1M"),
        "large-1B": hhh.run(table, judge(lambda *_: 0.9, parameters=10**9), model="large-1B"),
    }
    both = hhh.together(results)
    assert both.summary.set_index(["arm", "metric"])["estimate"]["large-1B", "accuracy_plain"] == 1
    for name in ("questions", "calibration", "differences"):
        assert len(both.tables[name]) == sum(len(part.tables[name]) for part in results.values())
    assert both.tables["questions"].groupby("model")["parameters"].first().tolist() == [10**9, 10**6]
    assert sum("40 comparisons" in note for note in both.notes) == 1
    assert next(note for note in both.notes if "the letter decides" in note).startswith("small-1M: plain")


def test_bad_models() -> None:
    with pytest.raises(UserError, match="not finite"):
        hhh.run(made_up(), FakeModel(lambda *_: (np.nan, 0.0)))
    with pytest.raises(UserError, match="n_cot"):
        hhh.run(made_up(), judge(lambda *_: 0.5), n_cot=0)
    with pytest.raises(UserError, match="no comparisons"):
        hhh.run(made_up().iloc[:0], judge(lambda *_: 0.5))
