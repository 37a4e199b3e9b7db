"""Studies: found on disk, drawn seed by seed, shown as a page and as one file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from harness.stats import Interval
from harness.stats.seeds import over_intervals
from reports import differences, figures_seeds, study
from reports.load import RunData
from suites import claims
from tests.reports.conftest import write_study
from tests.reports.test_static import Page

Cai = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("studies") / "three")


def change(run: Path, **settings: object) -> None:
    file = run / "experiment.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | settings))


def test_runs_of_one_experiment_are_a_study(folder: Path, tmp_path: Path) -> None:
    for root in (folder, folder.parent):
        (found,) = study.find(root)
        assert (found.name, found.folder) == ("three", folder)
        assert found.cells == {"embedded": {seed: folder / f"seed-{seed}" for seed in range(3)}}
        assert found.waiting == ()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "seed-3" / "stages").mkdir(parents=True)
    change(copy / "seed-2", arms=["rl_cai"])  # no longer the same experiment
    (found,) = study.find(copy)
    assert list(found.cells["embedded"]) == [0, 1]
    assert found.waiting == (copy / "seed-3",)
    change(copy / "seed-1", arms=["hh_rlhf"])
    assert study.find(copy) == []


def test_base_models_stand_by_their_size(tmp_path: Path) -> None:
    (found,) = study.find(write_study(tmp_path / "sizes", ("m-1.7B", "m-135M"), seeds=1))
    assert list(found.cells) == ["m-135M", "m-1.7B"]


def test_verdicts_are_read_where_they_are_of_these_runs(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "three"))
    (found,) = study.find(copy)
    assert found.verdicts() is None
    pd.DataFrame({"id": [1], "verdict": ["reproduced"]}).to_parquet(copy / "claims.parquet")
    judged = found.verdicts()
    assert judged is not None
    assert list(judged) == ["embedded"]
    later = (copy / "claims.parquet").stat().st_mtime + 5
    os.utime(copy / "seed-1" / "experiment.yaml", (later, later))
    assert found.verdicts() is None


def test_means_over_seeds_cover_the_truth() -> None:
    """300 studies of 3 seeds and 30 prompts, which shift all runs alike: 95 % intervals miss in 5 % at most."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(300):
        asked = rng.normal(0, 1, 30)
        runs = []
        for own in rng.normal(0, 0.3, 3):
            values = own + asked + rng.normal(0, 1, 30)
            reach = 1.96 * values.std() / np.sqrt(30)
            runs.append(Interval(values.mean(), values.mean() - reach, values.mean() + reach, 30))
        mean = over_intervals(runs)
        assert mean.estimate == pytest.approx(np.mean([run.estimate for run in runs]))
        missed += not mean.low <= 0 <= mean.high
    assert missed / 300 < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)


def test_one_run_bounds_nothing_and_an_anchor_stays_at_zero() -> None:
    assert not np.isfinite(over_intervals([Interval(1, 0, 2, 30)]).high)
    zero = over_intervals([Interval(0, 0, 0, 30)] * 3)
    assert (zero.low, zero.high) == (0, 0)


def test_each_seed_is_a_point_and_the_mean_is_that_of_the_points(folder: Path) -> None:
    runs = {seed: RunData(folder / f"seed-{seed}") for seed in range(3)}
    shown = {item.name: item for item in figures_seeds.exhibits(runs)}
    assert {"frontier_by_seed", "learned_by_seed", "elo_harmlessness_by_seed", "evasive_rate_by_seed"} <= set(shown)
    table = shown["elo_harmlessness_by_seed"].table
    assert table is not None
    for arm, part in table.groupby("arm"):
        by_seed = part.set_index("seed")["estimate"]
        own = [runs[seed].metric("elo_harmlessness", "elo", final=True).set_index("arm").loc[arm, "estimate"]
               for seed in range(3)]  # fmt: skip
        assert by_seed.loc[["0", "1", "2"]].tolist() == own
        assert by_seed["mean"] == pytest.approx(np.mean(own))


def test_what_differs_between_runs(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "three"))
    change(copy / "seed-1", scale={"heldout_prompts": 7})
    about = copy / "seed-1" / "run.json"
    about.write_text(about.read_text().replace("2.13.0", "2.14.0").replace("abc1234", "def5678"))
    runs = {name: RunData(copy / name) for name in ("seed-0", "seed-1")}
    found = differences.table(runs).set_index(["kind", "what"])
    assert found.loc[("version", "torch")].tolist() == ["2.13.0", "2.14.0"]
    assert found.loc[("code", "commit of the harness")].tolist() == ["abc1234", "def5678"]
    assert found.loc[("experiment", "scale.heldout_prompts")].tolist()[1] == "7"
    assert ("experiment", "seed") in found.index
    assert ("experiment", "name") not in found.index
    assert differences.table({"a": runs["seed-0"], "b": RunData(folder / "seed-0")}).empty


def test_the_report_of_a_study_is_one_file_with_a_contents_list(cai: Cai, tmp_path: Path) -> None:
    folder = write_study(tmp_path / "sizes", ("small-135M", "large-1.7B"), seeds=2)
    code, printed, said = cai("report", folder)
    assert code == 0, said
    assert "report/index.html" in printed.replace("\n", "")
    html = (folder / "report" / "index.html").read_text()
    page = Page(html)
    links = [attributes.get(name) or "" for _, attributes in page.tags for name in ("src", "href")]
    assert all(link.startswith(("data:", "#")) for link in links if link)
    places = {attributes.get("id") for _, attributes in page.tags}
    contents = [link.removeprefix("#") for link in links if link.startswith("#")]
    assert len(contents) == len(set(contents)) > 20
    assert set(contents) <= places
    for words in ("4 runs of one experiment", "Run by run: small-135M", "By base model", claims.CHECKPOINTS,
                  "small-135M-seed-0", "Harmlessness Elo by base model"):  # fmt: skip
        assert words in page.text
    assert (folder / "claims.parquet").is_file()
    code, _, said = cai("report", tmp_path)
    assert code == 2
    assert "no results here" in said
