"""How long the dashboard takes to open on a run of 50,000 responses: from asking for a page to all of it shown.

python benchmarks/dashboard_50k.py [--responses N] [--repeats R]

The runs are synthetic (that of tests/reports, grown: 6 arms and two snapshots of rl_cai, answers of 80 words): two
seeds of one experiment with half of the responses each, so that Studies, Compare and Search read all of them. "cold" is
a page's first opening by a new server in a new browser, its scripts and the server's imports included; "warm" is the
median of R further openings, each a session of its own. Shown: the last element of the page is there and its script
has ended. The peer, "bare", is an app of one title that imports pandas: Streamlit's own share. Needs Chromium and
playwright, as tests/reports/test_browser.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
BARE = "import pandas, streamlit as st\nst.title('Bare')\n"
FIGURE = '[data-testid="stImage"] >> nth='
PAGES = {  # page, with its selection in a deep link: what is there when all of it is shown
    "overview": 'text="Provenance"',
    "run": 'text="Samples"',
    "responses": 'text="These responses (CSV)"',
    "responses?run=one&arms=rl_cai&text=word17": 'text="These responses (CSV)"',
    "search": "text=/responses of [0-9]/",
    "search?text=word17&suite=evasiveness": 'text="All that was found (CSV)"',
    "frontier": f"{FIGURE}4",
    "goodharting": "text=/It stands in/",
    "arena": 'text="Votes so far"',
    "compare?run=one&other=two&figure=evasiveness": f"{FIGURE}1",
    "studies": 'text="What differs between them"',
    "bare": 'text="Bare"',
}
WORDS, ARMS_AND_SNAPSHOTS = 80, 8


def module(name: str) -> ModuleType:
    """A file of tests/reports."""
    spec = importlib.util.spec_from_file_location(f"reports_{name}", ROOT / "tests" / "reports" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def grown(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The table with answers of WORDS words, prompts of 20."""
    rng = np.random.default_rng(seed)
    vocabulary = np.array([f"word{i}" for i in range(5000)])
    texts = [" ".join(row) for row in vocabulary[rng.integers(0, 5000, (len(table), WORDS))]]
    asked = {p: f"{p} {' '.join(rng.choice(vocabulary, 15))}" for p in table["prompt"].unique()}
    phrase = np.where(np.arange(len(table)) % 20 == 0, " You are cared for $5.", "")
    return table.assign(response=pd.Series(texts) + phrase, prompt=table["prompt"].map(asked))


def opened(page: Any, url: str, name: str) -> float:
    """Seconds from asking for a page to all of it shown."""
    start = time.perf_counter()
    page.goto(f"{url}/{'' if name in ('overview', 'bare') else name}", wait_until="commit")
    page.wait_for_selector(PAGES[name], timeout=120_000)
    page.wait_for_selector('[data-test-script-state="notRunning"]', timeout=120_000)
    seconds = time.perf_counter() - start
    if page.locator('[data-testid="stException"]').count():
        raise SystemExit(f"{name}: the page shows an exception")
    return seconds


def measure(browsing: ModuleType, runs: Path, folder: Path, name: str, repeats: int) -> dict[str, float]:
    """Seconds of a page, cold and warm."""
    app = browsing.APP
    if name == "bare":
        app = folder / "bare.py"
        app.write_text(BARE)
    server, url = browsing.serve(runs, folder / "server.log", app)
    times = []
    try:
        with browsing.sync_api.sync_playwright() as playwright:
            options = {"executable_path": browsing.CHROMIUM, "args": ["--no-sandbox", "--disable-gpu"]}
            browser = playwright.chromium.launch(**options)
            context = browser.new_context(viewport={"width": 1400, "height": 1000})
            for _ in range(repeats + 1):
                page = context.new_page()
                times.append(opened(page, url, name))
                page.close()
            browser.close()
    finally:
        server.terminate()
        server.wait()
    return {"cold": round(times[0], 2), "warm": round(statistics.median(times[1:]), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    browsing, fixture = module("test_browser"), module("conftest")
    if browsing.CHROMIUM is None:
        raise SystemExit(f"no browser: put one of {', '.join(browsing.BROWSERS)} on PATH or name it in $CAI_CHROMIUM")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        table = grown(fixture.responses(prompts=args.responses // (4 * ARMS_AND_SNAPSHOTS), samples=2))
        for seed, name in enumerate(("one", "two")):
            fixture.write_seed(folder / "runs" / name, "grown", seed, table=table)
        print(f"{2 * len(table):,} responses, seconds to all of the page shown")
        print(f"{'page':46}{'cold':>8}{'warm':>8}")
        rows = {}
        for name in PAGES:
            row = rows[name] = measure(browsing, folder / "runs", folder, name, args.repeats)
            print(f"{name:46}{row['cold']:>8.2f}{row['warm']:>8.2f}", flush=True)
    print(json.dumps({"benchmark": "dashboard_50k", "responses": 2 * len(table), "pages": rows}))


if __name__ == "__main__":
    main()
