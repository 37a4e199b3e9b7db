"""Whatever is typed or named: exit 0, 1 or 2, at most one line of error, no traceback, nothing changed but --out.

CAI_HOSTILE_EXAMPLES sets how many commands are generated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from harness import cli
from tests.generated import CASES, Case

EXAMPLES = int(os.environ.get("CAI_HOSTILE_EXAMPLES", "40"))
CAMPAIGN = EXAMPLES > 1000  # goes on after a failure, to find them all
PROGRESS = re.compile(r"\[\d+/\d+\] ")  # a line a stage or suite, where there is no terminal
OUTCOMES: Counter[str] = Counter()
SLOWEST: list[tuple[float, str]] = []
FAILED: list[str] = []


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a table of every kind."""
    from tests.reports.conftest import write_run

    return write_run(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[None]:
    """For the campaign: what was tried, as one line of JSON in the file that CAI_HOSTILE_TOLD names."""
    yield
    if name := os.environ.get("CAI_HOSTILE_TOLD"):
        found = {"outcomes": OUTCOMES, "slowest": sorted(SLOWEST)[-5:], "failed": FAILED}
        Path(name).write_text(json.dumps(found))
    assert not FAILED


def content(folder: Path) -> dict[str, str]:
    """Hashes of the files in `folder`, but for those in a folder that --out, or its default, names there."""
    outs = {"compare", "--out"}
    files = (path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in outs)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def place(case: Case, folder: Path, whole_run: Path) -> list[str]:
    """Write the case's files; its arguments with OUT and RUN as paths."""
    out, run = folder / "out", folder / "run"
    if any(word.split(":")[0] == "RUN" for word in case.arguments):
        shutil.copytree(whole_run, run)
    for name, data in case.files.items():
        path = folder / "in" / name
        if name.startswith("RUN/"):
            tables = sorted((run / "results").rglob("*.parquet"))
            which = name.removeprefix("RUN/")
            path = tables[int(which) % len(tables)] if which.isdigit() else run / which
        path.write_bytes(data)
    words = {"OUT": str(out), "RUN": str(run)}
    return [f"{run}{word[3:]}" if word.startswith("RUN:") else words.get(word, word) for word in case.arguments]


def called(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["cai", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    raise AssertionError("main() returned")


@settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES <= 40, database=None,
          suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink])  # fmt: skip
@given(case=CASES)
def test_every_command_stands_everything(
    case: Case, whole_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        stands(case, whole_run, monkeypatch, capsys)
    except AssertionError as error:
        if not CAMPAIGN:
            raise  # hypothesis makes the case as small as it can
        FAILED.append(f"{case}: {error}")


def stands(case: Case, whole_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run one command in a folder of its own and check all that is promised of it."""
    from harness.runner import local

    def enough(*_: object, **__: object) -> Path:
        return Path("report")

    monkeypatch.setenv("COLUMNS", "200")
    # What comes after a plan is accepted is training, and a server that runs until it is stopped.
    monkeypatch.setattr(local, "execute", enough)
    with tempfile.TemporaryDirectory() as name, monkeypatch.context() as patched:
        folder = Path(name)
        (folder / "in").mkdir()
        patched.setenv("CAI_CACHE", str(folder / "cache"))
        patched.setattr("harness.cli.view._serve", lambda *_: 0)
        arguments = place(case, folder, whole_run)
        patched.chdir(folder / "in")
        before = content(folder / "in")
        capsys.readouterr()
        began = time.monotonic()
        code = called(arguments, patched, capsys)
        took = time.monotonic() - began
        out, said = capsys.readouterr()
        changed = content(folder / "in") != before
        kept = list((folder / "cache").rglob("error-*"))
    command = arguments[0] if arguments else ""
    OUTCOMES[f"{command if command.isalpha() else 'other'}: exit {code}"] += 1
    SLOWEST.append((round(took, 1), " ".join(arguments)))
    case_said = f"{arguments}\n{out}\n{said}"
    assert code in (0, 1, 2), case_said
    assert "Traceback" not in out + said, case_said
    assert "unexpected:" not in said, case_said
    assert not kept, case_said
    assert len(re.findall("^error:", said, re.MULTILINE)) == (1 if code == 2 and said else 0), case_said
    if code == 2 and said:
        errors = [line for line in said.removesuffix("\n").split("\n") if not PROGRESS.match(line)]
        assert len(errors) == 1, case_said
    assert not changed, case_said
    shown = [c for c in out + said if unicodedata.category(c) == "Cc" and c not in "\n\r"]
    assert not shown or "--help" in arguments, case_said
    assert took < 60, case_said
