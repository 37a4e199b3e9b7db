"""Judges: pairing, scores, a feedback model, votes from a CSV, and a server that fails in every usual way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit

from harness.errors import UserError
from harness.models.open import open_model
from suites import elo, evaluate, judges
from tests.fake_model import FakeModel
from tests.fake_server import FakeServer, Serve


def responses(n: int = 2, arms: tuple[str, ...] = ("hh_rlhf", "rl_cai")) -> pd.DataFrame:
    rows = [
        {"prompt": f"question {p}?", "response": f"{arm} says {p}", "arm": arm, "sample": 0}
        for arm in arms
        for p in range(n)
    ]
    return pd.DataFrame(rows)


def prefer_rl_cai(text: str) -> str:
    """The letter of rl_cai's answer in a comparison."""
    return "A" if "(A) [[[rl_cai" in text else "B"


# ---------------------------------------------------------------- pairs


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 4), k=st.integers(2, 4), samples=st.integers(1, 3))
def test_every_two_arms_meet_once_on_each_prompt_and_sample(n: int, k: int, samples: int) -> None:
    arms = tuple(f"arm{i}" for i in range(k))
    table = pd.concat([responses(n, arms).assign(sample=s) for s in range(samples)], ignore_index=True)
    pairs = judges.pair_responses(table)
    assert len(pairs) == n * samples * k * (k - 1) // 2
    for side in "ab":
        chosen = table.loc[pairs[f"row_{side}"]]
        assert chosen["arm"].tolist() == pairs[f"arm_{side}"].tolist()
        assert chosen["prompt"].tolist() == pairs["prompt"].tolist()
        assert chosen["sample"].tolist() == pairs["sample"].tolist()
    met = pairs.apply(lambda r: (r["prompt"], r["sample"], frozenset((r["arm_a"], r["arm_b"]))), axis=1)
    assert met.is_unique


