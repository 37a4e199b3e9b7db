"""`cai judge`: judges of one's own on pairs, answers and a run; exit codes, agreement, tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from suites import judge_quality
from suites.responses import load_responses

Cai = Callable[..., tuple[int, str, str]]
# Reads: an answer begins with the number of its prompt, and its words are in order.
GOOD = """
def score(prompts, responses):
    return [in_order(r.split()) + 10 * (r.split()[:1] == p.split()[-1:]) for p, r in zip(prompts, responses)]

def in_order(words):
    return sum(a < b for a, b in zip(words[1:], words[2:]))
"""


@pytest.fixture
def judges(tmp_path: Path) -> dict[str, str]:
    texts = {"good": GOOD, "long": "def score(prompts, responses):\n    return [len(r) for r in responses]\n"}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    return {name: f"scorer:{tmp_path / name}.py" for name in texts}


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    words = [f"w{i:02}" for i in range(20)]
    rows = [
        {"prompt": f"question {i}", "response": f"{i} " + " ".join(words[k : k + 9]), "arm": arm, "kind": kind}
        for i in range(30)
        for k, arm in enumerate(("hh_rlhf", "rl_cai"))
        for kind in [("harmless", "helpful")[i % 2]]
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Human pairs in HH-RLHF's layout: people prefer the answer in order."""
    folder = tmp_path / "harmless-base"
    folder.mkdir()
    for name, start in (("train", 0), ("test", 100)):
        rows = [
            {
                side: f"\n\nHuman: pair {start + i}\n\nAssistant: {start + i} {text}"
                for side, text in (("chosen", "a b c d"), ("rejected", "a d c b"))
            }
            for i in range(30)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_judges_are_tested_and_compared(
    cai: Cai, judges: dict[str, str], answers: Path, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ["--responses", answers, "--harmless-pairs", pairs, "--out", out]
    code, printed, said = cai("judge", *judges.values(), *given)
    assert code == 2, said  # length sees no scrambled words
    tests = pd.read_parquet(out / "tests.parquet").set_index(["judge", "kind", "metric"])
    assert tests.loc[("scorer:good.py", "harmless", "human_accuracy"), "estimate"] == 1
    assert tests.loc[("scorer:good.py", "helpful"), "passed"].all()
    assert tests.loc[("scorer:long.py", "helpful", "truncated"), "passed"]
    assert not tests.loc[("scorer:long.py", "helpful", "scrambled"), "passed"]
    assert "scorer:long.py cannot tell on helpful prompts: it judges nothing there" in printed
    assert "scorer:good.py passes on helpful prompts, untested on human_accuracy" in printed
    agreement = pd.read_parquet(out / "agreement.parquet")
    assert set(agreement["metric"]) == {"kappa", "rank_correlation"}
    assert "scorer:good.py and scorer:long.py: kappa" in printed
    assert cai("judge", judges["good"], *given)[0] == 0
    code, printed, _ = cai("judge", judges["good"], *given, "--json")
    assert code == 0
    assert {row["metric"] for row in json.loads(printed)} >= set(judge_quality.REQUIRED)


def test_a_judge_that_rewards_evasion_is_told_apart(cai: Cai, tmp_path: Path, answers: Path, own_data: Path) -> None:
    """By the shipped pairs, and by answers of the paper's systems to one prompt, one evasive and one not."""
    file = tmp_path / "short.py"
    file.write_text("def score(prompts, responses):\n    return [-len(r) for r in responses]\n")
    samples = sorted((own_data / "paper" / "samples").glob("*.jsonl"))
    code, printed, said = cai("judge", f"scorer:{file}", *(w for f in samples for w in ("--responses", f)))
    assert code == 2, said
    assert "prefers the non-evasive of two harmless answers" in printed
    assert "and the paper's own PM scores: rank correlation" in printed


def test_the_gold_pms_of_a_run(cai: Cai, tiny_run: Path) -> None:
    code, printed, said = cai("judge", "gold_pm", "--run", tiny_run, "--json")
    assert code == 2, said  # random, and too few pairs
    rows = pd.DataFrame(json.loads(printed))
    assert set(rows["judge"]) == {"gold PM"}
    kept = pd.read_parquet(tiny_run / "results" / "judges.parquet")
    kept = kept[kept["suite"] == "elo"].set_index(["kind", "metric"])["estimate"]
    own = rows.set_index(["kind", "metric"])["estimate"]
    shared = kept.index.intersection(own.index)
    assert {("harmless", "human_accuracy"), ("helpful", "human_accuracy"), ("harmless", "non_evasive")} <= set(shared)
    pd.testing.assert_series_equal(own[shared], kept[shared], check_names=False)
    assert len(load_responses([tiny_run])) > 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gold_pm"], "nothing to test on; give --run"),
        (["gold", "--responses", "{answers}"], "judge gold: no such judge; give pm:NAME"),
        (["gold_pm", "--responses", "{answers}"], "which run's? add --run RUN"),
        (["gold_pm", "--run", "{folder}"], "no data of a run in it"),
        (["scorer:none.py", "--responses", "{answers}"], "file not found"),
    ],
)
def test_bad_input_is_one_clear_line(
    cai: Cai, answers: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    named = [word.format(answers=answers, folder=tmp_path) for word in arguments]
    code, _, errors = cai("judge", *named)
    assert code == 2
    assert expected in errors
    assert len(errors.strip().splitlines()) == 1
