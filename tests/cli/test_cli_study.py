"""A study: one run a seed, each in a folder of its own, and the claims over all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.experiment import Experiment
from reports import figures_sizes, study, study_report
from reports.load import RunData
from suites import claims
from tests.reports.conftest import write_run
from tests.suites.claims_runs import BUILDERS, questions
from tests.suites.test_claims import write

Cai = Callable[..., tuple[int, str, str]]


def test_each_seed_is_the_run_that_it_would_be_alone() -> None:
    alone = Experiment(name="x", seed=7)
    cells = Experiment(name="x", seeds=(7, 8)).cells()
    assert list(cells) == ["seed-7", "seed-8"]
    assert cells["seed-7"] == alone
    assert alone.cells() == {"": alone}


def test_base_models_and_seeds_make_a_grid_of_runs() -> None:
    study = Experiment.model_validate({"name": "x", "seeds": [0, 1], "models": {"base": ["a/small", "b/large"]}})
    assert list(study.cells()) == ["small-seed-0", "small-seed-1", "large-seed-0", "large-seed-1"]
    assert study.cells()["large-seed-1"] == Experiment.model_validate(
        {"name": "x", "seed": 1, "models": {"base": "b/large"}}
    )
    alone = Experiment.model_validate({"name": "x", "models": {"base": ["own/m", "other/m", "embedded"]}})
    assert list(alone.cells()) == ["m", "m_", "embedded"]
    assert [cell.models.base for cell in alone.cells().values()] == ["own/m", "other/m", "embedded"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"seeds": [1]}, "at least 2 items"),
        ({"seeds": [1, 1]}, "a seed is named twice"),
        ({"seeds": [0, -1]}, "greater than or equal to 0"),
        ({"seeds": [0, 1], "expect": {"no_decisive_claims": True}}, "expect is held against one run; leave out seeds"),
        ({"models": {"base": ["a", "a"]}}, "a base model is named twice"),
        ({"models": {"base": ["a"]}}, "at least 2 items"),
        ({"models": {"base": ["a", "server:http://h/v1#m"]}}, "a model behind a server cannot be trained"),
        ({"models": {"base": ["a", "b"], "bases": ["a", "c"]}}, "give one list"),
        ({"models": {"base": ["a", "b"]}, "expect": {"no_decisive_claims": True}}, "expect is held against one run"),
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

    def one(cells: dict[str, Experiment], given: Path, out: Path, carry_out: Any) -> None:
        ((name, experiment),) = cells.items()
        made.append((name, experiment.seed, experiment.seeds))
        if experiment.seed == 0:
            real(cells, given, out, carry_out)
        else:
            shutil.copytree(out / "seed-0", out / name)

    monkeypatch.setattr(command, "_run", one)
    code, printed, said = cai("run", file, "--out", tmp_path / "out")
    assert code == 0, said
    assert made == [("seed-0", 0, None), ("seed-1", 1, None)]
    over_all = pd.read_parquet(tmp_path / "out" / "claims.parquet")
    assert len(over_all) == 16
    assert set(over_all["scope"]) == {claims.CHECKPOINTS}  # two runs are too few for a verdict of the method
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "| seed-0 | seed-1 |" in summary
    assert re.findall(r"^\| (\d+) \|", summary, flags=re.M) == [str(n) for n in range(1, 17)]
    assert (tmp_path / "out" / "seed-0" / "report" / "index.html").is_file()


def sized(folder: Path, seed: int, base: str) -> Path:
    """The results of a run whose feedback model, its base, is right the more often the larger it is."""
    accuracy, parameters = {"small": (0.55, 1e8), "large": (0.85, 1e9)}[base]
    rng = np.random.default_rng([seed, len(base)])
    asked = questions(rng, accuracy, 0.7, "plain", "feedback_model")
    asked["hhh/questions"] = asked["hhh/questions"].assign(parameters=parameters)
    frames = BUILDERS[15](rng, 1 if base == "small" else -1) | asked
    results = write(folder / f"{base}-seed-{seed}" / "results", frames)
    claims.judge(results).to_parquet(results / "claims.parquet")
    return folder / f"{base}-seed-{seed}"


def test_each_size_has_its_verdicts_and_claim_14_compares_them(tmp_path: Path) -> None:
    """Claim 15 holds for the small model and turns round for the large one; three seeds of each are of the method."""
    cells = {base: {seed: sized(tmp_path, seed, base) for seed in range(3)} for base in ("small", "large")}
    alone = pd.read_parquet(cells["small"][0] / "results" / "claims.parquet").set_index("id")
    assert alone.loc[14, "verdict"] == claims.NOT_MEASURED
    verdicts = study.judge(cells)
    for base, sign in (("small", 1), ("large", -1)):
        own = verdicts[base].set_index("id")
        assert sign * own.loc[15, "effect"] == pytest.approx(0.25, abs=0.1)
        assert own.loc[15, "scope"] == claims.METHOD
        assert own.loc[14, "verdict"] == claims.REPRODUCED
        assert own.loc[14, "effect"] == pytest.approx(0.3, abs=0.1)  # for ten times the parameters
    two = {base: {seed: runs[seed] for seed in (0, 1)} for base, runs in cells.items()}
    assert (
        study.judge(two)["small"].set_index("id").loc[15, "scope"] == claims.CHECKPOINTS
    )  # two seeds a size, four runs
    assert set(study.table(verdicts)["base"]) == {"small", "large"}
    assert "base" not in study.table({"small": verdicts["small"]})
    study_report.write(tmp_path, "sizes", cells, verdicts)
    text = (tmp_path / "summary.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| 15 ") and line.count("|") == 5]
    verdict = {base: judged.set_index("id").loc[15, "verdict"] for base, judged in verdicts.items()}
    assert verdict["small"] == claims.REPRODUCED != verdict["large"]
    assert line.endswith(f"| reproduced | {verdict['large']} |")
    assert "# small: 3 runs" in text
    assert "## Harmlessness Elo by base model\n\nNot measured: no metric elo" in text


def test_runs_of_other_base_models_are_no_seeds(cai: Cai, tmp_path: Path) -> None:
    runs = [sized(tmp_path, 0, "small"), sized(tmp_path, 1, "small")]
    for run, base in zip(runs, ("a/small", "b/large"), strict=True):
        (run / "run.json").write_text(json.dumps({"models": {"base": base}}))
    code, _, said = cai("claims", *runs)
    assert code == 2
    assert "different base models (a/small, b/large)" in " ".join(said.split())
    (runs[1] / "run.json").write_text(json.dumps({"models": {"base": "a/small"}}))
    assert cai("claims", *runs)[0] == 0


def test_figures_have_the_base_models_as_their_axis(tmp_path: Path) -> None:
    cells = {base: {seed: RunData(write_run(tmp_path / f"{base}-{seed}", seed=seed + place)) for seed in (0, 1)}
             for place, base in enumerate(("small", "large"))}  # fmt: skip
    shown = {item.name: item for item in figures_sizes.exhibits(cells)}
    assert [item.missing for item in shown.values()] == [None] * 6
    for name, lines in (
        ("harmlessness_by_size", {"pretrained", "helpful_only", "hh_rlhf", "sl_cai", "rl_cai", "rl_cai_cot"}),
        ("hhh_by_size", {"plain", "cot", "cot_5"}),
        ("revisions_by_size", {f"revision {number}" for number in range(5)}),
        ("principles_by_size", {"N = 4", "N = 16"}),
        ("critiques_by_size", {"critiqued", "direct"}),
    ):
        table = shown[name].table
        assert table is not None
        assert set(table["line"]) == lines
        assert len(table) == 4 * len(lines)
    assert "plain 0.55 (small), 0.55 (large)" in shown["hhh_by_size"].reading
    assert shown["hhh_by_size"].svg.startswith("<?xml")


def test_the_summary_sets_each_runs_verdict_beside_that_over_all(tmp_path: Path) -> None:
    row = {"id": 8, "statement": "less | evasive", "effect": -0.4, "low": -0.6, "high": -0.2, "n": 30, "note": ""}
    runs = []
    for name, verdict in (("seed-0", claims.REPRODUCED), ("seed-1", claims.UNDERPOWERED)):
        (tmp_path / name / "results").mkdir(parents=True)
        pd.DataFrame([row | {"verdict": verdict}]).to_parquet(tmp_path / name / "results" / "claims.parquet")
        runs.append(tmp_path / name)
    over_all = pd.DataFrame([row | {"verdict": claims.REPRODUCED, "scope": claims.METHOD}])
    cells = {"base": dict(enumerate(runs))}
    text = study_report.summary(cells, {"base": over_all}, [])
    (line,) = [line for line in text.splitlines() if line.startswith("| 8 ")]
    assert r"| reproduced | of the method | \-0.4 \[-0.6, -0.2\] |" in line
    assert line.endswith("| 30 | reproduced | underpowered |")
    assert "less | evasive" not in line  # a bar in a text would begin another cell
