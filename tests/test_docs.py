"""The documentation is true: its commands run, its examples load, its links lead somewhere.

Every `bash` block of README and docs is carried out line by line in a folder that holds what it speaks of: a finished
run of the tiny model, responses, a model, a judge behind a server, and the files that the page itself shows. A line
that this test does not know how to carry out fails it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from harness import cli
from harness.experiment import Experiment
from suites.gate import Gate

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
LINKED = [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
Cai = Callable[..., tuple[int, str, str]]

# Lines that are looked at and not carried out, by their beginning, and why.
NOT_RUN = {
    "pip install tox && tox -e demo": "installs and trains for minutes; the demo's own job",
    "pip install tox && tox -e py": "runs these tests",
    "vllm serve": "another program, on a GPU",
}
PARSED_ONLY = {"dashboard": "serves until it is stopped; tests/reports/test_browser.py opens it"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def lines(page: Path) -> list[str]:
    """The command lines of a page's bash blocks, continued ones joined."""
    joined = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


# ---------------------------------------------------------------- commands


class Judge(BaseHTTPRequestHandler):
    """An OpenAI-compatible server whose model always prefers A."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        top = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -3.0}]
        choice = {"message": {"content": "A"}, "logprobs": {"content": [top[0] | {"top_logprobs": top}]}}
        body = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Judge) as it:
        threading.Thread(target=it.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{it.server_port}"
        it.shutdown()


@pytest.fixture
def place(page: Path, tiny_run: Path, tiny_model: Path, tiny_experiment: Path, own_data: Path, tmp_path: Path) -> Path:
    """A folder in which a page's commands make sense."""
    tiny = yaml.safe_load(tiny_experiment.read_text())
    (tmp_path / "experiments").mkdir()
    shutil.copy(ROOT / "experiments" / "paper.yaml", tmp_path / "experiments")
    (tmp_path / "runs").mkdir()
    for name, run in (("demo", "demo"), ("gpu", "gpu-0"), ("demo", "demo-1")):
        (tmp_path / "experiments" / f"{name}.yaml").write_text(yaml.safe_dump(tiny | {"name": name}))
        shutil.copytree(tiny_run, tmp_path / "runs" / run)  # commands write into them
    shutil.copytree(tiny_run, tmp_path / "runs" / "gpu")
    if "runs/mine" in page.read_text():  # reuses the tiny run's stages, so that only what is new is trained
        shutil.copytree(tiny_run, tmp_path / "runs" / "mine")
    (tmp_path / "MODEL").symlink_to(tiny_model)
    for arm, name in (("a", "answers"), ("old", "baseline"), ("new", "candidate")):
        rows = [{"prompt": f"Why is {i} odd?", "response": f"It is {i}.", "arm": arm} for i in range(12)]
        rows += [row | {"arm": "b", "response": "No."} for row in rows] if name == "answers" else []
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "gate.yaml").write_text("metrics: {evasive_rate: {better: lower, margin: 0.1}}")
    (tmp_path / "ConstitutionalHarmlessnessPaper").symlink_to(own_data / "paper")
    for file in ("principles/principles.txt", "llm-swarm/constitution.json"):
        shutil.copy(own_data / file, tmp_path)
    for text in (*blocks(page, "python"), *blocks(page, "yaml")):
        named = re.match(r"# ([\w.-]+\.(?:py|yaml))\n", text)
        if named:
            content = yaml.safe_load(text) if named[1].endswith("yaml") else {}
            shown = yaml.safe_dump(tiny | content) if "arms" in content else text
            (tmp_path / named[1]).write_text(shown)
    return tmp_path


@pytest.mark.parametrize("page", [p for p in PAGES if lines(p)], ids=lambda p: p.name)
def test_every_command_runs(page: Path, cai: Cai, place: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for line in lines(page):
        bare = re.sub(r"\s+#.*", "", line)
        if any(bare.startswith(known) for known in NOT_RUN):
            continue
        words = shlex.split(bare.replace("http://localhost:8000", server))
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)  # an environment variable: CUDA_VISIBLE_DEVICES means nothing here
        assert words[:1] == ["cai"], f"{page.name}: this test does not know how to carry out: {line}"
        if words[1] in PARSED_ONLY:
            parse(words[1:])
            continue
        code, out, errors = cai(*words[1:])
        judged = words[1] in ("compare", "judge") and code in (0, 1, 2) and "error:" not in errors
        assert code == 0 or judged, f"{page.name}: {line}\nexit code {code}\n{out[-500:]}{errors[-500:]}"


def find(words: list[str]) -> tuple[Any, list[str]]:
    """(the command that `cai WORDS` calls, its arguments)."""
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no such command: cai {' '.join(words)}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def parse(words: list[str]) -> None:
    """Raises where `cai` would not understand `words`."""
    command, rest = find(words)
    command.make_context("cai", list(rest))


@pytest.mark.parametrize("page", LINKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_running_text_exist(page: Path) -> None:
    for span in re.findall(r"`cai ([^`]+)`", page.read_text(encoding="utf-8")):
        command, rest = find(span.split("|")[0].split())
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for option in re.findall(r"--[a-z-]+", " ".join(rest)):
            assert option in known, f"no such option: {option} in `cai {span}`"


# ---------------------------------------------------------------- examples


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "yaml")], ids=lambda p: p.name)
def test_every_yaml_example_is_valid(page: Path) -> None:
    from constitutions import Constitution
    from constitutions.plain import PrincipleTemplate

    for text in blocks(page, "yaml"):
        content = yaml.safe_load(text)
        if "{principle}" in text:
            PrincipleTemplate.model_validate(content)
        elif "jobs" in content:  # a workflow of GitHub's: its own commands must be ours
            for step in content["jobs"]["gate"]["steps"]:
                if str(step.get("run", "")).startswith("cai "):
                    parse(shlex.split(step["run"])[1:])
        elif "critique_revision" in content:
            Constitution.model_validate(content)
        elif "metrics" in content:
            Gate.model_validate(content)
        else:
            Experiment.model_validate(content)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_examples_compile_and_are_short(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")
        assert len(text.splitlines()) <= 60


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("page", LINKED, ids=lambda p: p.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"{page.name}: {target} leads nowhere"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page.name}: {target}: no such heading"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, queue = set(), [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        targets = re.findall(r"\]\(([^)\s#]+)\)", page.read_text(encoding="utf-8"))
        queue += [(page.parent / target).resolve() for target in targets if not target.startswith("http")]
    assert {p for p in PAGES if p.parent.name == "docs"} <= seen


def test_an_unknown_command_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["compare", "a", "b", "--no-such-option"])
    with pytest.raises(AssertionError, match="no such command"):
        parse(["no-such-command"])
