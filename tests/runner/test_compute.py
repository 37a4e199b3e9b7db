"""What stages get of the machines that are there."""

from __future__ import annotations

import pytest

from harness.errors import UserError
from harness.experiment import Compute, Experiment, Need
from harness.graph import Stage, Work
from harness.runner import compute
from harness.runner.compute import Node

LAPTOP = [Node("laptop", 2, 0, 16 * 2**30)]
SERVER = [Node("server", 64, 0, 256 * 2**30)]
BOX = [Node("box", 96, 8, 900 * 2**30)]
MIXED = [Node("head", 32, 0, 64 * 2**30), Node("gpu", 64, 4, 500 * 2**30)]


def nothing(work: Work) -> None:
    return


@pytest.mark.parametrize(
    ("nodes", "kind", "workers", "expected"),
    [
        (LAPTOP, "pm", None, "1 CPU"),
        (LAPTOP, "pm", 1, "2 CPUs"),
        (LAPTOP, "table", 1, "1 CPU"),
        (SERVER, "rl", None, "16 CPUs"),
        (SERVER, "rl", 8, "8 CPUs"),
        (SERVER * 2, "rl", 8, "16 CPUs"),
        (BOX, "rl", None, "1 GPU, 12 CPUs"),
        (BOX, "table", None, "1 CPU"),
        (MIXED, "sample", None, "1 GPU, 16 CPUs"),
    ],
)
def test_defaults_come_from_what_is_there(nodes: list[Node], kind: str, workers: int | None, expected: str) -> None:
    assert compute.told(compute.need(Stage("s", nothing, kind=kind), Compute(), nodes, workers)) == expected


def test_what_is_asked_for_is_given_and_the_rest_derived() -> None:
    asked = Compute(sample=Need(gpus=0.5), rl=Need(cpus=4, memory=64))
    given = {kind: compute.told(compute.need(Stage("s", nothing, kind=kind), asked, BOX)) for kind in ("sample", "rl")}
    assert given == {"sample": "0.5 GPUs, 12 CPUs", "rl": "1 GPU, 4 CPUs, 64 GiB"}


@pytest.mark.parametrize(
    ("asked", "said"), [({"gpus": 2}, "2 GPUs"), ({"cpus": 3}, "3 CPUs"), ({"memory": 17}, "17 GiB")]
)
def test_more_than_any_machine_has_is_refused(asked: dict[str, float], said: str) -> None:
    with pytest.raises(
        UserError, match=rf"compute\.pm: .*{said}.* asked, and no machine has that .*laptop: 2 CPUs, 0 GPUs, 16 GiB"
    ):
        compute.check([Stage("s", nothing, kind="pm")], Compute(pm=Need(**asked)), LAPTOP)


@pytest.mark.parametrize(
    ("nodes", "asked", "workers", "expected"),
    [
        (BOX, {"workers": 2}, None, "2 x (1 GPU, 12 CPUs)"),
        (BOX, {"workers": 8, "gpus": 1, "cpus": 4, "memory": 64}, None, "8 x (1 GPU, 4 CPUs, 64 GiB)"),
        (LAPTOP, {"workers": 2}, 1, "2 x (1 CPU)"),  # the cores are shared by those of one stage, too
        (LAPTOP, {"workers": 1}, 1, "2 CPUs"),
    ],
)
def test_several_workers_get_the_same_each(
    nodes: list[Node], asked: dict[str, float], workers: int | None, expected: str
) -> None:
    stage, compute_asked = Stage("s", nothing, kind="rl"), Compute(rl=Need(**asked))
    compute.check([stage], compute_asked, nodes, workers)
    assert compute.told(compute.need(stage, compute_asked, nodes, workers)) == expected


@pytest.mark.parametrize(
    ("nodes", "asked", "fit"),
    [
        (BOX, Need(workers=8, gpus=1, cpus=12), True),
        (BOX, Need(workers=9, gpus=1, cpus=1), False),
        (BOX * 2, Need(workers=4, gpus=4, cpus=1), True),
        (BOX * 2, Need(workers=3, gpus=5, cpus=1), False),  # 16 GPUs, but a worker is on one machine
        (MIXED, Need(workers=4, gpus=1, cpus=1), True),
        (LAPTOP, Need(workers=2, cpus=1, memory=9), False),
    ],
)
def test_all_workers_of_a_stage_must_fit_at_once(nodes: list[Node], asked: Need, fit: bool) -> None:
    assert compute.fits(asked, nodes) is fit
    if not fit:
        with pytest.raises(UserError, match=r"compute\.rl: \d x \(.* asked, and the machines have not that \("):
            compute.check([Stage("s", nothing, kind="rl")], Compute(rl=asked), nodes)


def test_a_table_has_one_worker() -> None:
    with pytest.raises(ValueError, match="a table is made by one worker; leave `workers` out"):
        Compute(table={"workers": 2})
    assert Compute(table={"workers": 1}).table.workers == 1


def test_this_machine_has_cores_and_memory() -> None:
    assert compute.here().cpus >= 1
    assert compute.here().memory > 2**28


def test_every_stage_of_a_run_has_a_kind_that_compute_knows() -> None:
    from pathlib import Path

    from harness.cli.run import _targets
    from harness.graph import in_order

    experiment = Experiment(name="x", arms=("pretrained", "sl_cai", "rl_cai", "best_of_n"), rl={"result": "best_proxy"})
    kinds = {stage.name: stage.kind for stage in in_order(_targets(experiment, Path("x.yaml")))}
    assert set(kinds.values()) <= set(Compute.model_fields)
    for name, kind in {"data": "table", "gold.harmless": "pm", "rl_cai": "rl", "sl_cai": "sft", "report": "table",
                       "chains.critiqued": "sample", "sample.pretrained": "sample", "feedback.plain": "label",
                       "responses": "score", "along.rl_cai": "score", "judges": "model"}.items():  # fmt: skip
        assert kinds[name] == kind


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sample": {"workers": 2, "shard": True}}, "sample: nothing is trained"),
        ({"rl": {"shard": True}}, "rl: one worker has nothing to shard"),
    ],
)
def test_what_cannot_be_sharded_is_refused(asked: dict[str, dict[str, object]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Compute.model_validate(asked)
    assert Compute.model_validate({"rl": {"workers": 2, "shard": True}}).rl.shard
