"""Stages whose rows several workers share, on Ray: the bytes of a local run, whoever is lost."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness import events, manifest, store
from harness import experiment as experiments
from harness.cli.run import _locally, _targets
from harness.errors import UserError
from harness.experiment import Compute, Need
from harness.graph import Silent, Stage, Work
from harness.models import spread
from harness.runner import local, ray, ray_engines
from harness.runner.schedule import Run
from tests.runner.support import NEEDS_RAY
from tests.runner.test_ray_runs import artefacts
from tests.runner.test_schedule import task_of

pytestmark = NEEDS_RAY
TWO = Need(workers=2, cpus=1)


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with ray.cluster():
        yield


def answers(work: Work) -> None:
    """Answers of the model, kept as they come; an engine is killed with every batch of its that is heard of.

    deaths: how many engines. end: after how many batches this process is killed, once.
    """
    from harness.kept import Done
    from harness.models.open import open_model
    from pipelines.artefacts import as_asked

    prompts = [f"Say {'again ' * (i % 7)}what {i} is." for i in range(60)]
    done = Done(work, len(prompts), "answers")
    earlier = {row["prompt"] for row in done.rows}
    asked = [prompt for prompt in prompts if prompt not in earlier]
    model = open_model(work.models["base"], batch_size=2)
    killed: list[int] = []
    if spread._helpers and not earlier:
        (helper,) = spread._helpers
        while not helper.ready(model.copies.loading, 1):  # type: ignore[attr-defined]  # a SpreadModel
            pass

    def keep(index: list[int], said: list[Any]) -> None:
        done.keep([{"prompt": asked[i], "response": one.text} for i, one in zip(index, said, strict=True)])
        if work.settings.end and len(done.rows) >= work.settings.end and not earlier:
            os.kill(os.getpid(), signal.SIGKILL)
        for helper in spread._helpers:
            process = helper.process  # type: ignore[attr-defined]  # a RayHelper
            if process and process not in killed and len(killed) < work.settings.deaths:
                killed.append(process)
                os.kill(process, signal.SIGKILL)

    model.sample(asked, max_new_tokens=24, keys=asked, on_batch=keep)
    store.write_table(work.folder / "table.parquet", as_asked(pd.DataFrame(done.rows), prompts))
    done.remove()
    work.count(model.tokens)


class Listener(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """The table of a local run, and its tokens."""
    found = local.execute([stage(tiny_model)], tmp_path_factory.mktemp("local"), seed=0)["answers"]
    about = manifest.read(found)
    assert about is not None
    return (found / "table.parquet").read_bytes(), about["tokens"]


def stage(model: Path, deaths: int = 0, end: int = 0) -> Stage:
    return Stage("answers", answers, {"deaths": deaths, "end": end}, models={"base": str(model)}, kind="sample")


def on_ray(made: Stage, folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    listener = Listener()
    found = ray.execute([Run([made], folder, 0)], listener, asked=Compute(sample=TWO))[0]["answers"]
    about = manifest.read(found)
    assert about is not None
    return found / "table.parquet", about, listener.said


def test_rows_are_shared_and_counted(tiny_model: Path, tmp_path: Path, alone: tuple[bytes, int]) -> None:
    table, about, said = on_ray(stage(tiny_model), tmp_path)
    assert table.read_bytes() == alone[0]
    assert (about["tokens"], about["workers"], said) == (alone[1], 2, [])


def test_a_lost_engine_costs_its_batch_alone(tiny_model: Path, tmp_path: Path, alone: tuple[bytes, int]) -> None:
    table, about, said = on_ray(stage(tiny_model, deaths=1), tmp_path)
    assert table.read_bytes() == alone[0]
    assert about["tokens"] >= alone[1]  # its batch was read twice
    assert len(said) == 1
    assert f"answers: an engine on node {os.uname().nodename} was lost (ActorDiedError); others take its" in said[0]


def test_a_lost_stage_goes_on_row_by_row(tiny_model: Path, tmp_path: Path, alone: tuple[bytes, int]) -> None:
    table, about, said = on_ray(stage(tiny_model, end=20), tmp_path)
    assert table.read_bytes() == alone[0]
    assert about["tokens"] is None  # the first worker's were not kept
    assert len(said) == 1
    assert said[0].startswith(f"answers: its worker on node {os.uname().nodename}, process ")


def test_an_error_in_an_engine_is_the_stages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such luck"):
        ray.execute([Run([Stage("s", fail, kind="score")], tmp_path, 0)], asked=Compute(score=TWO))
    assert events.read(tmp_path).status == "failed"


def fail(work: Work) -> None:
    """An engine that fails at once, while this process has much to do."""
    copies = spread.Copies(unlucky)
    copies.each([[i] for i in range(6000)], lambda _: time.sleep(0.05), lambda _: ("copy", {}), lambda *_: None)


def unlucky() -> None:
    raise UserError("no such luck")


def test_an_engine_that_is_lost_again_and_again_ends_the_stage(tmp_path: Path) -> None:
    said: list[str] = []
    nobody: Any = None  # no driver and no group: nothing is started
    helper = ray_engines.RayHelper(task_of(Stage("s", answers), tmp_path), nobody, nobody, 1, said.append)
    helper.nodes = ["n1"]
    for _ in range(ray_engines.RETRIES):
        helper._lost("ActorDiedError")
    assert len(said) == ray_engines.RETRIES
    with pytest.raises(UserError, match=r"s: lost 4 engines, the last on node n1 \(out of memory\); give it more"):
        helper._lost("out of memory")


FILE = """
name: tiny
models: {{base: {model}}}
scale: {{redteam_prompts: 6, helpful_prompts: 6, heldout_prompts: 6, preference_pairs: 8, gold_pairs: 8,
        max_new_tokens: 8, batch_size: 2}}
arms: [pretrained, sl_cai, rl_cai]
lora: {{rank: 4, alpha: 8, top_layers: 1}}
pm: {{epochs: 1}}
rl: {{updates: 2, rollouts_per_update: 4, minibatch_size: 4, snapshots: 1}}
report_to: none
"""


MADE = ("first_answers", "chains.critiqued", "feedback.plain", "responses", "sample.rl_cai")


def test_samples_chains_labels_and_scores_are_those_of_a_local_run(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(FILE.format(model=tiny_model))
    experiment = experiments.load(file)
    runs = [Run(_targets(experiment, file), tmp_path / name, experiment.seed) for name in ("local", "ray")]
    _locally(runs[:1], Silent())
    shutil.copytree(tmp_path / "local", tmp_path / "ray", symlinks=True)
    for name in MADE:  # all else is done
        shutil.rmtree(tmp_path / "ray" / "stages" / name)
    ray.execute(runs[1:], asked=Compute(sample=TWO, label=TWO, score=TWO))
    assert artefacts(tmp_path / "ray") == artefacts(tmp_path / "local")
    for name in MADE:
        (about,) = [manifest.read(path.parent) for path in (tmp_path / "ray" / "stages" / name).glob("*/manifest.json")]
        assert about is not None
        assert about["workers"] == 2
