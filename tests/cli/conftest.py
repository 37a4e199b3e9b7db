"""How CLI tests call `cai`, and one whole run of a tiny model that they share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import cli

TINY = """
name: tiny
models: {{base: {model}}}
scale: {{redteam_prompts: 6, helpful_prompts: 6, heldout_prompts: 6, preference_pairs: 8, gold_pairs: 8,
        max_new_tokens: 8, batch_size: 8}}
lora: {{rank: 4, alpha: 8, top_layers: 1}}
pm: {{epochs: 1, variants: [hard, one_principle]}}
rl: {{updates: 2, rollouts_per_update: 4, minibatch_size: 4, snapshots: 1}}
revise: {{also_direct: true, also_principles: [2]}}
report_to: none
"""


@pytest.fixture
def cai(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call `cai` with arguments: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cai", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "300")
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def tiny_experiment(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    file.write_text(TINY.format(model=tiny_model))
    return file


@pytest.fixture(scope="session")
def tiny_run(tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all six arms and the four suites, on the tiny model."""
    from harness.cli.run import run

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run(tiny_experiment, folder)
    return folder
