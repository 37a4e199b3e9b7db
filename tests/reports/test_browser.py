"""The dashboard in a real browser: every page opens, figures are drawn, a vote by key reaches the SQLite file.

Needs a Chromium (any of `BROWSERS` on PATH, or $CAI_CHROMIUM) and playwright; skipped, saying so, without them.
$CAI_SCREENSHOTS names a folder that keeps each page's picture.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import reports
from reports.votes import Votes

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'cai-harness[dashboard]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = os.environ.get("CAI_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(BROWSERS)} is on PATH")
FIGURES = {"frontier": 6, "revisions": 2, "feedback": 6, "evasiveness": 2, "goodharting": 4}
APP = Path(reports.__file__).parent / "app.py"
PAGES = sorted(path.stem for path in (APP.parent / "views").glob("[a-z]*.py"))


def serve(runs: Path, log: Path, app: Path = APP) -> tuple[subprocess.Popen[bytes], str]:
    """The dashboard as `cai dashboard` starts it, on a free port, once it answers."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"server.port": port, "server.address": "127.0.0.1", "server.headless": "true",
               "server.fileWatcherType": "none", "browser.gatherUsageStats": "false"}  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(app),
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    with log.open("wb") as out:
        server = subprocess.Popen(command, env=os.environ | {"CAI_RUNS_DIR": str(runs)}, stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1):
                return server, url
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
    server.kill()
    raise AssertionError(f"the dashboard did not start: {log.read_text()}")


@pytest.fixture(scope="module")
def runs(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    shutil.copytree(run_folder, folder / "synthetic", ignore=shutil.ignore_patterns("report", "votes.sqlite*"))
    return folder


@pytest.fixture(scope="module")
def url(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server, at = serve(runs, tmp_path_factory.mktemp("log") / "streamlit.log")
    yield at
    server.terminate()
    server.wait(timeout=20)


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1400, "height": 1000}, color_scheme="light")
        context.set_default_timeout(20_000)
        yield context.new_page()
        browser.close()


def settled(page: Any) -> None:
    """Wait until the page's script has run to its end."""
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    page.wait_for_selector("h1")


def keep(page: Any, name: str, folder: Path) -> None:
    """A picture of the whole page: Streamlit scrolls within, so the window grows first."""
    folder = Path(os.environ.get("CAI_SCREENSHOTS", folder))
    folder.mkdir(parents=True, exist_ok=True)
    height = page.evaluate("document.querySelector('[data-testid=\"stMainBlockContainer\"]').scrollHeight")
    page.set_viewport_size({"width": 1400, "height": max(1000, int(height) + 60)})
    page.screenshot(path=folder / f"{name}.png")
    page.set_viewport_size({"width": 1400, "height": 1000})


@pytest.mark.parametrize("name", PAGES)
def test_page_is_drawn(name: str, page: Any, url: str, tmp_path: Path) -> None:
    page.goto(f"{url}/{'' if name == 'overview' else name}")
    page.wait_for_selector(f"h1:has-text('{name.capitalize()}')")
    settled(page)
    assert page.locator('[data-testid="stException"]').count() == 0
    assert page.locator('[data-testid="stAlert"]:has-text("Not measured")').count() == 0
    figures = page.locator('[data-testid="stMain"] [data-testid="stImage"] :is(img, svg)')
    if name in FIGURES:
        # The script's end comes before the browser has drawn what it sent.
        sync_api.expect(figures).to_have_count(FIGURES[name], timeout=20_000)
        assert all(figures.nth(i).bounding_box()["width"] > 300 for i in range(FIGURES[name]))
    keep(page, name, tmp_path)
    assert (Path(os.environ.get("CAI_SCREENSHOTS", tmp_path)) / f"{name}.png").stat().st_size > 10_000


def test_a_vote_by_key_reaches_the_file(page: Any, url: str, runs: Path, tmp_path: Path) -> None:
    page.goto(f"{url}/arena")
    page.get_by_role("button", name="Show them").click()
    # While the page runs anew, the old button may stand beside the new one.
    sync_api.expect(page.locator("button:enabled", has_text="Left is better")).to_have_count(1, timeout=20_000)
    settled(page)
    for number, key in enumerate("123", start=1):
        page.keyboard.press(key)
        page.wait_for_selector(f"text=/^{number} votes? by 1 voter on/")
        settled(page)
    keep(page, "arena-voted", tmp_path)
    votes = Votes(runs / "synthetic" / "votes.sqlite").table()
    seen = pd.Series("left", votes.index).where((votes["winner"] == "a") == (votes["order"] == "ab"), "right")
    assert seen.where(votes["winner"] != "tie", "tie").tolist() == ["left", "tie", "right"]


def test_responses_open_when_asked(page: Any, url: str, tmp_path: Path) -> None:
    """A model's HTML stays text; no script of it runs."""
    said: list[str] = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    for name in ("responses", "revisions", "goodharting", "feedback"):
        page.goto(f"{url}/{name}")
        page.get_by_role("button", name="Show them").click()
        page.wait_for_selector('button:has-text("Show them")', state="detached")
        settled(page)
        assert page.locator('[data-testid="stMain"] [style*="blur"]').count() == 0
        keep(page, f"{name}-shown", tmp_path)
    page.goto(f"{url}/responses")
    page.get_by_role("button", name="Show them").click()
    page.wait_for_selector("text=<script>alert")
    assert not said
