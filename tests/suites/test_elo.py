"""Elo suite: arms and snapshots, both orders of a comparison, ties, the awkward graphs, and every message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from suites import elo
from suites.result import SUMMARY_COLUMNS, SuiteResult

STRENGTH = {"helpful_only": 0.0, "hh_rlhf": 0.6, "rl_cai": 1.3}


def simulate(strength: dict[str, float], n: int, seed: int = 0, tie: float = 0.0) -> pd.DataFrame:
    """Every pair of arms once on each of n prompts; a share `tie` of the votes is a tie."""
    rng = np.random.default_rng(seed)
    names = list(strength)
    rows = []
    for prompt in range(n):
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                wins = rng.uniform() < 1 / (1 + np.exp(strength[b] - strength[a]))
                outcome = 0.5 if rng.uniform() < tie else float(wins)
                rows.append({"prompt": f"p{prompt}", "arm_a": a, "arm_b": b, "outcome": outcome})
    return pd.DataFrame(rows)


def in_both_orders(p_ab: list[float], p_ba: list[float]) -> pd.DataFrame:
    """Arms x and y on one prompt a pair of values: outcomes for x when x is shown first, and when it is second."""
    prompts = [f"p{i}" for i in range(len(p_ab))]
    table = pd.DataFrame({"prompt": prompts, "arm_a": "x", "arm_b": "y", "sample": 0, "judge": "fm"})
    return pd.concat([table.assign(outcome=p_ab, order="ab"), table.assign(outcome=p_ba, order="ba")])


def estimates(result: SuiteResult) -> dict[str, float]:
    return dict(zip(result.summary["arm"], result.summary["estimate"], strict=True))


def consistency(result: SuiteResult) -> dict[str, float]:
    judge = result.tables["judge"]
    return dict(zip(judge["metric"], judge["estimate"], strict=True))


# ---------------------------------------------------------------- what comes out


def test_summary_and_tables_of_a_known_ranking(tmp_path: Path) -> None:
    result = elo.run(simulate(STRENGTH, 400), metric="elo_helpfulness", anchor="helpful_only", n_resamples=300)
    summary = result.summary.set_index("arm")
    assert list(result.summary) == SUMMARY_COLUMNS
    assert set(result.summary["metric"]) == {"elo_helpfulness"}
    assert (summary["n"] == 400).all()
    assert summary["step"].isna().all()
    assert tuple(summary.loc["helpful_only", ["estimate", "low", "high"]]) == (0, 0, 0)
    for arm in ("hh_rlhf", "rl_cai"):
        assert summary.loc[arm, "low"] < 400 / np.log(10) * STRENGTH[arm] < summary.loc[arm, "high"]
    gap = result.tables["differences"].set_index(["arm_a", "arm_b"]).loc[("rl_cai", "hh_rlhf")]
    assert gap["estimate"] == pytest.approx(summary.loc["rl_cai", "estimate"] - summary.loc["hh_rlhf", "estimate"])
    assert gap["low"] > 0
    result.save(tmp_path)
    loaded = SuiteResult.load(tmp_path)
    assert set(loaded.tables) == {"differences", "win_rates", "judge", "draws", "players"}
    pd.testing.assert_frame_equal(loaded.summary, result.summary)


def test_the_draws_are_those_of_the_intervals() -> None:
    result = elo.run(simulate(STRENGTH, 60), anchor="helpful_only", n_resamples=200)
    draws = result.tables["draws"].pivot(index="resample", columns="arm", values="elo")
    row = result.summary.set_index("arm").loc["rl_cai"]
    assert len(draws) == 200
    assert tuple(np.quantile(draws["rl_cai"], [0.025, 0.975])) == pytest.approx((row["low"], row["high"]))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), tie=st.sampled_from([0.0, 0.3]))
def test_win_rates_are_the_counted_ones_in_both_directions(seed: int, tie: float) -> None:
    votes = simulate(STRENGTH, 25, seed, tie)
    rates = elo.run(votes, anchor="hh_rlhf", n_resamples=50).tables["win_rates"].set_index(["arm_a", "arm_b"])
    counted = votes.groupby(["arm_a", "arm_b"])["outcome"].mean()
    for (a, b), share in counted.items():
        assert rates.loc[(a, b), "estimate"] == pytest.approx(share)
        assert rates.loc[(b, a), "estimate"] == pytest.approx(1 - share)
        assert rates.loc[(a, b), "low"] == pytest.approx(1 - rates.loc[(b, a), "high"])
        assert rates.loc[(a, b), "n"] == 25
    assert (rates["low"] < rates["high"]).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_order_of_rows_and_of_sides_changes_nothing(seed: int) -> None:
    votes = simulate(STRENGTH, 20, seed)
    rng = np.random.default_rng(seed)
    mixed = votes.iloc[rng.permutation(len(votes))].reset_index(drop=True)
    turn = rng.uniform(size=len(mixed)) < 0.5
    mixed.loc[turn, ["arm_a", "arm_b"]] = mixed.loc[turn, ["arm_b", "arm_a"]].to_numpy()
    mixed.loc[turn, "outcome"] = 1 - mixed.loc[turn, "outcome"]
    before, after = (estimates(elo.run(t, anchor="rl_cai", n_resamples=0)) for t in (votes, mixed))
    assert after == pytest.approx(before, abs=1e-4)


# ---------------------------------------------------------------- snapshots and the anchor


def test_snapshots_are_players_of_their_own() -> None:
    steps = {"hh_rlhf": 0.0, "rl_cai@0": 0.2, "rl_cai@100": 0.9, "rl_cai": 1.5}
    votes = simulate(steps, 300)
    for side in "ab":
        parts = votes[f"arm_{side}"].str.split("@")
        votes[f"arm_{side}"], votes[f"step_{side}"] = parts.str[0], parts.str[1].astype("Int64")
    result = elo.run(votes, anchor="rl_cai", n_resamples=100)
    rows = result.summary[result.summary["arm"] == "rl_cai"]
    by_step = {None if pd.isna(s) else int(s): e for s, e in zip(rows["step"], rows["estimate"], strict=True)}
    assert by_step[None] == 0  # the anchor is the final model
    assert by_step[0] < by_step[100] < 0
    early = elo.run(votes, anchor=("rl_cai", 0), n_resamples=100)
    assert early.summary.query("arm == 'rl_cai' and step == 0")["estimate"].item() == 0
    assert early.notes[0] == "Elo is relative to rl_cai at step 0 = 0, from 300 prompts"
    without_final = votes[votes["step_a"].notna() & votes["step_b"].notna()]
    latest = elo.run(without_final, anchor="rl_cai", n_resamples=0)
    assert latest.notes[0].startswith("Elo is relative to rl_cai at step 100 = 0")


# ---------------------------------------------------------------- orders of showing


def test_a_comparison_judged_in_both_orders_counts_once() -> None:
    both = elo.run(in_both_orders([0.9, 0.6, 0.2], [0.7, 0.5, 0.1]), anchor="y", n_resamples=300)
    mean = pd.DataFrame({"prompt": ["p0", "p1", "p2"], "arm_a": "x", "arm_b": "y", "outcome": [0.8, 0.55, 0.15]})
    once = elo.run(mean, anchor="y", n_resamples=300)
    numbers = ["estimate", "low", "high", "n"]
    np.testing.assert_allclose(both.summary[numbers], once.summary[numbers], atol=1e-6)


def test_a_judge_that_only_sees_places_is_caught() -> None:
    result = elo.run(in_both_orders([0.9] * 30, [0.1] * 30), anchor="y", n_resamples=100)
    assert consistency(result) == pytest.approx({"order_consistency": 0, "first_shown_rate": 0.9})
    assert estimates(result)["x"] == pytest.approx(0, abs=1e-6)
    assert any("judge fm gives the same verdict in both orders in 0%" in note for note in result.notes)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), n=st.integers(1, 12))
def test_consistency_is_the_plain_count(data: st.DataObject, n: int) -> None:
    p = st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]), min_size=n, max_size=n)
    ab, ba = data.draw(p), data.draw(p)
    table = elo.judge_consistency(in_both_orders(ab, ba)).set_index("metric")["estimate"]
    same = [(x > 0.5) == (y > 0.5) and (x == 0.5) == (y == 0.5) for x, y in zip(ab, ba, strict=True)]
    assert table["order_consistency"] == pytest.approx(np.mean(same))
    assert table["first_shown_rate"] == pytest.approx(np.mean([(x + 1 - y) / 2 for x, y in zip(ab, ba, strict=True)]))
    swapped = elo.judge_consistency(in_both_orders(ba, ab)).set_index("metric")["estimate"]
    assert swapped["order_consistency"] == pytest.approx(table["order_consistency"])
    assert swapped["first_shown_rate"] == pytest.approx(1 - table["first_shown_rate"])


def test_turned_rows_still_know_what_was_shown_first() -> None:
    rows = in_both_orders([0.9] * 5, [0.1] * 5)
    order = rows["order"].map({"ab": "ba", "ba": "ab"})
    turned = rows.assign(arm_a=rows["arm_b"], arm_b=rows["arm_a"], outcome=1 - rows["outcome"], order=order)
    pd.testing.assert_frame_equal(elo.judge_consistency(turned), elo.judge_consistency(rows))


def test_without_both_orders_consistency_is_not_measured() -> None:
    result = elo.run(simulate(STRENGTH, 30), anchor="hh_rlhf", n_resamples=0)
    assert result.tables["judge"].empty
    assert any("order-swap consistency of the judge: not measured" in note for note in result.notes)


# ---------------------------------------------------------------- ties and awkward graphs


def test_votes_have_ties_and_probabilities_have_none() -> None:
    votes = simulate(STRENGTH, 100, tie=0.4)
    assert any("ties modelled (Davidson" in note for note in elo.run(votes, anchor="rl_cai", n_resamples=0).notes)
    soft = votes.assign(outcome=votes["outcome"].clip(0.1, 0.9))
    assert not any("Davidson" in note for note in elo.run(soft, anchor="rl_cai", n_resamples=0).notes)


def test_an_arm_that_always_wins_is_finite_and_flagged() -> None:
    votes = simulate({"hh_rlhf": 0.0, "sl_cai": 0.3, "rl_cai": 50.0}, 40)
    result = elo.run(votes, anchor="hh_rlhf", n_resamples=200)
    assert np.isfinite(result.summary[["estimate", "low", "high"]]).all().all()
    groups = result.tables["players"].set_index("arm")["group"]
    assert groups["rl_cai"] == 0
    assert groups["hh_rlhf"] == groups["sl_cai"] == 1
    note = next(note for note in result.notes if note.startswith("separated"))
    assert "{rl_cai} > {" in note
    assert "lower bound" in note


def test_a_disconnected_graph_names_its_components() -> None:
    votes = pd.concat([simulate({"a": 0.0, "b": 0.5}, 20), simulate({"c": 0.0, "d": 0.5}, 20)])
    with pytest.raises(UserError, match=r"2 groups never compared with one another: \{a, b\} and \{c, d\}"):
        elo.run(votes, anchor="a")


def test_few_prompts_are_said_to_be_few() -> None:
    result = elo.run(simulate(STRENGTH, 8, seed=3), anchor="hh_rlhf", n_resamples=100)
    assert any(note.startswith("only 8 prompts") for note in result.notes)
    one = elo.run(in_both_orders([0.8], [0.6]), anchor="y", n_resamples=100)
    assert one.summary.set_index("arm").loc["x", ["low", "high"]].tolist() == [-np.inf, np.inf]


def test_notes_of_the_judge_are_passed_on() -> None:
    votes = simulate(STRENGTH, 30)
    votes.attrs["notes"] = ["gpt: 3 of 90 pairs left out"]
    assert elo.run(votes, anchor="hh_rlhf", n_resamples=0).notes[0] == "gpt: 3 of 90 pairs left out"


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="outcome"), "no column outcome"),
        (lambda t: t.head(0), "no rows"),
        (lambda t: t.assign(outcome=[*t["outcome"][:-1], np.nan]), f"outcome: row {3 * 5 - 1} is nan"),
        (lambda t: t.assign(outcome=2.0), "outcome: row 0 is"),
        (lambda t: t.assign(prompt=[None, *t["prompt"][1:]]), "row 0 has no prompt"),
        (lambda t: t.assign(arm_b=[*t["arm_b"][:-1], None]), "row 14 has no arm_b"),
        (lambda t: t.assign(arm_b=t["arm_a"]), "name two different arms"),
        (lambda t: t.assign(order="first"), "row 0 has order 'first'; write ab, ba or nothing"),
        (lambda t: t.assign(step_a="late"), "column step_a is not all Int64"),
    ],
)
def test_bad_tables_are_one_clear_line(change, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        elo.run(change(simulate(STRENGTH, 5)), anchor="hh_rlhf", n_resamples=0)
    assert "\n" not in str(caught.value)


def test_an_unknown_anchor_names_the_arms() -> None:
    with pytest.raises(UserError, match="anchor sl_cai: not among the compared arms; choose one of"):
        elo.run(simulate(STRENGTH, 5), anchor="sl_cai", n_resamples=0)
