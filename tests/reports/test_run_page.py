"""The page Run: a run at work, a failed one, and one at its end; hostile text stays text."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'cai-harness[dashboard]'")

from harness import events
from tests.reports.conftest import HOSTILE, training_row
from tests.reports.test_pages import open_page, words


@pytest.fixture
def at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> events.StageLog:
    """A run whose second stage trains."""
    monkeypatch.setattr(events, "EVERY", 0)
    (tmp_path / "mine" / "stages").mkdir(parents=True)
    log = events.Log(tmp_path / "mine")
    log.begin({"data": [], "helpful_only": ["data"], "report": ["helpful_only"]})
    log.stage("data", 1, 3)
    log.write("finished", stage="data", seconds=4.0, tokens=800, device="cpu", peak_memory_bytes=2**30)
    training = log.stage("helpful_only", 2, 3)
    for step, answer in ((1, "The first answer."), (2, HOSTILE)):
        training.advance(step, 6, "PM score")
        training.row(training_row(step, answer))
    return training


def test_a_run_at_work_shows_stages_curves_and_samples(
    at_work: events.StageLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_page("run", tmp_path, monkeypatch, uncovered=True)
    assert not app.exception
    said = words(app)
    facts = {metric.label: metric.value for metric in app.metric}
    assert (facts["Run"], facts["Stages done"], facts["At work"]) == ("running", "1 of 3", "helpful_only")
    for text in ("2 of 6", "200", "1.0 GiB", "to do", "The first answer."):
        assert text in said
    assert "<script" not in said
    assert len(app.get("arrow_vega_lite_chart") or app.get("vega_lite_chart")) == 4
    at_work.advance(3, 6, "PM score")
    at_work.row(training_row(3, "Newer than new."))
    assert "Newer than new." in words(app.run())


def test_a_failed_run_says_why(at_work: events.StageLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work.log.failed("helpful_only", OSError("the disk is full <b>now</b>"))
    app = open_page("run", tmp_path, monkeypatch)
    assert not app.exception
    assert "the disk is full" in app.error[0].value
    assert "<b>" not in app.error[0].value
    assert not app.expander
    printed = tmp_path / "mine" / "stages" / "helpful_only" / "0123.partial" / "logs" / "node-7.txt"
    printed.parent.mkdir(parents=True)
    printed.write_text("Loading\nOSError: \x1b[31mthe disk is full\n")
    app = open_page("run", tmp_path, monkeypatch)
    assert [code.value for code in app.expander[0].code] == ["Loading\nOSError: \\x1b[31mthe disk is full"]
    assert "blur(6px)" in words(app)


def test_several_runs_and_a_finished_one(
    at_work: events.StageLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other" / "stages").mkdir(parents=True)
    log = events.Log(tmp_path / "other")
    log.begin({"data": []})
    log.write("done", stage="data")
    log.write("end")
    app = open_page("run", tmp_path, monkeypatch, run="other")
    assert not app.exception
    assert {metric.label: metric.value for metric in app.metric}["Run"] == "done"
    assert "No training has written a log yet" in words(app)
    assert all(name in words(app) for name in ("mine", "other", "All runs"))


def test_a_run_that_left_no_events_is_told_so(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Path(shutil.copytree(run_folder, tmp_path / "old", ignore=shutil.ignore_patterns(events.NAME, "report")))
    assert "Not measured: events.jsonl is missing" in words(open_page("run", old, monkeypatch)).replace("\\", "")


def test_one_run_after_another_can_be_picked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second", "third"):
        (tmp_path / name / "stages").mkdir(parents=True)
        events.Log(tmp_path / name).begin({"data": []})
    app = open_page("run", tmp_path, monkeypatch, run="first")
    for name in ("second", "third", "first"):
        app.sidebar.selectbox[0].set_value(name).run()
        assert app.sidebar.selectbox[0].value == name
        assert app.session_state["run"] == name


def test_stages_that_run_at_once_are_counted(
    at_work: events.StageLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work.log.stage("report", 3, 3).advance(1, 100, "")
    app = open_page("run", tmp_path, monkeypatch)
    assert not app.exception
    facts = {metric.label: metric.value for metric in app.metric}
    assert facts["At work"] == "2 stages"
    assert "ETA of the last" in facts
