"""Trainings that two workers of Ray Train carry out together: what they leave, and what becomes of a lost one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from harness import experiment as experiments
from harness import manifest, ranks, store
from harness.cli.run import _targets
from harness.errors import UserError
from harness.experiment import Compute, Need
from harness.graph import Silent, Stage, Work
from harness.runner import local, ray, ray_train
from harness.runner.schedule import Run
from tests.conftest import TINY
from tests.runner.support import NEEDS_RAY

pytestmark = NEEDS_RAY
TWO = Compute(pm=Need(workers=2, cpus=1), sft=Need(workers=2, cpus=1), rl=Need(workers=2, cpus=1))


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with ray.cluster():
        yield


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.rows: list[Any] = []

    def stage(self, name: str, position: int, total: int) -> Heard:
        return self

    def say(self, line: str) -> None:
        self.said.append(line)

    def row(self, values: Any) -> None:
        self.rows.append(values)


def train(work: Work) -> None:
    """Shares numbers; in the first try, one of its workers is killed."""
    done, died = work.folder / "done.txt", work.folder / "died"
    resumed = done.exists()
    store.write_text(done, "half")
    ranks.told(None)
    if work.settings.dies == ranks.rank() and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    numbers = ranks.gathered([i * 10 for i in ranks.share(range(5))])
    work.progress.row({"step": 1, "loss": 0.5})
    work.count(7)
    died.unlink(missing_ok=True)
    store.write_json(
        work.folder / "value.json",
        {
            "numbers": numbers,
            "rank": ranks.rank(),
            "resumed": resumed,
            "here": str(Path.cwd()),
            "sharded": work.sharded,
        },
    )


def refuse(work: Work) -> None:
    if ranks.rank() == 1:
        raise UserError("pm: the training loss is not finite") if work.settings.user else ZeroDivisionError("nothing")
    ranks.gathered([0])


def on_ray(stage: Stage, run: Path, asked: Compute = TWO) -> tuple[Path, Heard]:
    heard = Heard()
    folders = ray.execute([Run([stage], run, 0)], heard, asked=asked)[0]
    return folders[stage.name], heard


def test_each_has_a_share_and_the_main_one_writes(tmp_path: Path) -> None:
    folder, heard = on_ray(Stage("a", train, {"dies": None}, kind="pm"), tmp_path)
    value = json.loads((folder / "value.json").read_text())
    assert value["numbers"] == [0, 10, 20, 30, 40]
    assert (value["rank"], value["resumed"], value["sharded"]) == (0, False, False)
    assert value["here"] == str(Path.cwd())
    about = manifest.read(folder)
    assert about is not None
    assert (about["tokens"], about["workers"]) == (7, 2)
    assert about["device"].startswith(("cpu", "NVIDIA"))
    assert (heard.rows, heard.said) == ([{"step": 1, "loss": 0.5}], [])
    assert not list((tmp_path / ray_train.FOLDER).iterdir())


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_is_killed_all_go_on_from_what_was_kept(tmp_path: Path, rank: int) -> None:
    folder, heard = on_ray(Stage("a", train, {"dies": rank}, kind="rl"), tmp_path)
    value = json.loads((folder / "value.json").read_text())
    assert (value["numbers"], value["resumed"]) == ([0, 10, 20, 30, 40], True)
    (said,) = heard.said
    assert said.startswith("a: one of its workers was lost (")
    assert "\n" not in said


def test_what_one_raises_ends_the_stage_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^pm: the training loss is not finite$"):
        on_ray(Stage("a", refuse, {"user": True}, kind="sft"), tmp_path)
    with pytest.raises(Exception, match="nothing") as caught:
        on_ray(Stage("b", refuse, {"user": False}, kind="sft"), tmp_path)
    assert type(caught.value).__name__ == "ZeroDivisionError"


def test_arms_that_two_workers_train_end_in_the_report(tiny_model: Path, tmp_path: Path) -> None:
    """Also with split weights; the same PM and SFT as by one, but for rounding."""
    content = yaml.safe_load(TINY.format(model=tiny_model))
    content |= {"arms": ["sl_cai", "rl_cai"], "suites": ["pm_score"], "revise": {"rounds": 1}}
    content["pm"] = {"epochs": 1}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(content))
    experiment = experiments.load(file)
    targets = _targets(experiment, file)
    split = Compute(sft=Need(workers=2, cpus=1, shard=True), pm=TWO.pm, rl=Need(workers=2, cpus=1, shard=True))
    ray.execute([Run(targets, tmp_path / "two", experiment.seed)], Silent(), asked=split)
    local.execute(targets, tmp_path / "one", seed=experiment.seed)
    assert (tmp_path / "two" / "report" / "index.html").is_file()
    for stage, table in (("gold.harmless", "heldout-harmless"), ("sl_cai", "demonstrations")):
        files = [next((tmp_path / name).glob(f"stages/{stage}/*/{table}.parquet")) for name in ("one", "two")]
        one, two = map(pd.read_parquet, files)
        numbers = one.select_dtypes("number").columns
        np.testing.assert_allclose(one[numbers], two[numbers], atol=1e-4)
        assert one.drop(columns=numbers).equals(two.drop(columns=numbers))


def test_the_first_cause_is_told_and_not_the_others_that_waited_for_it() -> None:
    from ray.exceptions import ActorDiedError
    from ray.train import WorkerGroupError

    waiting = RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")
    assert "died" in ray_train._lost(WorkerGroupError("", {0: waiting, 1: ActorDiedError()}))
    for raised in (UserError("the loss is not finite"), ZeroDivisionError("nothing")):
        with pytest.raises(type(raised), match=str(raised)):
            ray_train._lost(WorkerGroupError("", {0: waiting, 1: raised}))
