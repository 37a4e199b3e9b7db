"""A study: one run a seed, each in a folder of its own, and the claims over all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.experiment import Experiment
from reports import study
from suites import claims

Cai = Callable[..., tuple[int, str, str]]


def test_each_seed_is_the_run_that_it_would_be_alone() -> None:
    alone = Experiment(name="x", seed=7)
    cells = Experiment(name="x", seeds=(7, 8)).cells()
    assert list(cells) == ["seed-7", "seed-8"]
    assert cells["seed-7"] == alone
    assert alone.cells() == {"": alone}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"seeds": [1]}, "at least 2 items"),
        ({"seeds": [1, 1]}, "a seed is named twice"),
        ({"seeds": [0, -1]}, "greater than or equal to 0"),
        ({"seeds": [0, 1], "expect": {"no_decisive_claims": True}}, "expect is held against one run; leave out seeds"),
    ],
)
def test_a_study_that_cannot_be_is_refused(raw: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Experiment.model_validate({"name": "x"} | raw)


def test_runs_are_planned_made_and_judged_together(
    cai: Cai, tiny_experiment: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 0 is the finished tiny run, which is reused; seed 1 stands in for another training run."""
    from harness.cli import run as command

    file = tmp_path / "study.yaml"
    file.write_text(tiny_experiment.read_text() + "seeds: [0, 1]\n")
    shutil.copytree(tiny_run, tmp_path / "out" / "seed-0")
    code, printed, said = cai("plan", file, "--out", tmp_path / "out", "--json")
    assert code == 0, said
    rows = pd.DataFrame(json.loads(printed))
    status = rows.groupby("run")["status"].agg(set)
    assert "done" in status["seed-0"]
    assert {"to do"} == status["seed-1"]
    trained = rows[~rows["stage"].isin(["results", "report"])]
    assert set(trained.loc[trained["run"] == "seed-0", "status"]) == {"done"}

    made = []
    real = command._run

    def one(experiment: Experiment, given: Path, folder: Path) -> None:
        made.append((folder.name, experiment.seed, experiment.seeds))
        if experiment.seed == 0:
            real(experiment, given, folder)
        else:
            shutil.copytree(tmp_path / "out" / "seed-0", folder)

    monkeypatch.setattr(command, "_run", one)
    code, printed, said = cai("run", file, "--out", tmp_path / "out")
    assert code == 0, said
    assert made == [("seed-0", 0, None), ("seed-1", 1, None)]
    over_all = pd.read_parquet(tmp_path / "out" / "claims.parquet")
    assert len(over_all) == 16
    assert set(over_all["scope"]) == {claims.CHECKPOINTS}  # two runs are too few for a verdict of the method
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "| seed-0 | seed-1 |" in summary
    assert summary.count("\n| ") == 17
    assert (tmp_path / "out" / "seed-0" / "report" / "index.html").is_file()


def test_the_summary_sets_each_runs_verdict_beside_that_over_all(tmp_path: Path) -> None:
    row = {"id": 8, "statement": "less | evasive", "effect": -0.4, "low": -0.6, "high": -0.2, "n": 30, "note": ""}
    runs = []
    for name, verdict in (("seed-0", claims.REPRODUCED), ("seed-1", claims.UNDERPOWERED)):
        (tmp_path / name / "results").mkdir(parents=True)
        pd.DataFrame([row | {"verdict": verdict}]).to_parquet(tmp_path / name / "results" / "claims.parquet")
        runs.append(tmp_path / name)
    text = study.summary(pd.DataFrame([row | {"verdict": claims.REPRODUCED, "scope": claims.METHOD}]), runs)
    (line,) = [line for line in text.splitlines() if line.startswith("| 8 ")]
    assert r"| reproduced | of the method | \-0.4 \[-0.6, -0.2\] |" in line
    assert line.endswith("| 30 | reproduced | underpowered |")
    assert "less | evasive" not in line  # a bar in a text would begin another cell
