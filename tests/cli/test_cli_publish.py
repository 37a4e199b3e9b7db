"""`cai publish`: what leaves a run is merged, has its card, loads anywhere, and goes to the hub as it is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from harness.models.scorer import PreferenceModel

Cai = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy, which a test may remove."""
    return Path(shutil.copytree(tiny_run, tmp_path / "runs" / "tiny"))


def snippet(folder: Path) -> str:
    """The example of use that a card gives, on the folder itself."""
    card = (folder / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].replace("me/published", str(folder))


def test_a_pm_loads_without_the_run_and_scores_as_it_did(run: Path, tmp_path: Path, cai: Cai) -> None:
    stage = next((run / "stages" / "pm.rl_cai").glob("*/model"))
    assert (stage / "adapter_config.json").is_file()
    expected = float(PreferenceModel.load(stage).score(["Is tea hot?"], ["At first."])[0])
    out = tmp_path / "out"
    code, said, errors = cai("publish", f"{run}:pm.rl_cai", "me/published", "--dry-run", "--out", out)
    assert code == 0, errors
    assert "without --dry-run it goes to me/published" in said
    shutil.rmtree(run)
    shown: dict[str, Any] = {}
    exec(snippet(out), shown)
    assert shown["score"] == pytest.approx(expected, abs=1e-4)
    assert expected != 0
    assert not (out / "adapter_config.json").exists()
    card = (out / "README.md").read_text()
    assert str(tmp_path) not in card.replace(str(out), "")
    assert "held-out human pairs" in card
    assert (out / "report" / "index.html").is_file()
    for file in out.glob("*.json"):
        assert str(run) not in file.read_text()


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
