"""The first three sentences, from the run's own tables: what rose, what did not, what cannot be said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from reports import opening, static
from reports.load import RunData
from suites import learned


def write_learned(folder: Path, rows: list[tuple[str, str, float, float, float]]) -> None:
    table = pd.DataFrame(rows, columns=["arm", "measure", "estimate", "low", "high"])
    table = table.assign(start=0.5, end=0.5 + table["estimate"], n=24)[learned.COLUMNS]
    table.to_parquet(folder / "results" / "learned.parquet", index=False)


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    (copy / "results" / "learned.parquet").unlink(missing_ok=True)
    return copy


def about(folder: Path, **changes: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_it_says_what_rose_what_did_not_and_what_fell(folder: Path) -> None:
    write_learned(folder, [
        ("rl_cai", learned.REWARD, 0.8, 0.4, 1.2),
        ("hh_rlhf", learned.REWARD, 0.1, -0.2, 0.4),
        ("helpful_only", learned.REWARD, -0.5, -0.9, -0.1),
        ("sl_cai", learned.LIKELIHOOD, 0.3, 0.2, 0.4),
    ])  # fmt: skip
    run = RunData(folder)
    assert opening.sentences(run) == [
        "RL lowered the proxy PM's score of held-out answers of helpful_only: -0.50 [-0.90, -0.10].",
        "RL did not raise the proxy PM's score of held-out answers of hh_rlhf: 0.10 [-0.20, 0.40] cannot be told from "
        "no change.",
        "Fine-tuning raised the log-probability per token of held-out revisions of sl_cai by 0.30 [0.20, 0.40].",
        "RL raised the proxy PM's score of held-out answers of rl_cai by 0.80 [0.40, 1.20].",
        "Whether training raised anything for rl_cai_cot was not measured: it has no row.",
    ]
    said = opening.of(run).learned
    assert "RL raised the proxy PM's score of held-out answers of rl_cai by 0.80 [0.40, 1.20]" in said
    assert "did not raise the proxy PM's score of held-out answers of hh_rlhf (0.10 [-0.20, 0.40])" in said
    assert "; fine-tuning raised the log-probability" in said
    assert said.endswith("it was not measured for rl_cai_cot.")
    shown = opening.table(run)
    assert shown["arm"].tolist() == ["helpful_only", "hh_rlhf", "sl_cai", "rl_cai"]
    assert shown["end - start"].tolist()[3] == "0.80 [0.40, 1.20]"


def test_where_nothing_was_measured_it_says_so(folder: Path) -> None:
    assert "not measured" in opening.of(RunData(folder)).learned
    assert opening.table(RunData(folder)).empty
    pd.DataFrame({"arm": ["x"], "low": ["nonsense"]}).to_parquet(folder / "results" / "learned.parquet")
    assert "not measured" in opening.of(RunData(folder)).learned
    (folder / "results" / "learned.parquet").write_bytes(b"cut")
    assert "not measured" in opening.of(RunData(folder)).learned


def test_dpo_has_no_reward_and_the_reason_is_given(folder: Path) -> None:
    settings = yaml.safe_load((folder / "experiment.yaml").read_text())
    settings["rl"]["algorithm"] = "dpo"
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    write_learned(folder, [("sl_cai", learned.LIKELIHOOD, 0.3, 0.2, 0.4)])
    run = RunData(folder)
    assert any("rl_cai was not measured: DPO has no preference model" in line for line in opening.sentences(run))
    assert "by DPO of" in opening.of(run).trained


def test_labels_machine_and_undecided_claims_stand_in_what_it_cannot_show(folder: Path) -> None:
    about(folder, device="cpu (Some Processor, 2 cores, 2 threads)")
    first = opening.of(RunData(folder))
    assert "smollm2-135m, seed 0, on cpu (Some Processor, 2 cores, 2 threads)" in first.trained
    assert "rl_cai and rl_cai_cot by PPO of 6 updates of 8 answers" in first.trained
    assert "whether 3 of the paper's 5 claims hold" in first.cannot
    assert "train hh_rlhf by one policy" in first.cannot
    assert "claims 5 and 8 are partly built in" in first.cannot
    assert "one machine (cpu (Some Processor" in first.cannot
    about(folder, data=["harmless labels: /data/hh/harmless-base"])
    assert "stand-in" not in opening.of(RunData(folder)).cannot
    about(folder, data=["harmless labels: the shipped pairs, a stand-in for human labels"], arms=["sl_cai", "rl_cai"])
    shutil.rmtree(folder / "results")  # so that no measure of hh_rlhf is there
    without = opening.of(RunData(folder)).cannot
    assert "stand-in" in without
    assert "hh_rlhf" not in without


def test_an_evaluation_trained_nothing(folder: Path) -> None:
    about(folder, kind="eval")
    first = opening.of(RunData(folder))
    assert first.trained.startswith("Nothing was trained here")
    assert "responses alone" in first.learned
    assert "one machine" not in first.cannot


@pytest.mark.parametrize("value", [None, 3, "text", [], {"a": None}])
def test_what_run_json_holds_never_stops_it(folder: Path, value: Any) -> None:
    about(folder, **dict.fromkeys(("models", "data", "device", "seed", "scale"), value))
    assert all(opening.of(RunData(folder)))


def test_the_report_begins_with_it(folder: Path) -> None:
    write_learned(folder, [("rl_cai", learned.REWARD, 0.8, 0.4, 1.2)])
    page = static.render(folder).read_text()
    first = list(opening.of(RunData(folder)))
    places = [page.index("Trained from smollm2-135m"), page.index("RL raised the proxy PM"), page.index("cannot show:")]
    assert places == sorted(places)
    assert places[-1] < page.index("Scoreboard of arms")
    summary = json.loads((folder / "report" / "summary.json").read_text())
    assert summary["opening"] == first
    assert summary["learned"][0]["end - start"] == "0.80 [0.40, 1.20]"
    written = (folder / "report" / "report.md").read_text()
    assert written.index("Trained from") < written.index("## Did training move") < written.index("## Scoreboard")
