"""The tables of docs/scale.md are what the command on that page prints."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", re.findall(r"^cai plan experiments/paper.yaml .*$", PAGE, re.MULTILINE))
def test_its_tables_are_the_commands_own(
    line: str, cai: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, errors = cai(*shlex.split(line)[1:])
    assert code == 0, errors
    assert out.strip() in PAGE, f"docs/scale.md: print its table anew with `{line}`"
