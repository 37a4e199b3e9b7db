"""One question for two answers: both orders, reasoning, and quotations that data cannot leave."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from harness import compare
from harness.errors import UserError
from harness.models import chat
from tests.fake_model import FakeModel

PAIRS = [compare.Pair("Tea?", "Which is kinder?", "Yes.", "No."), compare.Pair("Now?", "Which?", "x", "y")]


def prefers(text: str, by: float, bias: float = 0.0) -> FakeModel:
    """Log-odds `by` for the option that is `text`, and `bias` for the letter A."""

    def logprobs(question: str, _: str) -> tuple[float, float]:
        z = bias + (by if f"(A) [[[{text}]]]" in question else -by if f"(B) [[[{text}]]]" in question else 0.0)
        return np.log(expit(z) / 4), np.log(expit(-z) / 4)

    return FakeModel(logprobs)


def test_a_position_bias_cancels_and_the_mass_is_kept() -> None:
    first, second = compare.ask(prefers("Yes.", by=1.0, bias=0.5), PAIRS)
    assert (first.forward, first.swapped) == pytest.approx((expit(1.5), expit(0.5)))
    assert first.p == pytest.approx((expit(1.5) + expit(0.5)) / 2)
    assert second.p == pytest.approx(0.5)
    assert first.mass == pytest.approx(0.25)


def test_a_model_that_reasons_is_asked_after_its_reasoning() -> None:
    model = FakeModel(lambda _, reasoning: (0.0, -1.0) if "forward" in reasoning else (-1.0, 0.0), lambda _, key: key)
    batches: list[list[int]] = []
    found = compare.ask(
        model, PAIRS, keys=["p", "q"], seed=3, think=9, before=[{"role": "user", "content": "x"}],
        on_batch=lambda index, done: batches.append(index),
    )  # fmt: skip
    assert [f.reasoning for f in found] == [("p/forward", "p/swapped"), ("q/forward", "q/swapped")]
    assert found[0].forward == found[0].swapped == pytest.approx(1 / (1 + np.exp(-1)))
    assert batches == [[0], [1]]
    assert model.calls[0]["lead"] == compare.AFTER_REASONING
    assert model.calls[0]["opening"] == compare.OPENING
    assert model.calls[0]["seed"] == 3


def test_a_worked_example_has_the_form_of_the_question() -> None:
    turns = compare.worked("Tea?", "Which is kinder?", "Yes.", "No.", "A")
    assert turns[0]["content"] == compare.text("Tea?", "Which is kinder?", "Yes.", "No.")
    assert turns[1]["content"] == "The answer is: (A)"
    reasoned = compare.worked("Tea?", "Which is kinder?", "Yes.", "No.", "B", "No is kind.")
    assert reasoned[1]["content"] == "Let's think step by step: No is kind.\n\nSo the answer is: (B)"


def test_probabilities_that_are_none_are_an_error() -> None:
    with pytest.raises(UserError, match="not finite"):
        compare.ask(FakeModel(lambda *_: (np.nan, 0.0)), PAIRS)


HOSTILE = st.lists(
    st.sampled_from(["[", "[[[", "]", "]]]", "\n", "\n\n", "\u2028", "\r", "H: ", "A: ", "(A) ", "Options:", "a", " "]),
    max_size=12,
).map("".join)


@given(st.lists(HOSTILE, min_size=1, max_size=3), HOSTILE, HOSTILE)
def test_data_cannot_leave_its_quotation(turns: list[str], a: str, b: str) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    asked = compare.text(messages, "Which?", a, b)
    said, options = asked.rsplit("\n\nWhich? Options:\n", 1)
    found = re.fullmatch(r" \(A\) \[\[\[(.*?)\]\]\]\n \(B\) \[\[\[(.*?)\]\]\]", options, re.DOTALL)
    assert found is not None
    unspaced = [re.sub(r"\s", "", part) for part in (*found.groups(), a, b)]
    assert unspaced[:2] == unspaced[2:]
    assert "[[[" not in said
    # Only the speakers' lines begin at the margin: as many as there are turns, in their order.
    margin = [line[:2] for line in said.splitlines()[2:] if line and not line.startswith(" ")]
    assert margin == ["H:" if m["role"] == "user" else "A:" for m in messages]


def test_a_plain_conversation_is_quoted_as_it_is() -> None:
    prompt = "\n\nHuman: hi\n\nAssistant: hello\nthere\n\nHuman: how?\n\nAssistant:"
    assert compare.conversation(prompt) == "H: hi\n\nA: hello\n   there\n\nH: how?"
    assert compare.conversation(chat.parse(prompt)) == compare.conversation(prompt)
