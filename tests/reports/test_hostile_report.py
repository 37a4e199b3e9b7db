"""A run whose names and texts are hostile: every page, the report, the downloads and the gate's files stay data."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import xml.dom.minidom
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from harness import text
from reports import static
from reports.votes import CSV, Pair, Votes
from suites import elo, gate, judges
from suites.result import SuiteResult
from tests import hostile

NASTY = f"[/INST] :material/delete: :red[x] :smile: {hostile.ESCAPE} <b>x</b> ![i](https://example.org/x) | $x$ =1+1"
NAMES = ["=cmd()", ":material/delete:", NASTY, "a\nb", "\u202eevil"]
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def rename(folder: Path, arm: str) -> None:
    """Give rl_cai that name in every file of a run, and hostile texts to the rest."""

    def changed(value: object) -> object:
        return arm if value == "rl_cai" else f"{value} {NASTY}" if isinstance(value, str) and " " in value else value

    for path in (folder / "results").rglob("*.parquet"):
        table = pd.read_parquet(path)
        for column in table.select_dtypes(["object", "string"]):
            if column not in ("verdict", "test", "suite", "metric", "kind", "mode", "which", "role", "split"):
                table[column] = table[column].map(changed)
        table.to_parquet(path, index=False)
    for path in (folder / "results").rglob("notes.json"):
        path.write_text(json.dumps({"suite": path.parent.name, "notes": [NASTY]}))
    about = json.loads((folder / "run.json").read_text())
    about |= {"name": NASTY, "arms": [arm if a == "rl_cai" else a for a in about["arms"]], "data": [NASTY],
              "device": NASTY, "commit": NASTY, "models": {"base": NASTY}}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(about))


@pytest.fixture(params=range(len(NAMES)), ids=["formula", "icon", "all", "two lines", "direction"])
def nasty_run(request: pytest.FixtureRequest, run_folder: Path, tmp_path: Path) -> tuple[Path, str]:
    folder = tmp_path / "runs" / "nasty"
    shutil.copytree(run_folder, folder, ignore=shutil.ignore_patterns("report"))
    rename(folder, NAMES[request.param])
    return folder, NAMES[request.param]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_is_made_and_holds_it_as_text(nasty_run: tuple[Path, str]) -> None:
    folder, arm = nasty_run
    page = static.render(folder)
    tags = Tags()
    tags.feed(page.read_text())
    assert not tags.seen & {"script", "iframe", "link", "object", "form"}
    assert " ".join(arm.split()) in " ".join(" ".join(tags.text).split())
    for name in ("report.md", "summary.md"):
        said = (folder / "report" / name).read_text()
        outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", said, flags=re.DOTALL | re.MULTILINE)
        assert not CONTROLS.search(outside)
        assert not re.search(r"(?<!\\)<b>|(?<!\\)\]\(https://example", outside)
        assert ":material/delete:" not in outside.replace("\\", "")
    json.loads((folder / "report" / "summary.json").read_text())
    assert not CONTROLS.search((folder / "report" / "scoreboard.tex").read_text())
    for figure in (folder / "report" / "figures").glob("*.svg"):
        xml.dom.minidom.parseString(figure.read_bytes())


def test_every_page_opens_and_shows_it_as_text(nasty_run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'cai-harness[dashboard]'")
    from tests.reports.test_pages import PAGES, open_page

    folder, arm = nasty_run
    if arm not in (NASTY, ":material/delete:"):
        pytest.skip("two of the names are enough for the pages, which take seconds each")
    for page in PAGES:
        app = open_page(page, folder.parent, monkeypatch, uncovered=True)
        assert not app.exception, page
        for kind in ("markdown", "caption", "warning", "info", "success", "error", "subheader"):
            for element in app.get(kind):
                said = str(element.value)
                assert ":material/delete:" not in said.replace("\\", ""), (page, said)
                assert not CONTROLS.search(said), (page, said)
        for table in app.dataframe:
            for column in table.value.select_dtypes(["object", "string"]):
                assert not table.value[column].astype(str).str.startswith(("=", "+", "-", "@")).any()


@pytest.mark.parametrize("arm", [*NAMES, *hostile.FORMULAS])
def test_votes_are_no_formulas_and_are_read_back(tmp_path: Path, arm: str) -> None:
    votes = Votes(tmp_path / "votes.sqlite")
    for number in range(4):
        pair = Pair(f"-{number} {arm}", "harmless", 0, arm, None, "x", "other", None, "y", "ab")
        votes.add(pair, "left" if number else "right", "=judge")
    content = votes.csv()
    rows = list(csv.DictReader(io.StringIO(content)))
    assert list(rows[0]) == CSV
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for cell in row.values())
    (tmp_path / "votes.csv").write_text(content, newline="")
    table = judges.from_votes(tmp_path / "votes.csv")
    assert set(table["arm_a"]) == {arm} or "\r" in arm  # universal line ends, in CSV as such
    assert len(elo.run(table, anchor="other", n_resamples=20).summary) == 2


@pytest.mark.parametrize("name", [*NAMES, *hostile.TEXTS, *hostile.NAMES])
def test_the_gates_files_hold_any_name(name: str) -> None:
    table = pd.DataFrame({"prompt": [f"p{i // 2}" for i in range(40)], "arm": ["baseline", "candidate"] * 20,
                          "response": "a b", "label": "none", "score": 0.0})  # fmt: skip
    judged = gate.judge(
        {"goodharting": SuiteResult("goodharting", pd.DataFrame(), {"responses": table})}, gate.load(None)
    )
    xml.dom.minidom.parseString(gate.junit(judged, name).encode("utf-8"))
    said = gate.markdown(judged, name, name, [name])
    said.encode("utf-8")
    assert not CONTROLS.search(said)
    assert len(said.splitlines()) == len(gate.markdown(judged, "a", "b", ["c"]).splitlines())
    assert text.markdown(name) in said
