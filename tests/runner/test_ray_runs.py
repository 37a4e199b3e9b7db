"""Whole runs of the tiny model on Ray: the same bytes as locally, and nothing done twice where the runner changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness import experiment as experiments
from harness.cli.run import _locally, _targets
from harness.graph import Silent
from harness.runner import ray
from harness.runner.schedule import Run
from tests.runner.support import NEEDS_RAY

pytestmark = NEEDS_RAY

TIMES = {"run.json", "stages.parquet"}  # when a stage was made, and on which machine


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with ray.cluster():
        yield


def artefacts(run: Path) -> dict[str, str]:
    """SHA-256 of every table and all weights."""
    files = [path for pattern in ("*.parquet", "*.safetensors") for path in run.rglob(pattern)]
    assert not list(run.glob("stages/*/*.partial"))
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in TIMES
    }


def made(run: Path) -> dict[str, str]:
    """When each stage was finished."""
    found = [json.loads(path.read_text()) for path in run.glob("stages/*/*/manifest.json")]
    return {about["stage"]: about["finished"] for about in found}


class Enough(Silent):
    """Stops a run, as Ctrl-C does, once so many stages have begun."""

    def __init__(self, stages: int):
        self.left = stages

    def stage(self, name: str, position: int, total: int) -> Silent:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self


def run(file: Path, folder: Path, execute: Any, stages: int | None = None) -> None:
    """The experiment's stages by a runner, or the first of them."""
    experiment = experiments.load(file)
    watcher = Silent() if stages is None else Enough(stages)
    runs = [Run(_targets(experiment, file), folder, experiment.seed)]
    with contextlib.nullcontext() if stages is None else pytest.raises(KeyboardInterrupt):
        execute(runs, watcher)


def test_with_two_workers_every_table_and_all_weights_are_those_of_a_local_run(
    tiny_experiment: Path, tiny_run: Path, tmp_path: Path
) -> None:
    run(tiny_experiment, tmp_path, partial(ray.execute, workers=2))
    assert artefacts(tmp_path) == artefacts(tiny_run)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("first", ["local", "ray"])
def test_begun_with_one_runner_and_ended_with_the_other_nothing_is_done_twice(
    tiny_experiment: Path, tiny_run: Path, tmp_path: Path, first: str
) -> None:
    runners = {"local": _locally, "ray": partial(ray.execute, workers=1)}
    run(tiny_experiment, tmp_path, runners.pop(first), stages=12)
    before = made(tmp_path)
    assert 10 <= len(before) < 20
    (second,) = runners.values()
    run(tiny_experiment, tmp_path, second)
    assert before.items() <= made(tmp_path).items()
    assert artefacts(tmp_path) == artefacts(tiny_run)
    shutil.rmtree(tmp_path)
