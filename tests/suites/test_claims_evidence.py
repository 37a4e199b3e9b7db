"""What a claim needs beside its own difference: a judge that passed, a difference that could have shown, a premise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from suites import claims
from tests.suites.claims_runs import BUILDERS, PROMPTS, Frames, N, answers, elo_tables, questions, together, trusted
from tests.suites.test_claims import row, write

JUDGED = sorted(claim.id for claim in claims.load_claims() if claim.judged_by)


def judged(folder: Path, frames: Frames, number: int) -> pd.Series:
    return row(claims.judge(write(folder / "results", frames)), number)


# ---------------------------------------------------------------- judges


def test_elo_and_pm_scores_need_a_judge_that_has_earned_it() -> None:
    assert JUDGED == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]


@pytest.mark.parametrize("number", JUDGED)
@pytest.mark.parametrize("metric", ["human_accuracy", "moved"])
def test_a_judge_that_fails_judges_nothing(tmp_path: Path, number: int, metric: str) -> None:
    tested = trusted()
    tested.loc[tested["metric"] == metric, ["estimate", "low", "high", "passed"]] = [0.53, 0.44, 0.61, False]
    own = judged(tmp_path, BUILDERS[number](np.random.default_rng(number), 1) | {"judges": tested}, number)
    assert own["verdict"] == claims.CANNOT_TELL
    assert own["note"].startswith("the judge cannot tell: simulated, h")
    assert f"{metric} 0.53 [0.44, 0.61]" in own["note"]
    assert own[["effect", "p", "p_holm", "mde"]].isna().all()


def test_a_judge_that_nobody_tested_judges_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "results", BUILDERS[5](np.random.default_rng(0), 1))
    (folder / "judges.parquet").unlink()
    own = row(claims.judge(folder), 5)
    assert own["verdict"] == claims.CANNOT_TELL
    assert "nobody has tested the judge" in own["note"]


def test_a_judge_of_another_kind_of_prompt_is_not_asked(tmp_path: Path) -> None:
    tested = trusted()
    tested.loc[tested["kind"] == "harmless", "passed"] = False
    frames = BUILDERS[6](np.random.default_rng(6), 1) | {"judges": tested}
    assert judged(tmp_path, frames, 6)["verdict"] == claims.REPRODUCED


@pytest.mark.parametrize("number", JUDGED)
def test_claims_that_rest_on_the_papers_instruction_refuse_a_judge_that_rewards_evasion(
    tmp_path: Path, number: int
) -> None:
    tested = trusted()
    tested.loc[tested["metric"] == "non_evasive", "passed"] = False
    own = judged(tmp_path, BUILDERS[number](np.random.default_rng(number), 1) | {"judges": tested}, number)
    assert own["verdict"] == (claims.CANNOT_TELL if number in (5, 7, 8, 9) else claims.REPRODUCED)


# ---------------------------------------------------------------- could it have been seen?


def test_revisions_that_move_nothing_do_not_show_that_their_number_or_critiques_do_not_matter(tmp_path: Path) -> None:
    for number in (3, 4):
        frames = BUILDERS[number](np.random.default_rng(0), 1)
        chains = frames["chains"]
        own = chains[chains["revision"] == 0].drop_duplicates("prompt").set_index("prompt")["score_harmless"]
        noise = np.random.default_rng(1).normal(0, 0.02, len(chains))
        frames["chains"] = chains.assign(score_harmless=chains["prompt"].map(own) + noise)
        found = judged(tmp_path / str(number), frames, number)
        assert found["verdict"] == claims.UNDERPOWERED
        assert "not shown, and needed for a verdict: last revision - first answer" in found["note"]
        assert found["low"] > -0.2  # the difference itself lies within the margin
        assert found["high"] < 0.2


def test_helpfulness_is_kept_only_where_a_loss_would_have_shown(tmp_path: Path) -> None:
    alike = {"hh_rlhf": 0.0, "rl_cai": 0.6, "pretrained": 0.0}
    found = judged(tmp_path, elo_tables(np.random.default_rng(0), helpfulness=alike), 6)
    assert found["verdict"] == claims.UNDERPOWERED
    assert "not shown, and needed for a verdict: hh_rlhf - pretrained" in found["note"]
    assert found["low"] > -35


def test_a_loss_is_its_own_evidence(tmp_path: Path) -> None:
    worse = {"hh_rlhf": 0.0, "rl_cai": -1.2, "pretrained": 0.0}
    assert judged(tmp_path, elo_tables(np.random.default_rng(0), helpfulness=worse), 6)["verdict"] == (
        claims.CONTRADICTED
    )


def test_complying_with_everything_is_not_less_evasion(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rates: dict[tuple[str, int | None], float] = {("hh_rlhf", None): 0.6, ("rl_cai", None): 0.0}
    frames = {"evasiveness/responses": answers(rng, rates, "evades", "complies")}
    frames |= elo_tables(rng, harmlessness={"helpful_only": -1.5, "hh_rlhf": 0.0, "rl_cai": -1.5})
    found = judged(tmp_path, frames, 8)
    assert found["verdict"] == claims.CONTRADICTED
    assert "effect is that of harmlessness Elo, rl_cai - hh_rlhf" in found["note"]


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(("column", "slope"), [("proxy", 0.0), ("gold", 0.1)])
def test_without_over_training_boilerplate_says_nothing(tmp_path: Path, side: int, column: str, slope: float) -> None:
    """The proxy does not rise, or the gold score rises with it."""
    frames = BUILDERS[11](np.random.default_rng(0), side)
    along = frames["goodharting/along_rl"]
    noise = np.random.default_rng(1).normal(0, 0.3, len(along))
    frames["goodharting/along_rl"] = along.assign(**{column: slope * along["step"] + noise})
    found = judged(tmp_path, frames, 11)
    assert found["verdict"] == claims.UNDERPOWERED
    assert f"not shown, and needed for a verdict: {column} score, late - early" in found["note"]


@pytest.mark.parametrize("accuracy", [0.5, 0.75])
def test_a_feedback_model_at_chance_is_not_well_calibrated(tmp_path: Path, accuracy: float) -> None:
    rng = np.random.default_rng(0)
    frames = together(
        questions(rng, accuracy, accuracy, "plain", n=8 * N), questions(rng, accuracy, 0.97, "cot", n=8 * N)
    )
    found = judged(tmp_path, frames, 13)
    assert found["verdict"] == (claims.UNDERPOWERED if accuracy == 0.5 else claims.REPRODUCED)
    assert ("needed for a verdict: plain, accuracy - chance" in found["note"]) == (accuracy == 0.5)


def test_over_and_under_confidence_do_not_cancel(tmp_path: Path) -> None:
    """Half of the answers claim 0.95 and are right in 0.75, half claim 0.55 and are right in 0.75."""
    rng = np.random.default_rng(0)
    halves = [questions(rng, 0.75, sure, "plain", n=4 * N)["hhh/questions"] for sure in (0.95, 0.55)]
    plain = pd.concat(halves, ignore_index=True).assign(question=np.arange(8 * N))
    found = judged(tmp_path, together({"hhh/questions": plain}, questions(rng, 0.75, 0.97, "cot")), 13)
    assert found["verdict"] == claims.CONTRADICTED
    assert "effect is that of plain, squared error" in found["note"]


def test_one_single_principle_is_not_all_of_them(tmp_path: Path) -> None:
    frames = BUILDERS[16](np.random.default_rng(0), 1)
    pairs = frames["pm_pairs"]
    few = {"pm_pairs": pairs[~pairs["pm"].str.endswith("_2")]}
    found = judged(tmp_path, few, 16)
    assert found["verdict"] == claims.NOT_MEASURED
    assert "2 of the 3 variants '.one_principle'" in found["note"]


def test_single_principles_are_averaged(tmp_path: Path) -> None:
    """One bad principle among good ones is not the mean of them."""
    rng = np.random.default_rng(0)
    accuracy = {"pm.rl_cai": 0.8, **{f"pm.rl_cai.one_principle_{i}": a for i, a in enumerate((0.2, 0.8, 0.8, 0.8))}}
    rows = [
        pd.DataFrame({"pm": pm, "prompt": PROMPTS, "correct": (rng.random(N) < a).astype(float)})
        for pm, a in accuracy.items()
    ]
    found = judged(tmp_path, {"pm_pairs": pd.concat(rows, ignore_index=True)}, 16)
    means = pd.concat(rows).groupby("pm")["correct"].mean()
    assert found["effect"] == pytest.approx(means["pm.rl_cai"] - means.drop("pm.rl_cai").mean())


def test_a_decline_is_late_and_not_the_rise_before_it(tmp_path: Path) -> None:
    """An arm that rises to the end has not declined, and one that falls from its peak has, wherever RL began."""
    rng = np.random.default_rng(0)
    rates: dict[tuple[str, int | None], float] = {("pretrained", None): 0.1}
    rates |= {("hh_rlhf", step): 0.5 for step in (1, 2, 3, None)}
    for fall, verdict in ((1.2, claims.REPRODUCED), (-1.2, claims.CONTRADICTED)):
        strengths = {"pretrained": 0.0, "hh_rlhf@1": 1.0, "hh_rlhf@2": 2.5, "hh_rlhf@3": 2.5, "hh_rlhf": 2.5 - fall}
        strengths |= {"sl_cai": 1.0, "rl_cai@1": 1.5, "rl_cai@2": 2.0, "rl_cai@3": 2.0, "rl_cai": 2.6}
        frames = {"evasiveness/responses": answers(rng, rates, "evades", "complies")}
        frames |= elo_tables(rng, harmlessness=strengths, helpfulness=strengths)
        assert judged(tmp_path / verdict, frames, 9)["verdict"] == verdict


# ---------------------------------------------------------------- seeds


def by_seed(folder: Path, number: int, sides: tuple[int, ...]) -> list[Path]:
    """A run's results for each of `sides`: 1 as the paper says, -1 the opposite."""
    return [
        write(folder / f"seed-{seed}", BUILDERS[number](np.random.default_rng(seed), side))
        for seed, side in enumerate(sides)
    ]


