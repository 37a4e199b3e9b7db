"""`cai new`: what it writes runs as it is, each kind through its cheapest real use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from constitutions import load

Cai = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def new(cai: Cai, kind: str, name: str) -> str:
    code, said, errors = cai("new", kind, name)
    assert code == 0, errors
    assert f"my_{kind}" not in next(Path().glob(f"{name}.*")).read_text()
    return said


def test_an_experiment_with_a_constitution_can_be_planned(cai: Cai) -> None:
    said = new(cai, "experiment", "first")
    assert "cai plan first.yaml" in said
    new(cai, "constitution", "rules")
    assert (
        "3 critique-revision pairs, 3 comparison questions, 2 worked examples"
        in cai("constitutions", "validate", "rules.yaml")[1]
    )
    shown = yaml.safe_load(Path("first.yaml").read_text())
    assert shown["name"] == "first"
    code, said, errors = cai("plan", "first.yaml", "--json")
    assert code == 0, errors
    keys = {row["stage"]: row["key"] for row in json.loads(said)}
    assert {"data", "sl_cai", "rl_cai", "report"} <= set(keys)
    Path("first.yaml").write_text(yaml.safe_dump(shown | {"constitution": "rules.yaml"}))
    other = {row["stage"]: row["key"] for row in json.loads(cai("plan", "first.yaml", "--json")[1])}
    assert keys["data"] == other["data"]
    assert keys["chains.critiqued"] != other["chains.critiqued"]  # it stands for the chains, and is read
    assert load("rules.yaml").name == "rules"


def test_a_suite_measures_responses(cai: Cai) -> None:
    new(cai, "suite", "asks")
    rows = [{"prompt": f"Q{i}?", "response": "Why?" if i % 2 else "So."} for i in range(12)]
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said, errors = cai("eval", "answers.jsonl", "--suite", "asks.py", "--json")
    assert code == 0, errors
    (row,) = json.loads(said)
    assert (row["suite"], row["metric"], row["estimate"], row["n"]) == ("asks", "asks_rate", 0.5, 12)


def test_a_method_is_trained_and_measured_beside_the_others(cai: Cai, tiny_run: Path, tiny_experiment: Path) -> None:
    new(cai, "method", "mine")
    experiment = yaml.safe_load(tiny_experiment.read_text())
    arms = ["pretrained", "helpful_only", "hh_rlhf", "sl_cai", "rl_cai", "rl_cai_cot", "mine"]
    Path("x.yaml").write_text(yaml.safe_dump(experiment | {"methods": ["mine.py"], "arms": arms}))
    shutil.copytree(tiny_run, "run")  # so that only what is new is trained
    code, _, errors = cai("run", "x.yaml", "--out", "run")
    assert code == 0, errors
    assert "mine" in set(pd.read_parquet("run/results/responses.parquet")["arm"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("metod", "x"), "no kind 'metod'; choose from method, suite, constitution, experiment"),
        (("suite", "../x"), "'../x': a name is 1 to 60 letters"),
        (("suite", "there"), "there.py: exists already; choose another name or add --force"),
    ],
)
def test_faults_are_one_line(cai: Cai, words: tuple[str, ...], expected: str) -> None:
    Path("there.py").write_text("mine")
    code, _, said = cai("new", *words)
    assert (code, len(said.splitlines())) == (2, 1)
    assert expected in said
    assert Path("there.py").read_text() == "mine"
