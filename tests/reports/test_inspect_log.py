"""A run's logs for inspect_ai: what its format asks for, the answers as they are, measures with their intervals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reports import inspect_log
from reports.load import RunData
from tests.reports.conftest import HOSTILE, write_run

Cai = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def logs(run: Path, out: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in inspect_log.write(RunData(run), out)]
    return {log["eval"]["model"]: log for log in found}


def test_answers_scores_and_metrics_are_the_runs(run: Path, tmp_path: Path) -> None:
    said = logs(run, tmp_path / "out")
    responses = pd.read_parquet(run / "results" / "responses.parquet")
    assert set(said) == {
        "pretrained",
        "helpful_only",
        "hh_rlhf",
        "sl_cai",
        "rl_cai",
        "rl_cai_cot",
        "rl_cai@2",
        "rl_cai@4",
    }
    for model, log in said.items():
        arm, _, step = model.partition("@")
        rows = responses[responses["arm"] == arm]
        rows = rows[rows["step"] == int(step)] if step else rows[rows["step"].isna()]
        assert [sample["output"]["completion"] for sample in log["samples"]] == rows["response"].tolist()
        assert [sample["input"] for sample in log["samples"]] == rows["prompt"].tolist()
    assert HOSTILE in said["rl_cai"]["samples"][0]["output"]["completion"]
    summary = RunData(run).summary
    (expected,) = summary[
        (summary["arm"] == "hh_rlhf") & summary["step"].isna() & (summary["metric"] == "evasive_rate")
    ].to_dict("records")
    (scored,) = [score for score in said["hh_rlhf"]["results"]["scores"] if score["name"] == "evasiveness"]
    for name, key in (("evasive_rate", "estimate"), ("evasive_rate_low", "low"), ("evasive_rate_high", "high")):
        assert scored["metrics"][name]["value"] == pytest.approx(expected[key])
        assert scored["metrics"][name]["params"] == {"n": expected["n"]}
    table = pd.read_parquet(run / "results" / "evasiveness" / "responses.parquet")
    row = table[(table["arm"] == "sl_cai") & table["step"].isna()].iloc[3]
    (sample,) = [
        s for s in said["sl_cai"]["samples"] if s["input"] == row["prompt"] and s["epoch"] == row["sample"] + 1
    ]
    assert sample["scores"]["evasiveness"]["value"] == row["score"]
    assert sample["scores"]["evasiveness"]["explanation"] == row["label"]


def test_a_prompt_has_one_number_in_every_log_and_exports_are_alike(run: Path, tmp_path: Path) -> None:
    said = logs(run, tmp_path / "out")
    numbers = {(sample["id"], sample["input"]) for log in said.values() for sample in log["samples"]}
    assert len(numbers) == len({number for number, _ in numbers}) == len({prompt for _, prompt in numbers})
    assert logs(run, tmp_path / "again") == said


def test_what_was_not_measured_is_not_in_it(run: Path, tmp_path: Path) -> None:
    file = run / "results" / "evasiveness" / "responses.parquet"
    table = pd.read_parquet(file)
    table.loc[table.index[table["step"].isna()][:4], "score"] = float("nan")
    table.to_parquet(file)
    (run / "results" / "elo" / "summary.parquet").unlink()
    said = logs(run, tmp_path / "out")
    samples = [sample for model, log in said.items() if "@" not in model for sample in log["samples"]]
    assert len([sample for sample in samples if "evasiveness" not in sample["scores"]]) == 4
    assert "elo" not in {score["name"] for log in said.values() for score in log["results"]["scores"]}


def test_a_conversation_is_messages_and_a_cut_answer_says_so(run: Path, tmp_path: Path) -> None:
    file = run / "results" / "responses.parquet"
    table = pd.read_parquet(file).iloc[:2].assign(ended=[False, True])
    table["prompt"] = ["\n\nHuman: Tea?\n\nAssistant: Yes.\n\nHuman: Why?\n\nAssistant:", "Plain?"]
    table.assign(arm="a").to_parquet(file)
    first, second = logs(run, tmp_path / "out")["a"]["samples"]
    assert [message["role"] for message in first["input"]] == ["user", "assistant", "user"]
    assert first["output"]["choices"][0]["stop_reason"] == "max_tokens"
    assert (second["input"], second["output"]["choices"][0]["stop_reason"]) == ("Plain?", "stop")


def test_inspect_itself_reads_the_logs(run: Path, tmp_path: Path) -> None:
    inspect = pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed; `tox -e outside` has it")
    inspect_log.write(RunData(run), tmp_path / "out")
    found = inspect.list_eval_logs(str(tmp_path / "out"))
    assert len(found) == 8
    read = [inspect.read_eval_log(info) for info in found]
    log = next(log for log in read if log.eval.model == "rl_cai")
    assert log.status == "success"
    assert HOSTILE in log.samples[0].output.completion
    assert {score.name for score in log.results.scores} >= {"elo", "evasiveness"}
    assert inspect.read_eval_log(found[0], header_only=True).samples is None
    from inspect_ai.analysis import evals_df

    assert set(evals_df(str(tmp_path / "out"))["model"]) == {log.eval.model for log in read}


def test_the_command_writes_them_and_says_how_to_look(run: Path, cai: Cai) -> None:
    code, said, errors = cai("export", run)
    assert code == 0, errors
    assert f"wrote 8 logs; see them with: inspect view --log-dir {run / 'inspect'}" in said
    assert len(list((run / "inspect").glob("20*.json"))) == 8


@pytest.mark.parametrize("damage", ["none", "bytes", "column"])
def test_faults_are_one_line(run: Path, cai: Cai, damage: str) -> None:
    file = run / "results" / "responses.parquet"
    if damage == "none":
        file.unlink()
    elif damage == "bytes":
        file.write_bytes(b"x")
    else:
        pd.read_parquet(file).drop(columns="response").to_parquet(file)
    code, _, said = cai("export", run)
    assert (code, len(said.splitlines())) == (2, 1)
    assert "responses.parquet" in said
    assert not (run / "inspect").exists()
