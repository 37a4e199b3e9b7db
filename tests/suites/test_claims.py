"""Each claim comes out right on simulated runs of both sides, and seldom decisive where nothing is there to find."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from harness.stats import Bootstrap, difference_bootstrap, holm, resample_counts, tost
from suites import claims, goodharting
from suites.claims_contrasts import Contrast, Part, combination
from suites.claims_measures import MEASURES, parameters
from suites.claims_tables import Tables
from suites.evasiveness_model import classify
from suites.responses import load_responses
from tests.suites.claims_runs import BUILDERS, PROMPTS, Frames, trusted

CLAIMS = {claim.id: claim for claim in claims.load_claims()}
ONE_BOUND = (2, 4, 6, 8, 12, 14, 15, 16)  # claims of a single difference


def write(folder: Path, frames: Frames) -> Path:
    """A results folder; its judge has passed its tests unless `frames` say otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in ({"judges": trusted()} | frames).items():
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(path)
    return folder


def row(table: pd.DataFrame, number: int) -> pd.Series:
    return table.set_index("id").loc[number]


# ---------------------------------------------------------------- both sides


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("number", sorted(BUILDERS))
def test_a_run_of_either_side_gets_its_verdict(tmp_path: Path, number: int, side: int) -> None:
    folder = write(tmp_path / "results", BUILDERS[number](np.random.default_rng(number), side))
    judged = claims.judge(folder)
    assert list(judged.columns) == claims.COLUMNS
    own = row(judged, number)
    assert own["verdict"] == (claims.REPRODUCED if side > 0 else claims.CONTRADICTED)
    assert own["low"] <= own["effect"] <= own["high"]
    assert own["mde"] > 0
    assert own["p"] <= own["p_holm"] <= 0.05
    assert own["n"] >= CLAIMS[number].min_n
    unread = judged[judged["verdict"] == claims.NOT_MEASURED]
    assert len(unread) >= 13
    assert unread["note"].str.len().gt(20).all()
    assert unread[["effect", "p", "p_holm"]].isna().all(axis=None)


@pytest.mark.parametrize("number", sorted(set(BUILDERS) - {5, 6, 7}))
def test_too_few_prompts_are_underpowered(tmp_path: Path, number: int) -> None:
    frames = BUILDERS[number](np.random.default_rng(number), 1)
    kept = {"prompt": PROMPTS[:15], "question": range(30)}
    few = {
        name: next((frame[frame[key].isin(values)] for key, values in kept.items() if key in frame), frame)
        for name, frame in frames.items()
    }
    own = row(claims.judge(write(tmp_path / "results", few)), number)
    assert own["verdict"] == claims.UNDERPOWERED
    assert "that a verdict needs" in own["note"]
    assert np.isnan(own["p_holm"])


# ---------------------------------------------------------------- the null


def contrasts_of(number: int) -> list[Contrast]:
    frames = BUILDERS[number](np.random.default_rng(number), 1)
    tables = Tables(Path())
    tables._read = frames
    return MEASURES[CLAIMS[number].measure](tables)


def null_runs(number: int, where: str, n: int, runs: int, seed: int) -> list[list[Contrast]]:
    """Contrasts of `runs` studies of n prompts. The true values lie on the claim's bounds: all of them ("all"), where a
    false contradiction is likeliest, or the last one with the others safely inside ("one"), where a false
    reproduction is. Prompt values are differences of two rates over four samples; resamples are shared by the studies.
    """
    rng = np.random.default_rng([seed, number])
    shapes = contrasts_of(number)
    counts = np.concatenate(list(resample_counts(n, 999, seed)))
    studies: list[list[Contrast]] = [[] for _ in range(runs)]
    for place, shape in enumerate(shapes):
        values = (rng.binomial(4, 0.3, (n, runs)) - rng.binomial(4, 0.3, (n, runs))) / 4
        # Equivalence margins are far apart in units of this noise, as they are for a study with any power.
        values *= 0.2 if np.isfinite(CLAIMS[number].bounds(shape)).all() else 1
        above, below = CLAIMS[number].bounds(shape)
        at = above if np.isfinite(above) else below
        if where == "one" and place < len(shapes) - 1:
            at = 0.0 if np.isfinite(above) and np.isfinite(below) else at + 5 * (1 if np.isfinite(above) else -1)
        draws, means = counts @ values / n, values.mean(axis=0)
        for run in range(runs):
            studies[run].append(replace(shape, value=Bootstrap(means[run] + at, draws[:, run] + at, n)))
    return studies


def false_verdicts(number: int, where: str, runs: int) -> float:
    claim, false = CLAIMS[number], 0
    for contrasts in null_runs(number, where, claim.min_n, runs, seed=1):
        evidence = claims.weigh(claim, contrasts)
        false += claims.verdict(evidence, evidence.p, claim.min_n) != claims.UNDERPOWERED
    return false / runs


