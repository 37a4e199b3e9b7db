"""`cai constitutions`: what its commands print, write and refuse."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from constitutions import import_paper, load
from harness.cli.constitutions import app
from harness.errors import UserError


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_shows_counts() -> None:
    row = next(line for line in run("list").splitlines() if "default" in line)
    assert re.findall(r"\d+", row) == ["16", "16", "6"]


def test_show_prints_every_principle() -> None:
    default, output = load("default"), run("show", "default")
    assert all(p.id in output for p in [*default.critique_revision, *default.comparison])
    assert default.comparison[0].question in output


def test_show_takes_brackets_literally(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    principle = {"id": "a", "tags": ["[red]"], "critique": "[bold]c[/]", "revision": "[/x]"}
    raw = {"name": "c", "description": "[/d]", "license": "[l]", "critique_revision": [principle]}
    path.write_text(json.dumps(raw | {"comparison": [{"id": "b", "question": "[/q]"}]}))
    output = run("show", str(path))
    assert all(text in output for text in ("[red]", "[bold]c[/]", "[/x]", "[/d]", "[l]", "[/q]"))


def test_validate(tmp_path: Path) -> None:
    assert run("validate", "default") == (
        "default: valid; 16 critique-revision pairs, 16 comparison questions, 6 worked examples\n"
    )
    (tmp_path / "bad.yaml").write_text("name: a\n")
    with pytest.raises(UserError, match=r"bad\.yaml: description: missing; add this key"):
        run("validate", str(tmp_path / "bad.yaml"))


def test_import_writes_once(own_data: Path, tmp_path: Path) -> None:
    prompts, out = own_data / "paper" / "prompts", tmp_path / "paper.yaml"
    assert "3 critique-revision pairs, 3 comparison questions, 6 worked examples" in run(
        "import", str(prompts), "--out", str(out)
    )
    assert load(out) == import_paper(prompts)
    with pytest.raises(UserError, match=r"paper\.yaml: exists already; choose another name or add --force"):
        run("import", str(prompts), "--out", str(out))
    run("import", str(prompts), "--out", str(out), "--force")


def test_import_of_the_published_prompts(reference_data: Path, tmp_path: Path) -> None:
    assert "16 critique-revision pairs, 16 comparison questions, 16 worked examples" in run(
        "import", str(reference_data / "paper" / "prompts"), "--out", str(tmp_path / "paper.yaml")
    )


def test_a_failed_import_writes_nothing(own_data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(own_data / "paper" / "prompts", tmp_path / "prompts"))
    (folder / "RLMadisonInstructions.json").unlink()
    with pytest.raises(UserError, match=r"RLMadisonInstructions\.json: file not found"):
        run("import", str(folder), "--out", str(tmp_path / "paper.yaml"))
    assert not (tmp_path / "paper.yaml").exists()


@pytest.mark.parametrize("command", ["list", "show", "validate", "import"])
def test_help_has_an_example(command: str) -> None:
    assert f"Example: cai constitutions {command}" in run(command, "--help")


def test_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, harness.cli.constitutions; "
        "print([m for m in ('torch', 'transformers', 'pandas', 'yaml', 'constitutions') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
