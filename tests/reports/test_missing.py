"""What was not measured comes with the key to set and its value, never with the command that was run already."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.experiment import Experiment
from harness.graph import in_order
from pipelines import arms
from reports import figures, figures_training
from reports.load import Missing, RunData
from suites import stages

RUN = "cai run experiments/demo.yaml"


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    """A finished run, to take things out of."""
    return Path(shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("report")))


def settings(folder: Path, **changed: Any) -> None:
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changed))


def asked(command: str) -> dict[str, Any]:
    """The keys and values that a command tells to set."""
    found = re.fullmatch(rf"set (.*) in experiments/demo\.yaml, then: {RUN}", command)
    assert found, command
    return {key: yaml.safe_load(value) for key, value in (pair.split(": ") for pair in found[1].split(" and "))}


def updated(folder: Path, changes: dict[str, Any]) -> Experiment:
    raw = yaml.safe_load((folder / "experiment.yaml").read_text())
    for key, value in changes.items():
        section, _, rest = key.partition(".")
        raw = raw | {section: raw[section] | {rest: value} if rest else value}
    return Experiment.model_validate(raw)


def planned(experiment: Experiment) -> set[str]:
    line = arms.plan(experiment)
    suites = stages.plan(experiment, line.arms, line.pms, line.chains, line.data)
    return {stage.name for stage in in_order([*suites.values(), *line.labels.values()])}


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        ("harmfulness", {"suites": ["elo", "pm_score", "evasiveness", "goodharting", "harmfulness"]}),
        ("hhh", {"suites": ["elo", "pm_score", "evasiveness", "goodharting", "hhh"], "data.hhh": "FILE"}),
    ],
)
def test_a_suite_that_was_not_asked_for(folder: Path, suite: str, expected: dict[str, Any]) -> None:
    shutil.rmtree(folder / "results" / suite)
    (found,) = RunData(folder).missing()
    assert found.what == f"suite {suite} has no results"
    assert asked(found.command) == expected
    assert suite in planned(updated(folder, expected))
    assert suite not in planned(updated(folder, {}))


def test_a_run_without_ai_labels_is_told_which_arm_makes_them(folder: Path) -> None:
    settings(folder, arms=["pretrained", "helpful_only"])
    (folder / "results" / "feedback.parquet").unlink()
    with pytest.raises(Missing) as caught:
        RunData(folder).need("feedback", ["mode"])
    assert asked(caught.value.command) == {"arms": ["pretrained", "helpful_only", "rl_cai"]}
    assert "feedback.plain" in planned(updated(folder, asked(caught.value.command)))


def test_figures_name_the_key_that_they_lack(folder: Path) -> None:
    revisions = RunData(folder).table("pm_score/revisions")
    assert revisions is not None
    revisions[revisions["n_principles"] == 16].to_parquet(folder / "results" / "pm_score" / "revisions.parquet")
    missing = figures_training.principles(RunData(folder)).missing
    assert missing is not None
    assert asked(missing.command) == {"revise.also_principles": [1, 2, 4, 8]}
    (folder / "results" / "goodharting" / "overoptimisation.parquet").unlink()
    missing = figures_training.overoptimisation(RunData(folder)).missing
    assert missing is not None
    assert asked(missing.command) == {"rl.snapshots": 5}
    updated(folder, asked(missing.command))
    settings(folder, arms=["pretrained", "sl_cai"], rl={"algorithm": "dpo", "snapshots": 7})
    missing = figures_training.overoptimisation(RunData(folder)).missing
    assert missing is not None
    assert asked(missing.command) == {"arms": ["pretrained", "sl_cai", "rl_cai"], "rl.algorithm": "ppo"}


def test_what_was_asked_for_and_is_gone_or_torn_is_gathered_again(folder: Path) -> None:
    (folder / "results" / "elo" / "summary.parquet").write_bytes(b"PAR1 cut short")
    missing = figures.frontier(RunData(folder)).missing
    (folder / "results" / "training.parquet").unlink()
    gone = figures_training.training(RunData(folder)).missing
    for found in (missing, gone):
        assert found is not None
        assert found.command == RUN  # it notices what is gone or damaged in results/, and gathers that again


def test_a_metric_that_a_suite_could_not_give_comes_with_its_note(folder: Path) -> None:
    summary = folder / "results" / "elo" / "summary.parquet"
    table = RunData(folder).table("elo/summary")
    assert table is not None
    table[table["metric"] != "elo_helpfulness"].to_parquet(summary)
    (folder / "results" / "elo" / "notes.json").write_text('{"notes": ["elo_helpfulness: not measured, too few"]}')
    missing = figures.frontier(RunData(folder)).missing
    assert missing is not None
    assert missing.command == ""
    assert "elo_helpfulness: not measured, too few" in str(missing)


def test_a_run_that_never_ended_is_told_to_go_on(tmp_path: Path) -> None:
    assert RunData(tmp_path).command("elo") == RUN
