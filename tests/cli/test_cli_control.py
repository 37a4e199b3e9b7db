"""`cai control`: runs, holds results against what was expected, and says by its exit code how that went."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Cai = Callable[..., tuple[int, str, str]]


@pytest.fixture
def expecting(tiny_experiment: Path, tiny_run: Path, tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """The tiny experiment with an `expect:`, and a copy of its finished run."""

    def write(expect: str) -> tuple[Path, Path]:
        file = tmp_path / "control.yaml"
        file.write_text(tiny_experiment.read_text() + expect)
        if not (tmp_path / "run").exists():
            shutil.copytree(tiny_run, tmp_path / "run")
        return file, tmp_path / "run"

    return write


def test_exit_codes_say_whether_expectations_were_met(cai: Cai, expecting: Callable[[str], tuple[Path, Path]]) -> None:
    file, run = expecting("expect: {no_decisive_claims: true}\n")
    before = {path: path.stat().st_mtime_ns for path in (run / "stages").rglob("manifest.json")}
    code, printed, said = cai("control", file, "--out", run)
    assert code == 0, said
    assert "1 of 1 expectations met" in printed
    assert {path: path.stat().st_mtime_ns for path in (run / "stages").rglob("manifest.json")} == before
    file, run = expecting("expect: {no_decisive_claims: true, more_evasive: [rl_cai, rl_cai_cot]}\n")
    code, printed, _ = cai("control", file, "--out", run, "--json")
    assert code == 1
    rows = json.loads(printed[printed.index("[\n") :])
    assert [row["met"] for row in rows] == [False, True]


def test_an_experiment_that_expects_nothing_is_refused(cai: Cai, tiny_experiment: Path) -> None:
    code, _, errors = cai("control", tiny_experiment)
    assert code == 2
    assert "expects nothing; add expect:" in errors
    assert len(errors.strip().splitlines()) == 1