@pytest.mark.parametrize("number", sorted(CLAIMS))
def test_false_verdicts_under_the_null_stay_under_5_percent(number: int) -> None:
    if number not in ONE_BOUND:
        assert max(false_verdicts(number, where, 250) for where in ("all", "one")) < 0.05
    else:
        assert false_verdicts(number, "all", 600) < 0.05


def test_holm_is_taken_over_the_measured_claims(tmp_path: Path) -> None:
    frames: Frames = {}
    for number in (2, 8, 10, 11, 12, 15):
        frames |= BUILDERS[number](np.random.default_rng(number), 1)
    judged = claims.judge(write(tmp_path / "results", frames))
    tested = judged[judged["p_holm"].notna()]
    assert {2, 8, 10, 11, 12, 15} <= set(tested["id"])
    np.testing.assert_allclose(tested["p_holm"], holm(tested["p"]))
    assert set(tested.loc[tested["p_holm"] > 0.05, "verdict"]) <= {claims.UNDERPOWERED}


def test_a_hopeful_p_does_not_survive_the_correction() -> None:
    evidence = claims.weigh(
        CLAIMS[2], [Contrast("d", Bootstrap(-0.2, np.random.default_rng(0).normal(-0.2, 0.08, 999), 40))]
    )
    assert evidence.p < 0.05
    assert claims.verdict(evidence, evidence.p, 20) == claims.REPRODUCED
    assert claims.verdict(evidence, holm([evidence.p] * 16)[0], 20) == claims.UNDERPOWERED
    assert claims.verdict(evidence, evidence.p, 41) == claims.UNDERPOWERED


