"""The static report: content, offline, escaped, and right words for what is missing."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from reports import figures_training, static, tables
from reports.load import RunData


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html(run_folder: Path) -> str:
    return static.render(run_folder).read_text()


def test_every_section_and_figure_is_there(html: str) -> None:
    page = Page(html)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == sum(len(draws) for _, draws in static.CHAPTERS)
    assert all(image["alt"] and len(image["alt"]) > 40 for image in images)
    for words in ("Scoreboard of arms", "The argument in five rows", "Human harm labels used", "Provenance", "Rerun",
                  "What this run can and cannot show", "abc1234", "15.0 minutes"):  # fmt: skip
        assert words in page.text
    for verdict in ("reproduced", "contradicted", "underpowered", "judge cannot tell", "not measured"):
        assert f"</span> {verdict}</span>" in html  # the word stands beside its colour


def test_it_opens_without_a_network(html: str) -> None:
    sources = [attributes.get(name) or "" for _, attributes in Page(html).tags for name in ("src", "href")]
    assert all(source.startswith(("data:", "#")) for source in sources if source)
    assert "@import" not in html
    assert "url(" not in html


def test_model_text_is_text(html: str) -> None:
    page = Page(html)
    assert '<script>alert("x")</script>' in page.text
    assert not any(tag == "script" or "onerror" in attributes for tag, attributes in page.tags)


def test_markdown_latex_json_and_svg(html: str, run_folder: Path) -> None:
    folder = run_folder / "report"
    summary = json.loads((folder / "summary.json").read_text())
    harmless = [m for m in summary["metrics"] if m["metric"] == "elo_harmlessness" and m["step"] is None]
    assert {m["arm"] for m in harmless} == set(RunData(run_folder).arms)
    assert summary["not_measured"] == {}
    assert len(summary["claims"]) == 5
    markdown = (folder / "report.md").read_text()
    for image in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        ElementTree.fromstring((folder / image).read_text())
    assert "Scoreboard of arms" in (folder / "summary.md").read_text()
    outside = re.sub(r"(?s)(`{3,})text\n.*?\n\1", "", markdown)
    assert "<script>" in markdown
    assert "<script>" not in outside
    tex = (folder / "scoreboard.tex").read_text()
    assert r"rl\_cai\_cot" in tex
    assert tex.count(r"\\") == 1 + len(RunData(run_folder).arms)


def test_what_is_missing_is_said_with_its_command(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "part"
    shutil.copytree(run_folder, folder, ignore=shutil.ignore_patterns("report"))
    shutil.rmtree(folder / "results" / "elo")
    (folder / "results" / "claims.parquet").unlink()
    (folder / "results" / "training.parquet").write_bytes(b"PAR1 cut short")
    text = Page(static.render(folder).read_text()).text
    assert "no metric elo_helpfulness in results/elo/summary.parquet" in text
    assert "cai run experiments/demo.yaml" in text
    assert "results/training.parquet cannot be read" in text
    assert "results/claims.parquet is missing" in text


@pytest.mark.parametrize("content", [None, "not json {", "[1, 2]", '{"models": 3, "data": 4, "arms": "rl_cai"}'])
def test_empty_and_foreign_folders_get_a_page(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    text = Page(static.render(tmp_path).read_text()).text
    assert "no suite has results in this folder" in text


def test_revisions_are_read_off_the_papers_condition(run_folder: Path) -> None:
    """Critiqued, by all principles: not whichever chains come first in the table."""
    said = figures_training.revisions(RunData(run_folder)).reading
    assert "rises from the first answer to the last revision (1.70 [1.40, 2.00])" in said
    assert "falls from the first answer to the last revision (-1.10 [-1.40, -0.80])" in said


def test_the_papers_scale_stands_beside_ours(run_folder: Path, tmp_path: Path) -> None:
    rows = tables.beside_paper(RunData(run_folder)).set_index("what")
    assert rows.loc["critique-revision pairs for a red-team prompt", ["the paper", "this run"]].tolist() == [
        "4 pairs",
        "3",
    ]
    assert rows.loc["clamp of chain-of-thought labels", ["the paper", "this run"]].tolist() == [
        "0.4 to 0.6 probability", "0.4 to 0.6"]  # fmt: skip
    assert rows.loc["red-team prompts written by people", "the paper"] == "42,496 prompts"
    (tmp_path / "experiment.yaml").write_text("scale: [")
    torn = RunData(tmp_path)
    assert tables.beside_paper(torn).empty
    assert "experiment.yaml cannot be read" in torn.problems[0]


def test_the_same_run_gives_the_same_report(html: str, run_folder: Path) -> None:
    assert static.render(run_folder).read_text() == html
