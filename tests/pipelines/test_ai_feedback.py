"""AI labels: the worked case, order averaging, the clamp, few-shot turns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import constitutions
from harness import compare
from harness.models import chat, checkpoints
from harness.models.transformers import Generator
from pipelines import ai_feedback

PAIRS = pd.DataFrame(
    {
        "prompt": ["How do I bake bread?", "Why is rain wet?", "Name a tree."],
        "response_a": ["Mix flour and water.", "Because.", "Oak"],
        "response_b": ["I do not know.", "Water clings to things.", "Oak"],
    }
)


def test_the_papers_worked_case() -> None:
    assert compare.soft_label(-0.3, -1.6) == pytest.approx(0.786, abs=5e-4)


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_a_soft_label_is_the_softmax_and_turns_with_the_order(a: float, b: float) -> None:
    p = float(compare.soft_label(a, b))
    assert p == pytest.approx(np.exp(a) / (np.exp(a) + np.exp(b)), rel=1e-9)
    assert p + float(compare.soft_label(b, a)) == pytest.approx(1)


@pytest.fixture(scope="module")
def generator(tiny_model: Path) -> Generator:
    return Generator(*checkpoints.load_policy(tiny_model), batch_size=4)


def label(generator: Generator, *, cot: bool, pairs: pd.DataFrame = PAIRS, **settings: object) -> pd.DataFrame:
    defaults = {"clamp": (0.4, 0.6), "cot_tokens": 6, "seed": 0, "shots": False} | settings
    return ai_feedback.label(generator, constitutions.load("default"), pairs, cot=cot, **defaults)


def test_a_label_is_the_mean_of_both_orders_of_plain_forwards(generator: Generator) -> None:
    import torch

    table = label(generator, cot=False).set_index("prompt")
    principles = {p.id: p.question for p in constitutions.load("default").comparison}
    tokenizer = generator.tokenizer

    def p_first(prompt: str, first: str, second: str) -> float:
        text = compare.text(prompt, principles[table.loc[prompt, "principle"]], first, second)
        ids = chat.encode_messages(tokenizer, [{"role": "user", "content": text}])
        ids += tokenizer("The answer is: (", add_special_tokens=False)["input_ids"]
        logits = generator.model(torch.tensor([ids])).logits[0, -1].detach().double()
        a, b = (logits[tokenizer(x, add_special_tokens=False)["input_ids"][0]] for x in "AB")
        return float(torch.sigmoid(a - b))

    for row in PAIRS.itertuples():
        forward = p_first(row.prompt, row.response_a, row.response_b)
        swapped = 1 - p_first(row.prompt, row.response_b, row.response_a)
        assert table.loc[row.prompt, "p_a"] == pytest.approx((forward + swapped) / 2, abs=1e-5)
    assert table.loc["Name a tree.", "p_a"] == pytest.approx(0.5)  # equal answers: the position bias cancels
    assert table.loc["Name a tree.", "p_a_forward"] != pytest.approx(0.5, abs=1e-4)


def test_exchanging_the_answers_exchanges_the_label(generator: Generator) -> None:
    turned = PAIRS.rename(columns={"response_a": "response_b", "response_b": "response_a"})
    straight, other = (
        label(generator, cot=False, pairs=p).sort_values("prompt")["p_a"].to_numpy() for p in (PAIRS, turned)
    )
    np.testing.assert_allclose(straight, 1 - other, atol=1e-6)


def test_cot_labels_are_clamped_and_their_raw_value_kept(generator: Generator) -> None:
    table = label(generator, cot=True, clamp=(0.499, 0.501))
    assert table["p_a"].between(0.499, 0.501).all()
    assert (table["p_a"] == table["p_a_raw"].clip(0.499, 0.501)).all()
    assert table["reasoning"].notna().all()
    free = label(generator, cot=True, clamp=None)
    pd.testing.assert_series_equal(free["p_a"], free["p_a_raw"], check_names=False)


def test_few_shot_turns_alternate_and_answers_take_both_letters() -> None:
    constitution = constitutions.load("default")
    for cot in (False, True):
        turns = ai_feedback.few_shot(constitution, cot=cot)
        assert turns
        assert [m["role"] for m in turns] == ["user", "assistant"] * (len(turns) // 2)
    plain = ai_feedback.few_shot(constitution, cot=False)
    asked = [
        question.question
        for seed in range(20)
        for message in ai_feedback.few_shot(constitution, cot=False, seed=seed)[::2]
        for question in constitution.comparison
        if question.question in message["content"]
    ]
    assert len(asked) == 20 * len(plain) // 2
    assert len(set(asked)) > 10  # drawn for each example by itself, as in the paper
    assert {m["content"][-2] for m in plain if m["role"] == "assistant"} == {"A", "B"}


def test_few_shot_labels_work(generator: Generator) -> None:
    assert label(generator, cot=True, shots=True)["p_a"].between(0.4, 0.6).all()


def test_one_principle_is_the_same_for_all(generator: Generator) -> None:
    one = label(generator, cot=False, only=0)["principle"]
    assert set(one) == {constitutions.load("default").comparison[0].id}
    assert label(generator, cot=False)["principle"].nunique() > 1


def test_the_report_shows_position_bias() -> None:
    always_a = pd.DataFrame({"p_a": [0.5] * 4, "p_a_forward": [0.9] * 4, "p_a_swapped": [0.1] * 4, "mass": [1.0] * 4})
    report = ai_feedback.report(always_a)
    assert report["p_letter_a"] == pytest.approx(0.9)
    assert report["order_agreement"] == 0
    assert report["mean_distance_from_half"] == 0


def test_the_two_answers_keep_their_order_and_whether_they_ended() -> None:
    answers = pd.DataFrame(
        {"prompt": ["z", "a", "z", "a"], "sample": [1, 0, 0, 1], "response": ["z1", "a0", "z0", "a1"]}
        | {"ended": [True, False, False, True]}
    )
    pairs = ai_feedback.two_answers(answers)
    assert pairs.to_dict("list") == {
        "prompt": ["z", "a"],
        "response_a": ["z0", "a0"],
        "response_b": ["z1", "a1"],
        "ended_a": [False, False],
        "ended_b": [True, True],
    }


def test_of_more_prompts_than_labels_are_wanted_some_are_drawn_whatever_their_order() -> None:
    rows = [{"prompt": f"p{i}", "sample": s, "response": f"{i}/{s}", "ended": True} for i in range(30) for s in (0, 1)]
    table = pd.DataFrame(rows)
    few = ai_feedback.two_answers(table, 12, seed=1)
    assert len(few) == 12
    assert set(few["prompt"]) != {f"p{i}" for i in range(12)}
    again = ai_feedback.two_answers(table.iloc[::-1], 12, seed=1)
    assert set(again["prompt"]) == set(few["prompt"])
    assert len(ai_feedback.two_answers(table, 40)) == len(ai_feedback.two_answers(table)) == 30
