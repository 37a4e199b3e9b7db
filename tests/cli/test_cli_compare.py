"""`cai compare` on the paper's own samples and on a run: exit codes, sampling under the baseline's settings, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from harness import cli
from suites import boilerplate, evasiveness_model, gate
from suites.responses import load_responses
from suites.result import SuiteResult, summary_frame

KEPT = 6  # of the paper's 17 answers to each prompt: sentence embeddings are slow
Cai = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def samples(outside_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's sample files with fewer answers to each prompt, or ours."""
    folder = tmp_path_factory.mktemp("samples")
    for name in ("HRLHF", "HHRLHF", "RLMADISON"):
        for file in (outside_data / "paper" / "samples").glob(f"*_{name}.jsonl"):
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            cut = [row | {"sampled_answers": row["sampled_answers"][:KEPT]} for row in rows]
            (folder / file.name).write_text("\n".join(map(json.dumps, cut)), encoding="utf-8")
    return folder


def verdicts(out: Path) -> dict[str, str]:
    return dict(pd.read_parquet(out / "compare.parquet")[["metric", "verdict"]].itertuples(index=False))


# ---------------------------------------------------------------- the paper's samples


def test_helpful_only_against_rl_cai_is_a_regression_of_harmlessness(cai: Cai, samples: Path, tmp_path: Path) -> None:
    code, out, errors = cai("compare", f"{samples}:rl_cai", f"{samples}:helpful_only", "--out", tmp_path)
    assert code == 1, errors
    assert verdicts(tmp_path)["pm_score"] == "worse"
    assert "pm_score is worse" in out
    assert f"read {tmp_path / 'summary.md'}" in out
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == ["pm_score"]
    assert (suite.get("failures"), suite.get("errors")) == ("1", "0")
    text = (tmp_path / "summary.md").read_text()
    assert "**Regression.**" in text
    assert "| pm_score | worse |" in text
    assert "the paper's own PM scores" in text


def test_hh_rlhf_against_rl_cai_is_a_regression_of_evasiveness(cai: Cai, samples: Path, tmp_path: Path) -> None:
    old, new = (f"{samples}/*_{name}.jsonl" for name in ("RLMADISON", "HHRLHF"))
    assert cai("compare", f"{samples}:rl_cai", f"{samples}:hh_rlhf", "--out", tmp_path)[0] == 1
    assert verdicts(tmp_path)["evasive_rate"] == "worse"
    code, _, _ = cai("compare", old, new, "--judge", "column:paper_pm_score", "--out", tmp_path)
    assert code == 1
    assert verdicts(tmp_path)["evasive_rate"] == "worse"


def test_an_arm_against_itself_is_all_clear(cai: Cai, samples: Path, tmp_path: Path) -> None:
    code, out, _ = cai("compare", f"{samples}:rl_cai", f"{samples}:rl_cai", "--out", tmp_path)
    assert code == 0
    assert "all clear (exit code 0)" in out
    assert set(verdicts(tmp_path).values()) == {"equivalent", "not measured"}


def test_without_a_judge_it_says_that_harmlessness_was_not_judged(cai: Cai, samples: Path, tmp_path: Path) -> None:
    table = load_responses([samples])
    table = table[table["arm"] == "rl_cai"][["prompt", "response", "sample"]]
    for name, half in (("old", table[table["sample"] < 3]), ("new", table[table["sample"] >= 3])):
        half.to_json(tmp_path / f"{name}.jsonl", orient="records", lines=True)
    code, out, _ = cai("compare", tmp_path / "old.jsonl", tmp_path / "new.jsonl", "--out", tmp_path / "out")
    assert code == 0
    assert "harmlessness was not judged: add --judge" in out


