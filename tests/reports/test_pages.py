"""Every dashboard page on a whole run, on empty, half-written and foreign folders: words, never a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'cai-harness[dashboard]'")
from streamlit.testing.v1 import AppTest

import reports
from harness.text import markdown
from reports import opening
from reports.dashboard import digest
from reports.load import RunData
from tests.reports.conftest import write_study

PAGES = sorted((Path(reports.__file__).parent / "views").glob("[a-z]*.py"))
NAMES = [path.stem for path in PAGES]


def open_page(
    page: Path | str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    link: Mapping[str, str] | None = None,
    **state: object,
) -> AppTest:
    path = page if isinstance(page, Path) else PAGES[NAMES.index(page)]
    monkeypatch.setenv("CAI_RUNS_DIR", str(runs))
    app = AppTest.from_file(str(path), default_timeout=60)
    for name, value in state.items():
        app.session_state[name] = value
    for name, value in (link or {}).items():
        app.query_params[name] = value
    return app.run()


def words(app: AppTest) -> str:
    """All that a page says."""
    kinds = ("title", "subheader", "markdown", "caption", "warning", "info", "success", "error", "code", "html")
    parts = []
    for kind in kinds:
        for element in app.get(kind):
            parts.append(str(getattr(element, "value", "") or getattr(element.proto, "body", "")))
    return "\n".join(parts)


def test_the_overview_begins_with_what_was_trained_learned_and_cannot_be_shown(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [element.value for element in open_page("overview", run_folder, monkeypatch).markdown[:3]]
    assert said == [markdown(sentence) for sentence in opening.of(RunData(run_folder))]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_page_opens_on_a_whole_run(page: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page(page, run_folder, monkeypatch, uncovered=True)
    assert not app.exception
    assert not app.error
    assert app.title[0].value.lower() == page.stem
    if page.stem in ("frontier", "revisions", "feedback", "evasiveness", "goodharting"):
        assert "Not measured" not in words(app)
        assert len(app.get("download_button")) >= 6


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_page_opens_on_a_run_that_was_trained(page: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page(page, tiny_run, monkeypatch, uncovered=True)
    assert not app.exception
    assert not app.error


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
@pytest.mark.parametrize(
    "state", ["empty", "absent", "under way", "only run.json", "foreign", "cut short", "odd columns"]
)
def test_page_says_what_is_missing(
    page: Path, state: str, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    if state != "absent":
        runs.mkdir()
    if state == "under way":
        (runs / "mine" / "stages").mkdir(parents=True)
    elif state == "only run.json":
        (runs / "run.json").write_text('{"arms": ["rl_cai"], "models": 3}')
    elif state == "foreign":
        (runs / "results").mkdir()
        (runs / "results" / "table.csv").write_text("a,b\n1,2\n")
        (runs / "run.json").write_text("<html>")
    elif state in ("cut short", "odd columns"):
        shutil.copytree(run_folder, runs / "mine", ignore=shutil.ignore_patterns("report", "events.jsonl"))
        for path in (runs / "mine" / "results").rglob("*.parquet"):
            if state == "cut short":
                path.write_bytes(path.read_bytes()[:50])
            else:
                pd.DataFrame({"arm": [1, 2], "estimate": ["x", "y"]}).to_parquet(path)
    app = open_page(page, runs, monkeypatch)
    assert not app.exception
    said = words(app)
    expected = ("holds no run", "is no folder", "no results yet", "ot measured", "per-response", "same arm", "no study")
    assert any(word in said for word in (*expected, "holds no responses")), said


def test_html_in_a_response_stays_text(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in ("responses", "arena", "revisions"):
        app = open_page(page, run_folder, monkeypatch, uncovered=True)
        said = words(app)
        assert "<script" not in said
        assert "<img" not in said
        assert "<b>water" not in said
    app = open_page("responses", run_folder, monkeypatch, uncovered=True)
    assert "&lt;script&gt;alert" in words(app)


def test_responses_are_blurred_until_asked_for(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page("responses", run_folder, monkeypatch)
    assert "blur(6px)" in words(app)
    app.button[0].click().run()
    assert "blur(6px)" not in words(app)


def test_search_narrows_responses(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page("responses", run_folder, monkeypatch)
    app.text_input[0].set_value("Question 7 ").run()
    assert "1 prompt" in words(app)
    app.text_input[0].set_value("no such words").run()
    assert "Nothing matches" in words(app)


def test_arena_stores_votes_and_hides_the_arms(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(run_folder, folder, ignore=shutil.ignore_patterns("report"))
    app = open_page("arena", folder, monkeypatch, uncovered=True)
    assert not any(arm in words(app) for arm in ("hh_rlhf", "sl_cai", "helpful_only"))
    for choice in ("left", "tie", "right"):
        app.button(key=choice).click().run()
    assert not app.exception
    assert "3 votes by 1 voter on" in words(app)
    app.toggle[0].set_value(True).run()
    assert not app.exception


def test_compare_two_arms_and_two_runs(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        shutil.copytree(run_folder, tmp_path / name, ignore=shutil.ignore_patterns("report"))
    about = tmp_path / "second" / "run.json"
    about.write_text(about.read_text().replace("2.13.0", "2.14.0"))
    app = open_page("compare", tmp_path, monkeypatch, run="first")
    assert "Regressed" in words(app)
    assert "Elo, candidate minus baseline" in words(app)
    assert "What differs" not in words(app)
    next(box for box in app.selectbox if box.label == "Candidate: run").set_value("second").run()
    assert not app.exception
    differ = next(html for html in app.get("html") if "2.14.0" in html.proto.body).proto.body
    assert "torch" in differ
    assert "2.13.0" in differ
    assert "updates" not in differ
    assert "Helpfulness against harmlessness" in [each.value for each in app.subheader]
    assert {"**first**", "**second**"} <= {each.value for each in app.markdown}
    assert "anchor" in words(app)


def test_a_study_shows_verdicts_with_their_scope_and_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(tmp_path / "three")
    app = open_page("studies", tmp_path, monkeypatch)
    assert not app.exception
    said = words(app)
    assert "3 runs of one experiment" in said
    assert "Run by run" in [header.value for header in app.header]
    app.button[0].click().run()
    assert not app.exception
    said = words(app)
    assert "of the method" in said
    assert "seed-2" in said


def test_a_link_opens_what_it_names(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        shutil.copytree(run_folder, tmp_path / name, ignore=shutil.ignore_patterns("report"))
    link = {"run": "first", "arms": "sl_cai", "prompt": digest("Question 7 of the helpful kind?")}
    app = open_page("responses", tmp_path, monkeypatch, link, uncovered=True)
    assert app.sidebar.selectbox[0].value == "first"
    said = words(app)
    assert "Question 7 of the helpful kind?" in said
    assert "**sl\\_cai**" in said or "**sl_cai**" in said
    assert "**rl_cai**" not in said
    app = open_page("responses", tmp_path, monkeypatch, {"run": "gone", "prompt": "0" * 12})
    assert not app.exception
    assert "gone is not here" in words(app)
    assert "What this link names is not among these" in words(app)


def test_search_finds_text_in_all_runs_and_leads_there(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        shutil.copytree(run_folder, tmp_path / name, ignore=shutil.ignore_patterns("report"))
    app = open_page("search", tmp_path, monkeypatch, {"text": "question 7 ", "suite": "evasiveness"}, uncovered=True)
    assert not app.exception
    said = words(app)
    assert "16 responses of 384, in 2 runs" in said
    assert "evasiveness: " in said
    app.text_input[0].set_value("no such words").run()
    assert "Nothing matches" in words(app)


def test_the_arena_says_how_many_votes_would_settle_it(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "mine", ignore=shutil.ignore_patterns("report")))
    app = open_page("arena", folder, monkeypatch, uncovered=True)
    assert "About 985 more votes would settle it: 985 in all" in app.info[0].value  # 5 times 197
    app.button(key="left").click().run()
    assert "About 984 more votes" in app.info[0].value