# ---------------------------------------------------------------- the statistics


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000))
def test_a_combination_of_two_is_the_paired_difference(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = pd.Series(rng.normal(size=2 * n)), pd.Series(rng.normal(size=n))
    of_a, of_b = pd.Series(np.repeat(np.arange(n), 2)), pd.Series(np.arange(n))
    ours = combination([Part(1, a, of_a), Part(-1, b, of_b)], seed)
    theirs = difference_bootstrap(a, of_a, b, of_b, seed)
    assert ours.estimate == pytest.approx(theirs.estimate)
    np.testing.assert_allclose(ours.draws, theirs.draws, atol=1e-12)


def test_a_unit_makes_a_difference_in_standard_deviations() -> None:
    rng = np.random.default_rng(0)
    first, prompts = pd.Series(rng.normal(3, 2, 60)), pd.Series(range(60))
    later = first + rng.normal(1, 1, 60)
    plain, scaled = (
        combination([Part(1, f * later, prompts), Part(-1, f * first, prompts)], 0, unit=Part(1, f * first, prompts))
        for f in (1, 10)
    )
    assert plain.estimate == pytest.approx((later - first).mean() / first.std(ddof=0))
    np.testing.assert_allclose(plain.draws, scaled.draws)
    indices = np.concatenate(list(resample_counts(60, 2000, 0)))[7]
    drawn = np.repeat(np.arange(60), indices)
    expected = (later - first)[drawn].mean() / first[drawn].std(ddof=0)
    assert plain.draws[7] == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(st.floats(-0.4, 0.4), st.floats(0.02, 0.2), st.integers(0, 1000))
def test_equivalence_is_tost(estimate: float, se: float, seed: int) -> None:
    """With many prompts and draws of a normal shape, p is that of two one-sided tests, doubled and raised."""
    value = Bootstrap(estimate, np.random.default_rng(seed).normal(estimate, se, 4000), 4000)
    claim = CLAIMS[3]
    evidence = claims.weigh(claim, [Contrast("d", value)])
    reference = tost(value, 0.2, alpha=0.025)
    if evidence.points == claims.REPRODUCED:
        assert evidence.p == pytest.approx(min(1, 2 * claims.ALLOWANCE * reference.p), abs=0.04)
    if evidence.p < 0.03 or evidence.p > 0.08:  # off the edge the decisions agree
        holds = claims.verdict(evidence, evidence.p, 20) == claims.REPRODUCED
        assert holds == reference.holds


def test_a_rate_never_seen_is_not_known_to_be_nought() -> None:
    """No evasion in 20 prompts leaves room for the 5 points of growth that claim 9 forbids."""
    none = pd.Series(np.zeros(20))
    value = combination([Part(1, none, pd.Series(range(20))), Part(-1, none, pd.Series(range(20)))], seed=0)
    assert value.interval().low < -0.05
    assert value.interval().high > 0.05
    many = pd.Series(np.zeros(400))
    narrow = combination([Part(1, many, pd.Series(range(400))), Part(-1, many, pd.Series(range(400)))], seed=0)
    assert narrow.interval().high < 0.02


def test_n_is_the_fewest_prompts_of_a_side() -> None:
    value = combination(
        [
            Part(1, pd.Series([1.0, 2, 3, 4]), pd.Series(list("abcd"))),
            Part(-1, pd.Series([1.0, 2]), pd.Series(["e", "a"])),
        ],
        seed=0,
    )
    assert value.n == 2


@pytest.mark.parametrize(
    ("name", "size"),
    [("SmolLM2-135M-Instruct", 1.35e8), ("org/Qwen2.5-1.5B", 1.5e9), ("Llama-3-8B-v0.2", 8e9), ("gpt", float("nan"))],
)
def test_parameters_are_read_from_names(name: str, size: float) -> None:
    assert parameters(name) == pytest.approx(size, nan_ok=True)


# ---------------------------------------------------------------- bad input


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results folder"):
        claims.judge(tmp_path / "nowhere")
    frames = BUILDERS[2](np.random.default_rng(0), 1)
    frames["chains"].loc[3, "score_helpful"] = np.nan
    with pytest.raises(UserError, match="prompt 3"):
        claims.judge(write(tmp_path / "results", frames))
    (tmp_path / "results" / "chains.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="not a readable Parquet"):
        claims.judge(tmp_path / "results")


def test_a_table_without_a_column_is_not_measured(tmp_path: Path) -> None:
    frames = BUILDERS[8](np.random.default_rng(0), 1)
    frames["evasiveness/responses"] = frames["evasiveness/responses"].drop(columns="label")
    own = row(claims.judge(write(tmp_path / "results", frames)), 8)
    assert own["verdict"] == claims.NOT_MEASURED
    assert "no column label" in own["note"]


def test_the_stand_in_regressor_judges_no_claim(tmp_path: Path) -> None:
    frames = {name: frame.assign(stand_in=True) for name, frame in BUILDERS[10](np.random.default_rng(0), 1).items()}
    own = row(claims.judge(write(tmp_path / "results", frames)), 10)
    assert own["verdict"] == claims.NOT_MEASURED
    assert "stand-in" in own["note"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test": "guess"}, "unknown test"),
        ({"wish": 1}, "unknown field wish"),
        ({"measure": None}, "unknown test or measure"),
    ],
)
def test_a_broken_claims_file_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    import yaml

    rows = yaml.safe_load(claims.PATH.read_text(encoding="utf-8"))
    rows[0] |= change
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(rows), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        claims.load_claims(path)


def test_the_claims_are_sixteen_and_margins_have_reasons() -> None:
    assert sorted(CLAIMS) == list(range(1, 17))
    assert all((claim.margin is None) == (claim.margin_reason is None) for claim in CLAIMS.values())


# ---------------------------------------------------------------- the paper's own samples


def test_the_papers_samples_show_boilerplate_but_not_that_rl_cai_was_over_trained(
    reference_data: Path, tmp_path: Path
) -> None:
    goodharting.run(load_responses([reference_data / "paper" / "samples"])).save(tmp_path / "results" / "goodharting")
    own = row(claims.judge(tmp_path / "results"), 11)
    assert own["verdict"] == claims.NOT_MEASURED
    assert own["note"].startswith("whether rl_cai is over-trained: ")
    assert "boilerplate rate, rl_cai - hh_rlhf: 0.468 [0.3" in own["note"]


def test_the_papers_samples_show_less_evasion_but_not_that_it_is_harmless(reference_data: Path, tmp_path: Path) -> None:
    """Two of the 17 answers a prompt, labelled by the suite's classifier: enough, and quick."""
    table = load_responses([reference_data / "paper" / "samples"])
    table = table[table["arm"].isin(["rl_cai", "hh_rlhf"]) & (table["sample"] < 2)]
    labels = classify(table["prompt"].tolist(), table["response"].tolist()).label
    frames = {"evasiveness/responses": table.assign(label=labels)}
    own = row(claims.judge(write(tmp_path / "results", frames)), 8)
    assert own["verdict"] == claims.NOT_MEASURED
    assert own["note"].startswith("whether rl_cai is more harmful: ")
    low, high = map(float, re.findall(r"rl_cai - hh_rlhf: -[\d.]+ \[(-[\d.]+), (-[\d.]+)\]", own["note"])[0])
    assert low < high < 0


def test_the_papers_facts_have_sources_and_add_up() -> None:
    """The counts of prompts are the sums of their parts, so that a slip of the pen shows."""
    import yaml

    path = Path(__file__).parents[2] / "reports" / "paper.yaml"
    facts = {fact["id"]: fact for fact in yaml.safe_load(path.read_text(encoding="utf-8"))["facts"]}
    assert all(fact["source"].startswith(("Figure", "section")) and fact["what"] for fact in facts.values())
    value = {name: fact["value"] for name, fact in facts.items()}
    assert value["red_team_prompts_human"] + value["red_team_prompts_model"] == value["red_team_prompts"]
    assert value["red_team_prompts"] * value["revisions_per_prompt"] == value["revisions"]
    assert value["harmlessness_comparisons"] == value["red_team_prompts"]
