"""In a real browser: runs at work, failed and finished, a study of three seeds, two runs side by side, and links.

Nothing may appear on the browser's console. Needs what tests/reports/test_browser.py needs.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import events
from reports import study
from tests.reports import test_browser as browsing
from tests.reports.conftest import training_row, write_study

pytestmark, page = browsing.pytestmark, browsing.page
FIGURES = '[data-testid="stMain"] [data-testid="stImage"] :is(img, svg)'
STAGES = {"data": [], "helpful_only": ["data"], "rl_cai": ["helpful_only"], "report": ["rl_cai"]}


@pytest.fixture(scope="module")
def runs(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    write_study(root / "three")
    (found,) = study.find(root)
    study.table(study.judge(found.cells)).to_parquet(root / "three" / "claims.parquet")
    shutil.copytree(run_folder, root / "finished", ignore=shutil.ignore_patterns("report"))
    for name in ("at-work", "failed"):
        (root / name / "stages").mkdir(parents=True)
        log = events.Log(root / name)
        log.begin(STAGES)
        log.stage("data", 1, 4)
        log.write("finished", stage="data", seconds=4.0, tokens=800, device="cpu", peak_memory_bytes=2**30)
        training = log.stage("helpful_only", 2, 4)
        for step in range(1, 6):
            training.row(training_row(step, f"Answer number {step}."))
        if name == "failed":
            log.failed("helpful_only", OSError("the disk is full"))
        else:
            training.advance(5, 12, "PM score")
    return root


@pytest.fixture(scope="module")
def url(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server, url = browsing.serve(runs, tmp_path_factory.mktemp("log") / "log")
    yield url
    server.terminate()
    server.wait(timeout=20)


@pytest.fixture
def console(page: Any) -> Iterator[list[str]]:
    """What the browser's console said of errors; it must be nothing at the test's end.

    Streamlit asks each page's own address for its server first, and then the root: these two misses are its own.
    """
    said: list[str] = []
    page.set_default_timeout(60_000)  # these pages read several runs
    browsing.sync_api.expect.set_options(timeout=30_000)

    def hear(message: Any) -> None:
        if message.type == "error" and "/_stcore/" not in message.location.get("url", ""):
            said.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: said.append(str(error)))
    yield said
    page.remove_listener("console", hear)
    assert said == []


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("at-work", ["running", "1 of 4", "5 of 12", "Training: helpful_only", "Answer number 5."]),
        ("failed", ["helpful_only failed: OSError: the disk is full", "Training: helpful_only"]),
        ("finished", ["3 of 3", "Training: rl_cai", "PM score"]),
    ],
)
def test_a_run_during_after_a_failure_and_at_its_end(
    run: str,
    words: list[str],
    page: Any,
    url: str,
    console: list[str],
    tmp_path: Path,
) -> None:
    page.goto(f"{url}/run?run={run}")
    page.wait_for_selector("h1:has-text('Run')")
    browsing.settled(page)
    for text in words:
        browsing.sync_api.expect(page.get_by_text(text).first).to_be_attached()
    charts = page.locator('[data-testid="stVegaLiteChart"]')
    browsing.sync_api.expect(charts).to_have_count(4)
    assert page.locator('[data-testid="stException"]').count() == 0
    browsing.keep(page, f"run-{run}", tmp_path)


def test_a_study_of_three_seeds(page: Any, url: str, console: list[str], tmp_path: Path) -> None:
    page.goto(f"{url}/studies")
    page.wait_for_selector("h1:has-text('Studies')")
    browsing.settled(page)
    assert re.search(r"\?study=three$", page.url)
    for text in ("3 runs of one experiment", "of the method", "Run by run"):
        browsing.sync_api.expect(page.get_by_text(text).first).to_be_attached()
    browsing.sync_api.expect(page.locator(FIGURES)).to_have_count(3)
    page.get_by_role("button", name="Evasive").click()
    browsing.sync_api.expect(page.locator(FIGURES)).to_have_count(4)
    browsing.settled(page)
    link = page.url
    page.goto(f"{url}/arena?run=finished")
    browsing.settled(page)
    page.goto(link)
    browsing.sync_api.expect(page.locator(FIGURES)).to_have_count(4)
    browsing.settled(page)
    assert page.locator('[data-testid="stException"]').count() == 0
    browsing.keep(page, "study", tmp_path)
    page.get_by_role("link", name="Open three/seed-1").click()
    page.wait_for_selector("h1:has-text('Overview')")
    browsing.settled(page)
    assert "run=three%2Fseed-1" in page.url or "run=three/seed-1" in page.url


def test_two_runs_beside_one_another(runs: Path, page: Any, url: str, console: list[str], tmp_path: Path) -> None:
    about = json.loads((runs / "finished" / "run.json").read_text())
    about["versions"]["torch"] = "2.14.0"
    (runs / "finished" / "run.json").write_text(json.dumps(about))
    page.goto(f"{url}/compare?run=three/seed-1&other=finished&figure=win_rates")
    page.wait_for_selector("h1:has-text('Compare')")
    browsing.settled(page)
    for text in ("2.14.0", "What differs between the two experiments", "Who wins against whom"):
        browsing.sync_api.expect(page.get_by_text(text).first).to_be_attached()
    browsing.sync_api.expect(
        page.locator('[data-testid="stMain"] [data-testid="stImage"] :is(img, svg)')
    ).to_have_count(2)
    browsing.keep(page, "compare-two-runs", tmp_path)


def test_what_is_selected_stands_in_the_address(page: Any, url: str, console: list[str]) -> None:
    """From a search to a prompt's answers, and the same view opened again by its address."""
    page.goto(f"{url}/search")
    page.wait_for_selector("h1:has-text('Search')")
    browsing.settled(page)
    page.get_by_label("Text in a prompt or response").fill("question 7 ")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=/32 responses of 768, in 4 runs/")
    browsing.settled(page)
    assert "text=question+7" in page.url
    page.get_by_text("All answers to this prompt").first.click()
    page.wait_for_selector("h1:has-text('Responses')")
    browsing.settled(page)
    assert all(f"{name}=" in page.url for name in ("run", "prompt", "text"))
    link = page.url
    page.goto(f"{url}/arena?run=finished")
    page.wait_for_selector("h1:has-text('Arena')")
    browsing.settled(page)
    page.goto(link)
    page.wait_for_selector("h1:has-text('Responses')")
    browsing.settled(page)
    assert page.url == link
    page.get_by_role("button", name="Show them").click()
    page.wait_for_selector("text=Question 7 of the helpful kind?")