@pytest.mark.parametrize("outside_data", [pytest.param("reference", marks=pytest.mark.reference)], indirect=True)
def test_an_equal_candidate_passes_95_times_in_100(samples: Path) -> None:
    """Halves of one arm's answers to each prompt, drawn anew 100 times, boilerplate mined anew in each.

    Of the paper's arms hh_rlhf varies most in what is required; docs/log.md has all four.
    """
    table = load_responses([samples])
    table = table[table["arm"] == "hh_rlhf"].reset_index(drop=True)
    labels = evasiveness_model.classify(table["prompt"].tolist(), table["response"].tolist())
    table = table.assign(label=labels.label, score=table["paper_pm_score"])
    passed = 0
    for seed in range(100):
        order = table.assign(u=np.random.default_rng(seed).random(len(table))).groupby("prompt")["u"].rank()
        halves = [table[order <= KEPT // 2], table[order > KEPT // 2]]
        mined = [boilerplate.mine(h["prompt"].tolist(), h["response"].tolist(), listed=0).held for h in halves]
        named = [half.assign(arm=name) for half, name in zip(halves, ("baseline", "candidate"), strict=True)]
        both = pd.concat(named, ignore_index=True)
        held = both.assign(label=np.where(np.concatenate(mined), "boilerplate", "none"))
        results = {
            name: SuiteResult(name, summary_frame(name, []), {"responses": rows})
            for name, rows in (("evasiveness", both), ("pm_score", both), ("goodharting", held))
        }
        passed += gate.exit_code(gate.judge(results, gate.load(None), seed=seed)) == 0
    assert passed >= 95


# ---------------------------------------------------------------- runs and models


def test_an_arm_of_a_run_is_judged_by_the_runs_gold_pms(cai: Cai, tiny_run: Path, tmp_path: Path) -> None:
    code, out, errors = cai("compare", f"{tiny_run}:rl_cai", f"{tiny_run}:hh_rlhf", "--out", tmp_path)
    assert code == 2, errors  # six prompts are too few
    found = verdicts(tmp_path)
    assert found["over_refusal_rate"] == "cannot tell"
    assert {found[name] for name in ("pm_score", "pm_score_helpful")} == {"judge cannot tell"}  # a random gold PM
    assert "pm_score: the judge cannot tell: gold PM, harmless prompts: human_accuracy is" in out
    assert "gold PM" in out
    assert "n = 6 prompts; about" in out
    scored = pd.read_parquet(tiny_run / "results" / "responses.parquet")
    expected = scored[scored["step"].isna() & (scored["arm"] == "hh_rlhf")]["score_harmless"].mean()
    table = pd.read_parquet(tmp_path / "compare.parquet").set_index("metric")
    assert table.loc["pm_score", "candidate"] == pytest.approx(expected)


def test_a_model_is_sampled_as_the_baseline_was(cai: Cai, tiny_run: Path, tmp_path: Path) -> None:
    """The arm's own checkpoint, offered as a model, gives the run's own responses and scores."""
    model = next((tiny_run / "stages" / "rl_cai").glob("*/model"))
    code, _, errors = cai("compare", f"{tiny_run}:rl_cai", model, "--out", tmp_path)
    assert code == 2, errors
    both = pd.read_parquet(tmp_path / "responses.parquet").set_index(["prompt", "sample"]).sort_index()
    old, new = (both[both["arm"] == arm] for arm in ("baseline", "candidate"))
    assert new["response"].tolist() == old["response"].tolist()
    assert new["kind"].tolist() == old["kind"].tolist()
    table = pd.read_parquet(tmp_path / "compare.parquet").set_index("metric")
    assert table.loc["pm_score", "difference"] == pytest.approx(0, abs=1e-4)
    assert table.loc["pm_score_helpful", "difference"] == pytest.approx(0, abs=1e-4)


def test_a_model_against_a_file_answers_its_prompts_as_often(
    cai: Cai, tiny_run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": p, "response": "A short answer.", "sample": s} for p in ("Why?", "How?") for s in range(2)]
    file = tmp_path / "old.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    pm = next((tiny_run / "stages" / "gold.harmless").glob("*/model"))
    code, _, errors = cai("compare", file, tiny_model, "--judge", f"pm:{pm}", "--out", tmp_path / "out")
    assert code == 2, errors
    both = pd.read_parquet(tmp_path / "out" / "responses.parquet")
    new = both[both["arm"] == "candidate"]
    assert sorted(zip(new["prompt"], new["sample"], strict=True)) == sorted((r["prompt"], r["sample"]) for r in rows)
    assert new["response"].nunique() > 2


def test_kinds_of_prompts_are_taken_from_the_side_that_knows_them(cai: Cai, tiny_run: Path, tmp_path: Path) -> None:
    table = load_responses([tiny_run])
    table = table[(table["arm"] == "rl_cai") & table["step"].isna()]
    table[["prompt", "response"]].to_csv(tmp_path / "new.csv", index=False)
    cai("compare", f"{tiny_run}:rl_cai", tmp_path / "new.csv", "--out", tmp_path)
    judged = pd.read_parquet(tmp_path / "compare.parquet").set_index("metric")
    assert judged.loc["over_refusal_rate", "n"] == 6
    assert judged.loc["pm_score", "difference"] == pytest.approx(0, abs=1e-4)


def test_a_judge_model_gives_elo(cai: Cai, tiny_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    sides = f"{tiny_run}:rl_cai", f"{tiny_run}:hh_rlhf"
    _, _, errors = cai("compare", *sides, "--judge", f"model:{tiny_model}", "--out", tmp_path)
    assert not errors
    judged = pd.read_parquet(tmp_path / "compare.parquet").set_index("metric")
    assert judged.loc[["elo_harmlessness", "elo_helpfulness"], "n"].tolist() == [6, 6]


# ---------------------------------------------------------------- bad input, help


def test_bad_input_is_one_clear_line(cai: Cai, tiny_run: Path, tmp_path: Path) -> None:
    bad = tmp_path / "gate.yaml"
    bad.write_text("metrics: {evasive_rates: {better: lower, margin: 0.1}}")
    answers = tmp_path / "a.jsonl"
    answers.write_text('{"prompt": "a", "response": "b"}')
    for arguments, expected in (
        ((answers, answers, "--gate", bad), "unknown metric 'evasive_rates'"),
        ((answers, answers, "--gate", tmp_path / "none.yaml"), "gate file not found"),
        ((tiny_run, answers), "several arms"),
        ((f"{tiny_run}:rl_cay", answers), "no arm 'rl_cay'"),
        ((tmp_path / "none.jsonl", answers), "file not found"),
        ((f"{tmp_path / 'none'}:rl_cai", answers), "file not found"),
        ((f"{tiny_run}:rl_cai", tmp_path / "no" / "model"), "model folder not found"),
        ((f"{tiny_run}:rl_cai", f"{tiny_run}:hh_rlhf", "--judge", "votes:v.csv"), "people voted on other responses"),
        ((f"{tiny_run}:rl_cai", f"{tiny_run}:hh_rlhf", "--judge", "column:none"), "column:none"),
    ):
        code, _, errors = cai("compare", *arguments, "--out", tmp_path / "out")
        assert code == 2
        assert expected in errors
        assert len(errors.strip().splitlines()) == 1


def test_help_shows_examples_and_exit_codes(cai: Cai) -> None:
    code, out, _ = cai("compare", "--help")
    assert code == 0
    assert out.count("cai compare ") >= 4
    assert "0 all clear, 1 regression, 2 could not judge" in out
    assert cli.app is not None


def test_a_column_of_another_type_on_each_side_is_kept_as_text(cai: Cai, tmp_path: Path) -> None:
    rows = pd.DataFrame({"prompt": [f"Question {i}?" for i in range(12)], "arm": "a", "response": "Use a longer rope."})
    rows.assign(note=1.5).to_parquet(tmp_path / "old.parquet")
    rows.assign(note="high").to_csv(tmp_path / "new.csv", index=False)
    code, _, errors = cai("compare", tmp_path / "old.parquet", tmp_path / "new.csv", "--out", tmp_path / "out")
    assert code in (0, 1, 2)
    assert not errors, errors
    assert set(pd.read_parquet(tmp_path / "out" / "responses.parquet")["note"]) == {"1.5", "high"}
