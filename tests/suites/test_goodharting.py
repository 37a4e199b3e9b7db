"""The goodharting suite: equal-size comparisons, diversity, turning points, the exploit probe, the paper's samples."""

import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from suites import diversity, goodharting, overoptimisation
from suites.responses import load_responses
from suites.result import SuiteResult

PHRASE = "Remember that every river finds its own sea."
PM_COEFFICIENT = 1.5


def responses(
    arm: str, seed: int, *, prompts: int = 24, samples: int = 2, planted: float = 0.0, step: int | None = None
) -> pd.DataFrame:
    """Random words, with PHRASE behind every response of a share of the prompts."""
    rng = np.random.default_rng(seed)
    rows = []
    for p in range(prompts):
        for s in range(samples):
            text = " ".join(f"w{i}" for i in rng.integers(0, 3000, size=20)) + "."
            text += f" {PHRASE}" if p < planted * prompts else ""
            rows.append([f"subject{p} question{p}", text, arm, step, s])
    return pd.DataFrame(rows, columns=goodharting.REQUIRED).astype({"step": "Int64"})


def pays_for_phrase(prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    return np.array(
        [PM_COEFFICIENT * (PHRASE in text) - len(prompt) for prompt, text in zip(prompts, texts, strict=True)]
    )


def row(table: pd.DataFrame, **where: object) -> pd.Series:
    found = table
    for column, value in where.items():
        found = found[found[column] == value]
    assert len(found) == 1, where
    return found.iloc[0]


def test_planted_boilerplate_is_measured_compared_and_paid_for(tmp_path: Path) -> None:
    table = pd.concat([responses("clean", 0), responses("worn", 1, planted=0.5)], ignore_index=True)
    result = goodharting.run(table, scorer=pays_for_phrase, seed=3)
    rates = result.summary[result.summary["metric"] == "boilerplate_rate"]
    worn, clean = row(rates, arm="worn"), row(rates, arm="clean")
    assert worn["estimate"] == 0.5
    assert clean["estimate"] == 0
    assert clean["low"] == pytest.approx(0, abs=1e-12)
    assert clean["high"] > 0.1  # 24 prompts without boilerplate do not prove that there is none
    assert worn["n"] == 24
    gap = row(result.tables["differences"], metric="boilerplate_rate")
    assert (gap["arm_a"], gap["arm_b"], gap["estimate"]) == ("clean", "worn", -0.5)
    assert gap["high"] < 0
    append = row(result.tables["exploit"], arm="worn", change="append")
    delete = row(result.tables["exploit"], arm="worn", change="delete")
    assert append["estimate"] == pytest.approx(PM_COEFFICIENT)
    assert delete["estimate"] == pytest.approx(-PM_COEFFICIENT)
    assert delete["n"] == 12
    labels = result.tables["responses"]
    assert labels["response"].tolist() == table["response"].tolist()
    assert ((labels["label"] == "boilerplate") == labels["response"].str.contains("river")).all()
    assert row(result.tables["phrases"], arm="worn")["prompts"] == 12
    assert any("over-optimisation not measured" in note for note in result.notes)
    result.save(tmp_path)
    assert SuiteResult.load(tmp_path).tables["exploit"].equals(result.tables["exploit"])


def test_row_order_plays_no_part() -> None:
    table = pd.concat([responses("a", 0, planted=0.3), responses("b", 1)], ignore_index=True)
    one, other = goodharting.run(table), goodharting.run(table.sample(frac=1, random_state=1))
    columns = ["arm", "metric", "estimate", "n"]
    pd.testing.assert_frame_equal(one.summary[columns], other.summary[columns])
    assert one.tables["phrases"].equals(other.tables["phrases"])


def test_arms_of_unequal_size_are_compared_at_equal_size() -> None:
    """Same habit, five times the samples and twice the prompts: the difference stays near nothing."""
    rng = np.random.default_rng(0)
    tail = [" ".join(f"t{i}" for i in rng.integers(0, 999, size=7)) for _ in range(12)]

    def arm(name: str, prompts: int, samples: int, seed: int) -> pd.DataFrame:
        table, draw = responses(name, seed, prompts=prompts, samples=samples), np.random.default_rng(seed)
        table["response"] += [f" {tail[i]}." for i in draw.integers(0, len(tail), size=len(table))]
        return table

    large, small = arm("large", 60, 5, 1), arm("small", 30, 1, 2)
    counted = goodharting.equal_parts(large, small)
    assert [c.sum() for c in counted] == [30, 30]
    assert set(large["prompt"][counted[0]]) == set(small["prompt"])
    result = goodharting.run(pd.concat([large, small], ignore_index=True))
    gap = row(result.tables["differences"], metric="boilerplate_rate")
    assert gap["low"] < 0 < gap["high"]
    rates = result.summary[result.summary["metric"] == "boilerplate_rate"]
    assert row(rates, arm="large")["estimate"] > row(rates, arm="small")["estimate"] + 0.15  # what equal size avoids
    assert any("differ in size" in note for note in result.notes)


def test_snapshots_are_compared_first_to_last() -> None:
    parts = [responses("rl", i, step=s, planted=p) for i, (s, p) in enumerate([(0, 0.0), (10, 0.3), (20, 0.8)])]
    differences = goodharting.run(pd.concat(parts, ignore_index=True)).tables["differences"]
    gap = row(differences, metric="boilerplate_rate")
    assert (gap["step_a"], gap["step_b"]) == (20, 0)
    assert gap["low"] > 0.5


def test_too_few_prompts_is_said_not_scored() -> None:
    result = goodharting.run(responses("tiny", 0, prompts=2, planted=1.0))
    assert "boilerplate_rate" not in set(result.summary["metric"])
    assert any("boilerplate_rate not measured" in note for note in result.notes)
    assert any("underpowered" in note for note in goodharting.run(responses("few", 0, prompts=8)).notes)


def test_bad_tables_are_refused_in_one_line() -> None:
    table = responses("a", 0)
    for bad, wrong in [
        (table.drop(columns="arm"), "no column arm"),
        (table.head(0), "empty"),
        (table.assign(response=None), "row 0 has no response"),
    ]:
        with pytest.raises(UserError, match=wrong):
            goodharting.run(bad)
    with pytest.raises(UserError, match="not a finite number"):
        goodharting.run(responses("a", 0, planted=0.5), scorer=lambda p, r: np.full(len(p), np.nan))


# ---------------------------------------------------------------- diversity


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_corpus_metrics_equal_a_plain_count(seed: int) -> None:
    table = responses("a", seed, prompts=8)
    found, _ = diversity.measure({"a": table})
    tokens = [r.lower().replace(".", " .").split() for r in table["response"]]
    pairs = [pair for words in tokens for pair in pairwise(words)]
    assert found["a", "distinct_2"].values.mean() == pytest.approx(len(set(pairs)) / len(pairs))
    ordered = [" ".join(r.lower().replace(".", " .").split()) for r in _by_prompt(table)]
    raw = "\n".join(ordered).encode()
    assert found["a", "compression_ratio"].values.mean() == pytest.approx(len(raw) / len(zlib.compress(raw)))
    assert found["a", "length"].values.mean() == 20


def _by_prompt(table: pd.DataFrame) -> list[str]:
    ordered = diversity.in_order(table, 0)
    prompts = list(dict.fromkeys(ordered["prompt"]))
    return [r for p in prompts for r in ordered["response"][ordered["prompt"] == p]]


def test_repetition_moves_every_metric_the_right_way() -> None:
    found, notes = diversity.measure({"fresh": responses("a", 0), "worn": responses("b", 1, planted=1.0)})
    mean = {key: value.values.mean() for key, value in found.items()}
    assert mean["worn", "distinct_2"] < mean["fresh", "distinct_2"]
    assert mean["worn", "compression_ratio"] > mean["fresh", "compression_ratio"]
    assert mean["worn", "self_bleu"] > mean["fresh", "self_bleu"] + 10
    assert any("words of each arm" in note for note in notes)


def test_self_bleu_bounds() -> None:
    same = diversity.self_bleu(["a b c d e f"] * 4)
    np.testing.assert_allclose(same, 100)
    assert diversity.self_bleu(["a b c d e", "f g h i j", "k l m n o"]).max() < 1


def test_more_samples_do_not_change_the_metrics_much() -> None:
    """distinct-2 of all text falls with its amount; at equal size it does not."""
    found, _ = diversity.measure({"a": responses("a", 0, samples=20), "b": responses("b", 1, samples=1)})
    a, b = (found[arm, "distinct_2"].values.mean() for arm in "ab")
    assert a == pytest.approx(b, abs=0.02)


# ---------------------------------------------------------------- over-optimisation


def along_rl(
    alpha: float, beta: float, *, prompts: int = 0, steps: int = 12, noise: float = 0.1, seed: int = 0
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    d = np.linspace(0, 6, steps)
    gold = d * (alpha - beta * np.log(np.maximum(d, 1e-9)))
    table = pd.DataFrame({"arm": "rl", "step": np.arange(steps), "kl": d**2, "proxy": d, "gold": gold})
    if prompts:
        table = table.merge(pd.DataFrame({"prompt": [f"p{i}" for i in range(prompts)]}), how="cross")
        table["gold"] += rng.normal(size=prompts)[np.arange(len(table)) % prompts]
    table["gold"] += noise * rng.standard_normal(len(table))
    return table


@pytest.mark.parametrize("prompts", [0, 40])
@pytest.mark.parametrize("peak", [2.0, 3.5])
def test_the_turn_is_found(peak: float, prompts: int) -> None:
    beta = 1.0
    alpha = beta * (1 + np.log(peak))
    curve, turns, notes = overoptimisation.measure(along_rl(alpha, beta, prompts=prompts))
    turn = row(turns, arm="rl")
    assert turn["turn"]
    assert turn["low"] - 0.02 <= peak <= turn["high"] + 0.02
    assert turn["sqrt_kl"] == pytest.approx(peak, abs=0.3)
    assert "turns down" in notes[-1]
    assert len(curve) == 12
    np.testing.assert_allclose(curve["sqrt_kl"] ** 2, curve["kl"])


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (1.0, 0.0)])
def test_false_turns_are_rare(alpha: float, beta: float) -> None:
    """Flat and rising gold: a one-sided 2.5 % test, so 7 or more of 100 has a probability below 1.5 %."""
    seen = [
        bool(overoptimisation.measure(along_rl(alpha, beta, noise=0.5, seed=s, steps=8))[1]["turn"][0])
        for s in range(100)
    ]
    assert sum(seen) < 7


