"""Every stage of a run has its work described, and the tokens are those that manifests of a finished run count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cli.run import _targets
from harness.estimate import lengths
from harness.estimate.effort import Effort, Sampling, Shape, Training
from harness.experiment import Experiment, load
from harness.graph import in_order
from pipelines import costs as of_arms
from suites import costs as of_suites

ROOT = Path(__file__).resolve().parents[2]
Cai = Callable[..., tuple[int, str, str]]
RATES = {
    "source": "made up", "read": 1e10, "train": 1e10, "weights": 1e10, "decode": 1e10, "disk": 1e9, "start": 0.1,
    "bytes_per_weight": 4, "memory": 1e10,
}  # fmt: skip


def efforts(experiment: Experiment, shape: Shape | None = None) -> dict[str, Effort]:
    known = lengths.of(experiment, shape)
    found = {}
    for stage in in_order(_targets(experiment, Path("x.yaml"))):
        table: Any = {**of_arms.COSTS, **of_suites.COSTS}
        if stage.place is None:
            found[stage.name] = table[stage.function](stage, known)
    return found


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates in the cache, as `cai doctor --measure` leaves them."""
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "rates.json").write_text(json.dumps(RATES))


@pytest.mark.parametrize("name", ["demo", "paper", "gpu", "small", "control_null"])
def test_every_stage_of_a_shipped_experiment_is_described(name: str) -> None:
    found = efforts(load(ROOT / "experiments" / f"{name}.yaml"), Shape.of_size(1e9))
    assert all(work is not None for work in found.values())
    assert found["rl_cai"].tokens > found["sample.rl_cai"].tokens / 10
    assert found["sl_cai"].parts


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "dpo"])
def test_every_algorithm_is_described(algorithm: str, tiny_experiment: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(tiny_experiment.read_text())
    own = {"algorithm": algorithm, "updates": 3, "minibatch_size": 4}
    content["rl"] = own if algorithm == "dpo" else own | {"rollouts_per_update": 8}
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(content | {"arms": ["pretrained", "rl_cai", "best_of_n"]}))
    (training,) = (part for part in efforts(load(file))["rl_cai"].parts if isinstance(part, Training))
    assert training.steps == (3 if algorithm == "dpo" else 6)  # 3 updates of 8 answers in steps of 4


def test_tokens_are_those_that_manifests_count(tiny_experiment: Path, tiny_run: Path) -> None:
    """The tiny model's tokenizer has other lengths of text, so only what is sampled can agree: upper bounds here."""
    experiment = load(tiny_experiment)
    found = efforts(experiment)
    sampled = [part for part in found["sample.rl_cai"].parts if isinstance(part, Sampling)]
    scale = experiment.scale
    assert sum(part.rows * part.tokens for part in sampled) == 2 * 2 * scale.heldout_prompts * scale.max_new_tokens
    for manifest in tiny_run.glob("stages/*/*/manifest.json"):
        about = json.loads(manifest.read_text())
        if about["tokens"]:
            assert found[about["stage"]].tokens > 0.1 * about["tokens"], about["stage"]


@pytest.mark.usefixtures("measured")
def test_plan_shows_time_memory_and_money(cai: Cai, tiny_experiment: Path, tiny_run: Path, tmp_path: Path) -> None:
    told = "plan", tiny_experiment, "--estimate", "--out"
    code, out, errors = cai(*told, tmp_path / "new", "--price", "3600", "--json", "--gpus", "1,2")
    assert code == 0, errors
    one, two = json.loads(out)
    assert one["money"] == pytest.approx(one["seconds"])  # a unit of money a second
    assert one["seconds_left"] == one["seconds"] > one["critical_path_seconds"] > 0
    assert two["device_hours"] >= one["device_hours"] * (1 - 1e-9)
    assert two["seconds_at_once"] >= two["critical_path_seconds"]
    assert two["seconds"] <= one["seconds"]
    assert {"data", "sl_cai", "rl_cai", "judges"} <= {stage["stage"] for stage in one["stages"]}
    assert json.loads(cai(*told, tiny_run, "--json")[1])[0]["seconds_left"] == 0
    code, out, _ = cai(*told, tmp_path / "new", "--price", "2", "--gpus", "4")
    assert "made up" in out
    assert "money" in out
    assert "limit" in out
    code, out, _ = cai(*told, tmp_path / "new", "--markdown")
    assert "| total |" in out


