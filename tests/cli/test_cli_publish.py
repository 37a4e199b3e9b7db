"""`cai publish`: what leaves a run is merged, has its card, loads anywhere, and goes to the hub as it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pandas as pd
import pytest
import torch

from harness.models import checkpoints
from harness.models.scorer import PreferenceModel
from suites import chosen

Cai = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy, which a test may remove."""
    return Path(shutil.copytree(tiny_run, tmp_path / "runs" / "tiny"))


def snippet(folder: Path) -> str:
    """The example of use that a card gives, on the folder itself."""
    card = (folder / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].replace("me/published", str(folder))


def fresh(code: str, place: Path, *found: str) -> Any:
    """Run `code` in a process that knows neither this project nor a network; the JSON of the variables `found`."""
    code += (
        f"\nimport json, sys\nprint(json.dumps([{', '.join(found)}, 'peft' in sys.modules, 'harness' in sys.modules]))"
    )
    unset = {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=place, env=os.environ | unset, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    *said, peft, harness = json.loads(done.stdout.splitlines()[-1])
    assert not peft
    assert not harness
    return said


def test_a_pm_loads_anywhere_and_scores_as_it_did(run: Path, tmp_path: Path, cai: Cai) -> None:
    stage = next((run / "stages" / "pm.rl_cai").glob("*/model"))
    assert (stage / "adapter_config.json").is_file()
    expected = float(PreferenceModel.load(stage).score(["Is tea hot?"], ["At first."])[0])
    assert expected != 0
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere" / "pm"
    code, said, errors = cai("publish", f"{run}:pm.rl_cai", "me/published", "--dry-run", "--out", out)
    assert code == 0, errors
    assert "without --dry-run it goes to me/published" in said
    shutil.rmtree(run)
    shutil.copytree(out, elsewhere)
    shutil.rmtree(out)
    (score,) = fresh(snippet(elsewhere), tmp_path, "score")
    assert score == pytest.approx(expected, abs=1e-5)
    assert PreferenceModel.load(elsewhere).score(["Is tea hot?"], ["At first."])[0] == pytest.approx(expected, abs=1e-5)
    assert not (elsewhere / "adapter_config.json").exists()
    card = (elsewhere / "README.md").read_text()
    assert "held-out human pairs" in card
    assert (elsewhere / "report" / "index.html").is_file()
    for file in (elsewhere / "README.md", *elsewhere.glob("*.json")):
        assert str(tmp_path) not in file.read_text()


def test_an_arm_is_published_as_the_snapshot_that_counts(run: Path, tmp_path: Path, cai: Cai) -> None:
    """Its card gives what the run measured, and with `rl.result` that was not the last update."""
    stage = next(path.parent for path in (run / "stages" / "rl_cai").glob("*/model"))
    (snapshot,) = (stage / "snapshots").glob("step-*")
    step, last = int(snapshot.name.removeprefix("step-")), chosen.updates(stage / "training.parquet")
    rows = {"arm": "rl_cai", "step": [step, last], "last": last, "rule": "best_proxy", "value": [2.0, 1.0], "n": 6}
    pd.DataFrame(rows | {"chosen": [True, False]}).to_parquet(run / "results" / "rl_results.parquet")
    experiment = run / "experiment.yaml"
    experiment.write_text(experiment.read_text().replace("result: last", "result: best_proxy"))
    code, _, errors = cai("publish", f"{run}:rl_cai", "me/published", "--dry-run")
    assert code == 0, errors
    out, prompt = run / "published" / "rl_cai", torch.tensor([[1, 5, 9]])
    models = [checkpoints.load_policy(path)[0] for path in (out, snapshot, stage / "model")]
    said, counted, final = (model(prompt).logits for model in models)
    torch.testing.assert_close(said, counted)
    assert not torch.equal(said, final)
    assert f"rl_cai update {step} of {last}" in (out / "README.md").read_text().replace("\\", "")


def test_an_arm_loads_and_its_card_has_data_training_results_and_limits(run: Path, tmp_path: Path, cai: Cai) -> None:
    code, _, errors = cai("publish", f"{run}:rl_cai", "me/published", "--dry-run")
    assert code == 0, errors
    out = run / "published" / "rl_cai"
    shown: dict[str, Any] = {}
    exec(snippet(out), shown)
    assert isinstance(shown["model"], torch.nn.Module)
    assert shown["tokenizer"].chat_template
    card = (out / "README.md").read_text()
    for said in ("## Data", "stand-in for human labels", "## Training", "rl.updates 2", "## Results", "Harmlessness",
                 "## Limits", "not checked for any use"):  # fmt: skip
        assert said in card.replace("\\", ""), said
    assert card.startswith("---\nlibrary_name: transformers\n")


class FakeHub:
    """What `HfApi` is asked to do."""

    asked: list[tuple[str, dict[str, Any]]]

    def __init__(self) -> None:
        type(self).asked = []

    def create_repo(self, repo: str, **options: Any) -> None:
        self.asked.append((repo, options))

    def upload_folder(self, **options: Any) -> None:
        names = sorted(path.name for path in Path(options.pop("folder_path")).iterdir())
        self.asked.append((options.pop("repo_id"), {"files": names}))


def test_an_upload_makes_the_repository_and_sends_the_folder(
    run: Path, cai: Cai, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    code, said, errors = cai("publish", f"{run}:sl_cai", "me/published")
    assert code == 0, errors
    assert "published https://huggingface.co/me/published" in said
    (made, options), (sent, files) = FakeHub.asked
    assert (made, sent) == ("me/published", "me/published")
    assert options == {"private": True, "exist_ok": True}
    assert {"README.md", "config.json", "model.safetensors", "report", "tokenizer.json"} <= set(files["files"])


def test_a_hub_that_refuses_is_one_line(run: Path, cai: Cai, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(FakeHub):
        def create_repo(self, repo: str, **options: Any) -> None:
            raise OSError("401 Unauthorized\nhelp text")

    monkeypatch.setattr(huggingface_hub, "HfApi", Refusing)
    code, _, said = cai("publish", f"{run}:sl_cai", "me/published")
    assert (code, len(said.splitlines())) == (2, 1)
    assert "me/published: the hub did not take it (401 Unauthorized); log in with `hf auth login`" in said


@pytest.mark.parametrize(
    ("model", "repo", "expected"),
    [
        ("RUN", "me/x", "give RUN:ARM, as in runs/demo:rl_cai"),
        ("RUN:nobody", "me/x", "no trained model 'nobody'; there are gold.harmless, gold.helpful, helpful_only"),
        ("none:rl_cai", "me/x", "none: no run with trained models"),
        ("RUN:rl_cai", "a b", "a b: no name of a repository"),
    ],
)
def test_faults_are_one_line(tiny_run: Path, cai: Cai, model: str, repo: str, expected: str) -> None:
    code, _, said = cai("publish", model.replace("RUN", str(tiny_run)), repo, "--dry-run")
    assert (code, len(said.splitlines())) == (2, 1)
    assert expected in said


def test_every_final_model_has_its_card(tiny_run: Path) -> None:
    for name, what in (("rl_cai", "The final model of the arm `rl_cai`, by ppo, trained by cai-harness from `sl_cai`"),
                       ("sl_cai", "fine-tuned on revisions"), ("pm.rl_cai", "A sequence classifier")):  # fmt: skip
        folder = next((tiny_run / "stages" / name).glob("*/model"))
        card = (folder / "README.md").read_text()
        assert what in card
        assert str(tiny_run) not in card