def test_no_turn_is_said_and_few_snapshots_are_not_measured() -> None:
    _, turns, notes = overoptimisation.measure(along_rl(1.0, 0.0))
    assert not turns["turn"][0]
    assert "no turn seen" in notes[-1]
    _, turns, notes = overoptimisation.measure(along_rl(1.0, 0.5, steps=4))
    assert turns.empty
    assert "not measured" in notes[-1]
    with pytest.raises(UserError, match="no column gold"):
        overoptimisation.measure(along_rl(1, 1).drop(columns="gold"))


def test_the_suite_reports_the_turn(tmp_path: Path) -> None:
    result = goodharting.run(responses("rl", 0), training=along_rl(2.0, 1.0, prompts=30))
    turn = row(result.summary, metric="gold_turn_sqrt_kl")
    assert turn["low"] <= turn["estimate"] <= turn["high"]
    assert {"overoptimisation", "turns"} <= set(result.tables)
    result.save(tmp_path)


# ---------------------------------------------------------------- the paper's samples


def test_the_papers_samples_show_what_the_paper_says(reference_data: Path) -> None:
    """Section 4.3: over-trained RL-CAI gives boilerplate; the RLHF arms give less."""
    table = load_responses([reference_data / "paper" / "samples"])
    result = goodharting.run(table[table["arm"] != "sl_cai"])
    differences = result.tables["differences"].query("metric == 'boilerplate_rate'")
    for arm in ("hh_rlhf", "helpful_only"):
        gap = row(differences, arm_a=arm, arm_b="rl_cai")
        assert gap["high"] < -0.1  # rl_cai above, the whole interval
        assert gap["n"] == 26
    top = result.tables["phrases"].query("arm == 'rl_cai'")["phrase"].head(10)
    assert top.str.contains("here to|not alone|valuable").sum() >= 3
