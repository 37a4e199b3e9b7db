"""The documentation as a site: what is written from the code is whole, and `mkdocs build --strict` passes."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from harness.experiment import Experiment, Scale
from harness.experiment.section import Section

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cai_docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keys(model: Any, prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        inner = [
            part for part in getattr(field.annotation, "__args__", [field.annotation]) if hasattr(part, "model_fields")
        ]
        found += [prefix + name, *(key for part in inner for key in keys(part, f"{prefix}{name}."))]
    return found


def test_every_key_of_an_experiment_is_in_the_reference(hooks: ModuleType) -> None:
    sections = hooks.experiment_page().split("\n## ")
    named = [(re.findall("`([^`]+)`", part.partition("\n")[0]), part) for part in sections[1:]]
    tables = {"": sections[0]} | {place: part for places, part in named for place in places}
    for key in keys(Experiment):
        place, _, name = key.rpartition(".")
        assert f"\n| `{name}` | " in tables[place], key
    assert len(keys(Experiment)) > 80


def test_a_key_has_its_default_meaning_and_source(hooks: ModuleType) -> None:
    page = hooks.experiment_page()
    assert f"| `redteam_prompts` | whole number, from 2 | `{Scale().redteam_prompts}` | " in page
    assert "| Rounds of critique and revision in a chain. | `4` (3.2) |" in page
    assert "| `clamp` | list of 2 or `null` | `[0.4, 0.6]` |" in page
    assert "| `name` | text | required |" in page


def test_a_key_without_a_description_fails_the_build(hooks: ModuleType) -> None:
    class Undescribed(Section):
        told: int = 1
        """What it is."""
        silent: int = 2

    with pytest.raises(ValueError, match=r"x\.silent has no description; write a string under it"):
        list(hooks._section(Undescribed, ["x"], {}))


def test_every_command_is_in_the_reference(hooks: ModuleType) -> None:
    import typer

    from harness import cli

    page = hooks.command_page()
    commands: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]  # the app has several
    for name, command in commands.items():
        assert f"## `cai {name}`" in page
        for inner in getattr(command, "commands", {}):
            assert f"### `cai {name} {inner}`" in page
    assert "--judge" in page


def test_every_page_is_in_the_navigation(hooks: ModuleType) -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    shown = [next(iter(page.values())) for group in config["nav"] for page in _pages(group)]
    made = {"experiment-file.md", "command-line.md", *hooks.ROOT_PAGES}
    assert sorted(shown) == sorted({path.name for path in (ROOT / "docs").glob("*.md")} | made)


def _pages(group: dict[str, Any]) -> list[dict[str, str]]:
    (value,) = group.values()
    return value if isinstance(value, list) else [group]


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed; `tox -e docs` has it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "redteam_prompts" in (tmp_path / "experiment-file" / "index.html").read_text()
