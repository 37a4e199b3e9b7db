"""PM scores by arm, step and revision, and their agreement with the paper's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from harness.errors import UserError
from suites import pm_score
from suites.responses import load_chains, load_responses
from suites.result import SUMMARY_COLUMNS


def answers(arms: dict[str, float], prompts: int = 30, samples: int = 2, seed: int = 0) -> pd.DataFrame:
    """Scores with a prompt effect that arms share, and an arm's own mean."""
    rng = np.random.default_rng(seed)
    effect = rng.normal(size=prompts)
    rows = [
        {"prompt": f"p{p}", "response": f"answer {s} of {arm}", "arm": arm, "sample": s, "score_harmless": score}
        for arm, mean in arms.items()
        for p in range(prompts)
        for s in range(samples)
        for score in [mean + effect[p] + rng.normal(0, 0.1)]
    ]
    return pd.DataFrame(rows).assign(step=pd.array([pd.NA] * len(rows), dtype="Int64"))


def chain_table(prompts: int = 30, gain: float = 0.5, seed: int = 0) -> pd.DataFrame:
    """Chains whose score rises by `gain` a revision, and 0.3 more with critiques than without."""
    rng = np.random.default_rng(seed)
    start = rng.normal(0, 3, size=prompts)
    rows = [
        {
            "prompt": f"p{p}",
            "arm": "sl_cai",
            "sample": 0,
            "revision": r,
            "mode": mode,
            "n_principles": n,
            # With one principle the same words come back; with four each prompt has its own.
            "response": f"word{p % n} and word{p % n + 1} were said of prompt {p % n} {r}",
            "score_harmless": start[p] + gain * r + 0.3 * (mode == "critiqued") * (r > 0) + rng.normal(0, 0.05),
            "score_helpful": -start[p] - gain * r,
        }
        for p in range(prompts)
        for mode in ("critiqued", "direct")
        for n in (1, 4)
        for r in range(5)
    ]
    return pd.DataFrame(rows)


def test_summary_by_arm_and_step() -> None:
    final = answers({"a": 0.0, "b": 1.0})
    table = pd.concat([final, final[final["arm"] == "a"].assign(step=8, score_harmless=2.0)], ignore_index=True)
    result = pm_score.run(table)
    assert list(result.summary.columns) == SUMMARY_COLUMNS
    assert set(result.summary["metric"]) == {"pm_score"}
    assert (result.summary["n"] == 30).all()
    rows = result.summary.set_index(["arm", result.summary["step"].fillna(-1)])
    assert rows.loc[("a", 8), "estimate"] == 2
    mean = final.groupby("arm")["score_harmless"].mean()
    assert rows.loc[("b", -1), "estimate"] == pytest.approx(mean["b"])
    assert (rows["low"] <= rows["estimate"]).all()
    assert rows.loc[("b", -1), "low"] < rows.loc[("b", -1), "high"]
    responses = result.tables["responses"]
    assert list(responses.columns) == ["prompt", "response", "arm", "step", "sample", "label", "score"]
    assert responses["label"].isna().all()
    assert any("not measured" in note for note in result.notes)


def test_interval_is_clustered_by_prompt() -> None:
    """Copies of a prompt's answer are no new evidence."""
    once = answers({"a": 0.0}, samples=1)
    copies = pd.concat([once.assign(sample=s) for s in range(5)], ignore_index=True)
    for column in ("estimate", "low", "high"):
        a, b = (pm_score.run(t).summary[column].iloc[0] for t in (once, copies))
        assert a == pytest.approx(b)