def test_one_run_is_about_its_checkpoints_and_three_are_about_the_method(tmp_path: Path) -> None:
    for number, sides, scope in ((15, (1,), claims.CHECKPOINTS), (15, (1, 1), claims.CHECKPOINTS),
                                 (15, (1, 1, 1), claims.METHOD), (12, (1, 1, 1), claims.CHECKPOINTS)):  # fmt: skip
        found = row(claims.judge(by_seed(tmp_path / f"{number}-{len(sides)}", number, sides)), number)
        assert found["scope"] == scope
        if len(sides) != 2:
            assert found["verdict"] == claims.REPRODUCED


def test_checkpoints_that_contradict_each_other_show_nothing_of_the_method(tmp_path: Path) -> None:
    """Each run is decisive by itself, in its own direction."""
    runs = by_seed(tmp_path, 15, (1, -1, 1))
    assert [row(claims.judge(run), 15)["verdict"] for run in runs] == [
        claims.REPRODUCED,
        claims.CONTRADICTED,
        claims.REPRODUCED,
    ]
    found = row(claims.judge(runs), 15)
    assert found["verdict"] == claims.UNDERPOWERED
    assert found["low"] < 0 < found["high"]


def test_a_seed_whose_judge_failed_spoils_the_study(tmp_path: Path) -> None:
    runs = by_seed(tmp_path, 6, (1, 1, 1))
    trusted().assign(passed=False).to_parquet(runs[1] / "judges.parquet")
    assert row(claims.judge(runs), 6)["verdict"] == claims.CANNOT_TELL


def test_runs_of_other_arms_are_no_study(tmp_path: Path) -> None:
    runs = by_seed(tmp_path, 11, (1, 1))
    rows = pd.read_parquet(runs[1] / "goodharting" / "responses.parquet")
    rows[rows["arm"] != "helpful_only"].to_parquet(runs[1] / "goodharting" / "responses.parquet")
    found = row(claims.judge(runs), 11)
    assert found["verdict"] == claims.NOT_MEASURED
    assert "do not measure the same arms" in found["note"]