@pytest.mark.usefixtures("measured")
def test_a_users_own_stage_is_said_to_be_unknown(cai: Cai, tiny_experiment: Path, tmp_path: Path) -> None:
    suite = tmp_path / "mine.py"
    suite.write_text("def run(responses, *, seed):\n    raise NotImplementedError\n")
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(tiny_experiment.read_text()) | {"suites": ["elo", str(suite)]}))
    (found,) = json.loads(cai("plan", file, "--estimate", "--json")[1])
    assert found["not_estimated"] == ["mine"]
    assert "not estimated: mine" in cai("plan", file, "--estimate")[1]


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--estimate", "--price", "-1"], "--price -1"),
        (["--estimate", "--price", "nan"], "--price nan"),
        (["--estimate", "--gpus", "0"], "--gpus 0"),
        (["--estimate", "--gpus", "8,x"], "--gpus 8,x"),
        (["--estimate", "--rate", "abacus"], "name one of h100"),
        (["--estimate", "--rate", "speed=3"], "no such rate; choose from read"),
        (["--estimate", "--rate", "read=fast"], "'fast' is no number"),
        (["--estimate", "--rate", "read=-1"], "read: -1.0 is not a finite number of at least 0"),
        (["--estimate", "--rate", "read=nan"], "read: nan"),
        (["--estimate", "--rate", "read=0"], "0 would take forever"),
        *((["--estimate", "--rate", f"{name}=inf"], f"{name}: inf") for name in ("read", "memory", "node")),
        (["--estimate", "--rate", "node=0.5"], "node: 0.5 is not a whole number"),
        (["--estimate", "--rate", "h100", "--rate", "h100"], "named already"),
        (["--estimate", "--parameters", "big"], "--parameters big: not a size"),
        (["--estimate", "--parameters", "-7B"], "not the size of a model"),
        (["--price", "2"], "belong to --estimate"),
        (["--markdown"], "belong to --estimate"),
        (["--estimate", "--json", "--markdown"], "--json and --markdown"),
    ],
)
def test_bad_options_are_one_line(cai: Cai, tiny_experiment: Path, options: list[str], said: str) -> None:
    code, _, errors = cai("plan", tiny_experiment, *options)
    assert code == 2
    assert said in errors
    assert len(errors.strip().splitlines()) == 1


def test_without_rates_it_says_how_to_get_them(
    cai: Cai, tiny_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path))
    code, _, errors = cai("plan", tiny_experiment, "--estimate")
    assert code == 2
    assert "run `cai doctor --measure`" in errors
    (tmp_path / "rates.json").write_text('{"read": 1}')
    assert "run `cai doctor --measure` again" in cai("plan", tiny_experiment, "--estimate")[2]


def test_a_model_that_is_not_there_needs_its_size(cai: Cai, tiny_experiment: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(tiny_experiment.read_text()) | {"models": {"base": "nobody/nothing-52b"}}
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(content))
    code, _, errors = cai("plan", file, "--estimate", "--rate", "h100")
    assert code == 2
    assert "--parameters 7e9" in errors
    code, out, _ = cai("plan", file, "--estimate", "--rate", "h100", "--parameters", "52B", "--json")
    assert code == 0
    assert any("does not fit" in note for note in json.loads(out)[0]["notes"])


def test_doctor_measures_rates_that_a_plan_then_uses(
    cai: Cai, tiny_experiment: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path))
    code, out, errors = cai("doctor", "--measure", "--model", tiny_model)
    assert code == 0, errors
    assert "Kept in" in out
    kept = json.loads((tmp_path / "rates.json").read_text())
    assert all(value > 0 for name, value in kept.items() if name != "source")
    code, out, errors = cai("plan", tiny_experiment, "--estimate")
    assert code == 0, errors
    assert "measured" in out