def test_scorer_reads_prompts_and_responses() -> None:
    table = answers({"a": 0.0}).drop(columns="score_harmless")
    asked: list[tuple[str, str]] = []

    def scorer(prompts: list[str], responses: list[str]) -> np.ndarray:
        asked.extend(zip(prompts, responses, strict=True))
        return np.arange(len(prompts))

    result = pm_score.run(table, scorer=scorer)
    assert asked == list(zip(table["prompt"], table["response"], strict=True))
    assert result.tables["responses"]["score"].tolist() == list(range(60))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="score_harmless"), "no score column 'score_harmless'"),
        (lambda t: t.drop(columns="arm"), "no column arm"),
        (lambda t: t.iloc[:0], "empty"),
        (lambda t: t.assign(score_harmless=[np.nan if i == 7 else 0 for i in range(60)]), "row 7 is nan"),
        (lambda t: t.assign(score_harmless=[np.inf if i == 3 else 0 for i in range(60)]), "row 3 is inf"),
    ],
)
def test_bad_responses(change, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pm_score.run(change(answers({"a": 0.0})))


def test_scorer_must_give_one_finite_number_each() -> None:
    table = answers({"a": 0.0})
    with pytest.raises(UserError, match="shape"):
        pm_score.run(table, scorer=lambda p, r: np.zeros((len(p), 2)))
    with pytest.raises(UserError, match="row 0 is nan"):
        pm_score.run(table, scorer=lambda p, r: np.full(len(p), np.nan))


# ---------------------------------------------------------------- revisions


def test_revisions_recover_the_gain() -> None:
    chains = chain_table()
    result = pm_score.run(answers({"a": 0.0}), chains=chains)
    table = result.tables["revisions"]
    assert set(table["which"]) == {"harmless", "helpful"}
    assert len(table) == 2 * 2 * 2 * 5
    by = chains[(chains["mode"] == "direct") & (chains["n_principles"] == 4) & (chains["revision"] == 3)]
    row = table.query("mode == 'direct' and n_principles == 4 and revision == 3 and which == 'harmless'").iloc[0]
    assert row["estimate"] == pytest.approx(by["score_harmless"].mean())
    steps = result.tables["revision_steps"]
    direct = steps[(steps["mode"] == "direct") & (steps["which"] == "harmless")]
    single = direct[direct["comparison"] == "step"]
    # The prompts differ by far more than a revision does: only a paired difference can see it.
    assert (single["low"] > 0.4).all()
    assert (single["high"] < 0.6).all()
    overall = steps[steps["comparison"] == "overall"]
    assert (overall["revision_before"] == 0).all()
    assert (overall["revision"] == 4).all()
    assert overall.loc[overall["which"] == "helpful", "estimate"].to_numpy() == pytest.approx(-2.0)
    assert not any("not measured" in note for note in result.notes)


def test_contrasts_of_critiques_and_principles() -> None:
    table = pm_score.run(answers({"a": 0.0}), chains=chain_table()).tables["contrasts"]
    harmless = table[table["which"] == "harmless"]
    critique = harmless[harmless["contrast"] == "critique"]
    assert len(critique) == 8
    assert ((critique["low"] < 0.3) & (critique["high"] > 0.3)).mean() > 0.7
    assert (critique["low"] > 0.2).all()
    principles = harmless[harmless["contrast"] == "principles"]
    assert (principles["n_principles_before"] == 1).all()
    assert principles["estimate"].abs().max() < 0.1


def test_diversity_sees_repetition() -> None:
    table = pm_score.run(answers({"a": 0.0}), chains=chain_table(60)).tables["diversity"]
    value = table[table["revision"] == 1].set_index(["mode", "n_principles", "metric"])["estimate"]
    assert value["direct", 1, "distinct_2"] < value["direct", 4, "distinct_2"]
    assert value["direct", 1, "unique_share"] == 0
    own = chain_table(20).assign(response=[f"text {i}" for i in range(400)])
    unique = pm_score.diversity(own.assign(n_principles=1, mode=own["mode"] + own["n_principles"].astype(str)))[0]
    assert (unique.loc[unique["metric"] == "unique_share", "estimate"] == 1).all()


def test_chains_without_scores() -> None:
    chains = chain_table().drop(columns=["score_harmless", "score_helpful"])
    result = pm_score.run(answers({"a": 0.0}), chains=chains)
    assert "revisions" not in result.tables
    assert any("revisions: PM score not measured" in note for note in result.notes)
    scored = pm_score.run(answers({"a": 0.0}), scorer=lambda p, r: np.arange(len(p)) * 1.0, chains=chains)
    assert set(scored.tables["revisions"]["which"]) == {"harmless"}


def test_bad_chains() -> None:
    chains = chain_table()
    broken = chains.assign(score_helpful=chains["score_helpful"].mask(chains.index == 11))
    with pytest.raises(UserError, match="score_helpful: row 11 is nan"):
        pm_score.run(answers({"a": 0.0}), chains=broken)
    with pytest.raises(UserError, match="repeats a revision"):
        pm_score.run(answers({"a": 0.0}), chains=pd.concat([chains, chains.iloc[:1]]))
    with pytest.raises(UserError, match="no column revision"):
        pm_score.run(answers({"a": 0.0}), chains=chains.drop(columns="revision"))


def test_unfinished_chains_are_paired_with_themselves() -> None:
    chains = chain_table().query("mode == 'direct' and n_principles == 1")
    # The ten best prompts never reached the last revision: unpaired means would fall.
    best = chains[chains["revision"] == 0].nlargest(10, "score_harmless")["prompt"]
    cut = chains[~(chains["prompt"].isin(best) & (chains["revision"] == 4))]
    last = pm_score.run(answers({"a": 0.0}), chains=cut).tables["revision_steps"].query("which == 'harmless'").iloc[-1]
    assert last["n"] == 20
    assert last["estimate"] == pytest.approx(2.0, abs=0.1)


# ---------------------------------------------------------------- the paper


def test_the_papers_samples_and_chains(outside_data: Path) -> None:
    sampled = load_responses([outside_data / "paper" / "samples"])
    prompts = sampled["prompt"].nunique()
    sampled = sampled[sampled["arm"] != "sl_cai"]
    length = lambda p, r: np.array([float(len(text)) for text in r])  # noqa: E731  a scorer of one line
    result = pm_score.run(sampled, column="paper_pm_score")
    assert (result.summary["n"] == prompts).all()
    mean = result.summary.set_index("arm")["estimate"]
    assert mean["rl_cai"] > mean["helpful_only"]
    chained = pm_score.run(sampled, scorer=length, chains=load_chains([outside_data / "paper" / "samples"]))
    assert (chained.tables["revisions"]["n"] == prompts).all()
    assert chained.tables["revisions"]["revision"].tolist() == [0, 1, 2, 3, 4]


def test_rank_correlation_by_arm_and_within_prompt(outside_data: Path) -> None:
    table = load_responses([outside_data / "paper" / "samples"])
    table = table[table["arm"] != "sl_cai"]
    published = table["paper_pm_score"]
    same = pm_score.rank_correlation(published * 3 - 1, published, table["arm"], table["prompt"])
    assert same["estimate"].to_numpy() == pytest.approx(1.0)
    assert same["scope"].value_counts().to_dict() == {"arm": 4, "within_prompt": 5, "all": 1}
    assert (same["n"] + same["skipped"] == table["prompt"].nunique()).all()
    # Noise that is the same for all answers to a prompt hurts across prompts and never within one.
    rng = np.random.default_rng(0)
    noise = table["prompt"].map({p: 50 * rng.normal() for p in table["prompt"].unique()})
    noisy = pm_score.rank_correlation(published + noise, published, table["arm"], table["prompt"])
    by = noisy.groupby("scope")["estimate"].mean()
    assert by["within_prompt"] == pytest.approx(1.0)
    assert by["arm"] < 0.8


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 6))
def test_within_prompt_is_the_mean_of_scipys(seed: int, answers_each: int) -> None:
    rng = np.random.default_rng(seed)
    ours, published = rng.normal(size=(2, 4, answers_each))
    prompts = np.repeat(list("abcd"), answers_each)
    table = pm_score.rank_correlation(ours.ravel(), published.ravel(), ["x"] * prompts.size, prompts, seed)
    expected = np.mean([reference.spearmanr(a, b).statistic for a, b in zip(ours, published, strict=True)])
    within = table[(table["scope"] == "within_prompt") & (table["arm"] == "x")].iloc[0]
    assert within["estimate"] == pytest.approx(expected)
    overall = table.loc[table["scope"] == "all", "estimate"].iloc[0]
    assert overall == pytest.approx(reference.spearmanr(ours.ravel(), published.ravel()).statistic)


def test_rank_correlation_refuses_what_has_none() -> None:
    with pytest.raises(UserError, match="constant"):
        pm_score.rank_correlation([1, 1, 1], [1, 2, 3], ["a"] * 3, ["p", "p", "q"])
    with pytest.raises(UserError, match="row 1 is nan"):
        pm_score.rank_correlation([1, 2, 3], [1, np.nan, 3], ["a"] * 3, ["p", "p", "q"])
    few = pm_score.rank_correlation([1, 2, 3, 4], [1, 2, 4, 3], ["a"] * 4, ["p", "p", "q", "q"])
    assert "within_prompt" not in set(few["scope"])