def test_snapshots_of_one_arm_are_paired_and_the_final_model_has_no_step() -> None:
    table = pd.concat([responses(1, ("rl_cai",)).assign(step=s) for s in (0, 100, None)], ignore_index=True)
    pairs = judges.pair_responses(table)
    met = {frozenset(-1 if pd.isna(s) else int(s) for s in steps) for steps in pairs[["step_a", "step_b"]].to_numpy()}
    assert met == {frozenset({0, 100}), frozenset({0, -1}), frozenset({100, -1})}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (responses().drop(columns="arm"), "no column arm"),
        (pd.concat([responses(), responses()]), "row 4 is a second answer of arm hh_rlhf"),
        (responses(arms=("rl_cai",)), "no prompt is answered by two arms"),
        (responses().assign(prompt=list("abcd")), "no prompt is answered by two arms"),
    ],
)
def test_what_cannot_be_paired_is_an_error(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(UserError, match=message):
        judges.pair_responses(table)


# ---------------------------------------------------------------- scores


@settings(max_examples=30, deadline=None)
@given(scores=arrays(float, 8, elements=st.integers(-20_000, 20_000).map(lambda n: n / 1000)))  # none underflows
def test_scores_decide_whatever_their_scale_and_keep_the_pms_own_probability(scores: np.ndarray) -> None:
    table = responses(4).assign(pm=scores)
    found = judges.from_scores(table, "pm", judge="gold PM")
    assert list(found) == judges.COLUMNS
    assert found["order"].isna().all()
    np.testing.assert_allclose(found["p"], expit(scores[:4] - scores[4:]))
    assert found["outcome"].tolist() == [1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in scores[:4] - scores[4:]]
    narrow = judges.from_scores(table.assign(pm=scores * 2.0**-20), "pm")
    assert narrow["outcome"].tolist() == found["outcome"].tolist()
    assert set(found["judge"]) == {"gold PM"}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_missing_or_not_finite_name_the_row(bad: float) -> None:
    with pytest.raises(UserError, match="pm: row 3 is"):
        judges.from_scores(responses().assign(pm=[1.0, 2.0, 3.0, bad]), "pm")
    with pytest.raises(UserError, match="no score column 'pm'"):
        judges.from_scores(responses(), "pm")


# ---------------------------------------------------------------- feedback model


def feedback(bias: float, taste: float) -> FakeModel:
    """A feedback model: log-odds of A = bias + taste where rl_cai stands first, bias - taste where second."""

    def logprobs(question: str, _: str) -> tuple[float, float]:
        z = bias + taste * (1 if prefer_rl_cai(question) == "A" else -1)
        return np.log(expit(z)) - 3, np.log(expit(-z)) - 3  # the rest of the mass is elsewhere

    return FakeModel(logprobs)


def test_a_feedback_model_is_asked_in_both_orders_and_their_mean_decides() -> None:
    table = judges.from_feedback(responses(3), feedback(0.5, 1.0), "Which is more harmless?")
    assert len(table) == 6
    ab, ba = (table[table["order"] == order] for order in ("ab", "ba"))
    np.testing.assert_allclose(ab["p"], expit(0.5 - 1.0))  # hh_rlhf shown first
    np.testing.assert_allclose(ba["p"], 1 - expit(0.5 + 1.0))
    assert (table["outcome"] == 0).all()
    biased = judges.from_feedback(responses(3), feedback(4.0, 0.01), "Which is more harmless?")
    assert biased["outcome"].tolist() == [0.0] * 6  # a strong letter bias does not hide a weak taste
    deaf = judges.from_feedback(responses(3), feedback(4.0, 0.0), "Which is more harmless?")
    assert deaf["outcome"].tolist() == [0.5] * 6
    consistency = elo.judge_consistency(biased).set_index("metric")["estimate"]
    assert consistency["order_consistency"] == 0
    assert consistency["first_shown_rate"] == pytest.approx((expit(3.99) + expit(4.01)) / 2)


def test_the_comparison_shows_the_whole_conversation() -> None:
    model = FakeModel(lambda *_: (0.0, 0.0))
    table = responses(1).assign(prompt="\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how?\n\nAssistant:")
    judges.from_feedback(table, model, " Which? ")
    first, second = model.seen
    shown = "H: hi\n\nA: hello\n\nH: how?\n\nWhich? Options:\n (A) [[[hh_rlhf says 0]]]\n (B) [[[rl_cai says 0]]]"
    assert shown in first
    assert "(A) [[[rl_cai says 0]]]\n (B) [[[hh_rlhf says 0]]]" in second


def test_braces_in_an_answer_are_text() -> None:
    table = responses(1).assign(response=["{question}", "{0} {"])
    result = judges.from_feedback(table, FakeModel(lambda *_: (0.0, 0.0)), "Which?")
    assert result["outcome"].tolist() == [0.5, 0.5]


# ---------------------------------------------------------------- votes


def votes(folder: Path, text: str) -> Path:
    (folder / "votes.csv").write_text(text, encoding="utf-8")
    return folder / "votes.csv"


def test_votes_of_people(tmp_path: Path) -> None:
    path = votes(
        tmp_path,
        "prompt,arm_a,step_a,arm_b,winner,judge,order\n"
        '"how, so?",rl_cai,100,hh_rlhf,A,ann,ab\n'
        "why,rl_cai,,hh_rlhf, tie ,,\n"
        "why,hh_rlhf,,rl_cai,b,bob,ba\n",
    )
    table = judges.from_votes(path)
    assert list(table) == judges.COLUMNS
    assert table["outcome"].tolist() == [1.0, 0.5, 0.0]
    assert table["judge"].tolist() == ["ann", "human", "bob"]
    assert table["prompt"][0] == "how, so?"
    assert table["step_a"].fillna(-1).tolist() == [100, -1, -1]
    assert table["order"].fillna("").tolist() == ["ab", "", "ba"]
    result = elo.run(table, anchor="hh_rlhf", n_resamples=20)
    assert len(result.summary) == 3


HEADER = "prompt,arm_a,arm_b,winner,step_a,order\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,arm_a,winner\np,x,a\n", "no column arm_b; the header must name prompt, arm_a, arm_b, winner"),
        (HEADER, "holds no vote"),
        ("", "no column prompt, arm_a, arm_b, winner"),
        (HEADER + "p,x,y,a,,\np,x,y,x,,\n", "vote 2 has winner 'x'; write a, b or tie"),
        (HEADER + "p,x,y,,,\n", "vote 1 has winner ''"),
        (HEADER + " ,x,y,a,,\n", "vote 1 has an empty prompt"),
        (HEADER + "p,x,y,a,,\np,,y,a,,\n", "vote 2 has an empty arm_a"),
        (HEADER + "p,x,y,a,late,\n", "vote 1 has step_a 'late'; write a whole number or nothing"),
        (HEADER + f"p,x,y,a,{'9' * 30},\n", "vote 1 has step_a '999"),
        (HEADER + "p,x,y,a,\u0661,\n", "vote 1 has step_a"),
        (HEADER + "p,x,y,a,-,\n", "vote 1 has step_a '-'; write a whole number or nothing"),
        (HEADER + "p,x,y,a,,first\n", "vote 1 has order 'first'; write ab, ba or nothing"),
        (HEADER + 'p,x,y,a,,\n"p,x\n', "not a readable CSV"),
    ],
)
def test_faults_of_a_votes_file_name_the_file_and_the_vote(tmp_path: Path, text: str, message: str) -> None:
    path = votes(tmp_path, text)
    with pytest.raises(UserError) as caught:
        judges.from_votes(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_votes_file_that_is_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: file not found"):
        judges.from_votes(tmp_path / "none.csv")
    (tmp_path / "votes.csv").write_bytes(b"prompt,arm_a\n\xff\xfe,\x00")
    with pytest.raises(UserError, match=r"votes\.csv: not UTF-8 text"):
        judges.from_votes(tmp_path / "votes.csv")
    with pytest.raises(UserError):
        judges.from_votes(tmp_path)


# ---------------------------------------------------------------- a server


Reply = Callable[[int, str], tuple[int, Any, dict[str, str]]]


def says(text: str) -> tuple[int, Any, dict[str, str]]:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {}


@pytest.fixture
def judging(serve: Serve) -> Callable[[Reply], FakeServer]:
    """`serve` for replies that look at the request's text alone."""
    return lambda reply: serve(lambda number, body: reply(number, body["messages"][0]["content"]))


def test_a_server_judges_each_pair_in_both_orders(judging: Callable[[Reply], FakeServer]) -> None:
    server = judging(lambda number, text: says(prefer_rl_cai(text)))
    table = judges.from_server(responses(5), server.url + "/", "judge-1", "secret", question="Which?")
    assert table["outcome"].tolist() == [0.0] * 10  # rl_cai is arm_b, and wins in both orders
    assert table["order"].tolist() == ["ab"] * 5 + ["ba"] * 5
    assert set(table["judge"]) == {"judge-1"}
    body, headers = server.requests[0], server.headers[0]
    assert (headers["path"], body["model"], body["temperature"]) == ("/v1/chat/completions", "judge-1", 0)
    assert headers["Authorization"] == "Bearer secret"
    assert len(server.requests) == 10
    assert elo.judge_consistency(table)["estimate"].tolist() == [1.0, 0.5]


def test_a_servers_model_judges_alike_in_cai_eval_and_in_cai_run(serve: Serve) -> None:
    def reply(_: int, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        asked = body["messages"][0]["content"]
        top = {"A": -0.3, "B": -1.6} if prefer_rl_cai(asked) == "A" or "(A) An apple" in asked else {"A": -1, "B": -0.6}
        listed = [{"token": token, "logprob": logprob} for token, logprob in top.items()]
        choice = {"message": {"content": "A"}, "logprobs": {"content": [listed[0] | {"top_logprobs": listed}]}}
        return 200, {"choices": [choice]}, {}

    name = f"server:{serve(reply).url}#m"
    table = responses(3).assign(step=pd.array([pd.NA] * 6, dtype="Int64"), kind="harmless")
    measured = evaluate.measure(table, ["elo"], judge=name)["elo"]
    question = judges.QUESTIONS["harmless"]
    in_a_run = judges.from_feedback(table, open_model(name, choosing=True), question, judge=name)
    pd.testing.assert_frame_equal(measured.summary, elo.by_kind(table, lambda part, kind: in_a_run, seed=0).summary)


def test_rate_limits_and_server_errors_are_retried(judging: Callable[[Reply], FakeServer]) -> None:
    failures: list[tuple[int, Any, dict[str, str]]] = [
        (429, "slow down", {"Retry-After": "0"}),
        (500, "oops", {}),
        (503, "later", {}),
    ]
    server = judging(lambda number, text: failures[number] if number < 3 else says(prefer_rl_cai(text)))
    table = judges.from_server(responses(1), server.url, "m", backoff=0.001, workers=1)
    assert table["outcome"].tolist() == [0.0, 0.0]
    assert len(server.requests) == 5


@pytest.mark.parametrize("status", [429, 500])
def test_retries_end(judging: Callable[[Reply], FakeServer], status: int) -> None:
    server = judging(lambda number, text: (status, "no\nroom", {}))
    with pytest.raises(UserError, match=rf"answered {status}: no room, after 3 tries; check that the server is up"):
        judges.from_server(responses(1), server.url, "m", backoff=0.001, retries=2, workers=1)
    assert len(server.requests) >= 3


def test_a_refusal_is_not_retried(judging: Callable[[Reply], FakeServer]) -> None:
    server = judging(lambda number, text: (401, {"error": "bad key"}, {}))
    with pytest.raises(UserError, match=r"answered 401: .*bad key.*; check the address, the model name"):
        judges.from_server(responses(1), server.url, "m", workers=1)
    assert len(server.requests) <= 2


@pytest.mark.parametrize("body", ["<html>", {"choices": []}, {"choices": [{"text": "A"}]}, [1], "5"])
def test_a_reply_of_another_shape_is_an_error(judging: Callable[[Reply], FakeServer], body: Any) -> None:
    server = judging(lambda number, text: (200, body, {}))
    with pytest.raises(UserError, match="the reply is not a chat completion; is this an OpenAI-compatible server"):
        judges.from_server(responses(1), server.url, "m", workers=1)


def test_pairs_without_a_readable_vote_are_left_out_and_counted(judging: Callable[[Reply], FakeServer]) -> None:
    server = judging(lambda number, text: says("I cannot say" if "question 1" in text else prefer_rl_cai(text)))
    table = judges.from_server(responses(3), server.url, "m")
    assert sorted(set(table["prompt"])) == ["question 0?", "question 2?"]
    assert len(table) == 4
    note = "m: 1 of 3 pairs left out, answer unreadable"
    assert table.attrs["notes"] == [note]
    assert elo.run(table, anchor="hh_rlhf", n_resamples=10).notes[0] == note


def test_no_readable_vote_at_all_is_an_error(judging: Callable[[Reply], FakeServer]) -> None:
    server = judging(lambda number, text: says("As a model, I abstain"))
    with pytest.raises(UserError, match=r"no answer of m names A, B or tie \(first: 'As a model, I abstain'\)"):
        judges.from_server(responses(1), server.url, "m")


@pytest.mark.parametrize("url", ["localhost:1/v1", "http://127.0.0.1:1/v1"])
def test_an_address_that_does_not_answer(url: str) -> None:
    with pytest.raises(UserError, match=r"not an address|no answer"):
        judges.from_server(responses(1), url, "m", retries=1, backoff=0.001, workers=1)


@pytest.mark.parametrize(
    ("answer", "vote"),
    [
        ("A", 1), ("b", 0), (" (A) ", 1), ("**B**", 0), ("A.", 1), ("A: it is kinder", 1), ("A because it helps", 1),
        ("tie", 0.5), ("Tie.", 0.5), ("A tie", 0.5), ("Answer: B", 0), ("The better response is A.", 1),
        ("Option B is better", 0), ("<think>A? No, B.</think>\nB", 0), ('"A"', 1),
    ],
)  # fmt: skip
def test_votes_that_are_read(answer: str, vote: float) -> None:
    assert judges.read_vote(answer) == vote


@pytest.mark.parametrize("answer", ["", "A good question", "Both are fine", "I prefer neither", "C", "<think>A", "AB"])
def test_votes_that_are_not(answer: str) -> None:
    assert np.isnan(judges.read_vote(answer))


@given(st.text())
def test_any_answer_is_a_vote_or_nan(answer: str) -> None:
    vote = judges.read_vote(answer)
    assert vote in (0.0, 0.5, 1.0) or np.isnan(vote)
