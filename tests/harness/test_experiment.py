"""The experiment file: every mistake is one line with file, key and mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import experiment
from harness.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def fault(tmp_path: Path, text: str) -> str:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        experiment.load(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_experiments_load(file: Path) -> None:
    assert experiment.load(file).name == file.stem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [unclosed", "not valid YAML"),
        ("- a\n- b", "mapping of keys"),
        ("seed: 1", "name: missing"),
        ("name: x\ncolour: red", "colour: unknown key"),
        ("name: x\nscale: {batch: 3}", "scale.batch: unknown key"),
        ("name: x\nscale: {batch_size: many}", "scale.batch_size: Input should be a valid integer"),
        ("name: x\nscale: {batch_size: 0}", "scale.batch_size: Input should be greater than or equal to 1, got '0'"),
        ("name: x\narms: [rl_cay]", "unknown arm 'rl_cay'"),
        ("name: x\narms: []", "arms is empty"),
        ("name: x\narms: [sl_cai, sl_cai]", "named twice"),
        ("name: x\nfeedback: {clamp: [0.6, 0.4]}", "feedback: clamp must be two numbers"),
        ("name: x\nrl: {algorithm: a2c}", "rl.algorithm: Input should be 'ppo', 'rloo' or 'dpo'"),
    ],
)
def test_mistakes_name_the_key_and_the_mend(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in fault(tmp_path, text)


def test_a_missing_file_points_to_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="experiments/"):
        experiment.load(tmp_path / "none.yaml")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").touch()
    (tmp_path / "x.yaml").write_text("name: x\ndata: {redteam_prompts: prompts.jsonl, hh_rlhf: Anthropic/hh-rlhf}")
    loaded = experiment.load(tmp_path / "x.yaml")
    assert loaded.data.redteam_prompts == str((tmp_path / "prompts.jsonl").resolve())
    assert loaded.data.hh_rlhf == "Anthropic/hh-rlhf"


def test_elo_needs_something_to_compare(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("name: x\narms: [pretrained]\n")
    with pytest.raises(UserError, match="suite elo compares models and there is one"):
        experiment.load(file)
    file.write_text("name: x\narms: [helpful_only]\n")
    assert experiment.load(file).arms == ("helpful_only",)
