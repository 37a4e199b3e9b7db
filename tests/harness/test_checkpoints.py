"""Loading and saving: pad tokens, adapters, the PM's score in any batch, clear errors."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.errors import UserError
from harness.models import chat, checkpoints, embedded, scorer
from harness.models.checkpoints import LoraSettings
from harness.models.scorer import PreferenceModel

PAIRS = [
    ("Tea?", "Yes."),
    ("Why is the sky blue today, of all days?", "Because of how air scatters light."),
    ("a", "b"),
]


def test_a_new_pm_scores_zero_and_a_trained_head_is_read_at_the_end_of_turn(tiny_model: Path) -> None:
    model, tokenizer = scorer.load_classifier(tiny_model)
    pm = PreferenceModel(model.eval(), tokenizer)
    prompts, responses = map(list, zip(*PAIRS, strict=True))
    np.testing.assert_array_equal(pm.score(prompts, responses), 0)
    torch.nn.init.normal_(model.score.weight)
    together = pm.score(prompts, responses)
    alone = np.concatenate([pm.score([p], [r]) for p, r in PAIRS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    hidden = model.model(torch.tensor([chat.encode_dialogue(tokenizer, *PAIRS[0])])).last_hidden_state[0, -1]
    assert together[0] == pytest.approx(model.score(hidden).item(), abs=1e-5)


def test_a_lora_folder_loads_as_its_merged_model(tiny_model: Path, tmp_path: Path) -> None:
    policy, tokenizer = checkpoints.load_policy(tiny_model)
    tuned = checkpoints.add_lora(policy, LoraSettings(rank=2, alpha=4, top_layers=1))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    ids = torch.tensor([[5, 6, 7]])
    expected = tuned(ids).logits
    checkpoints.save(tuned, tokenizer, tmp_path / "adapter")
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert named == sorted(named)  # the same bytes from every process
    loaded, _ = checkpoints.load_policy(tmp_path / "adapter")
    assert not hasattr(loaded, "peft_config") or not loaded.peft_config
    torch.testing.assert_close(loaded(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_snapshot_finds_its_base_after_the_run_was_moved(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = Path("run/stages")
    checkpoints.save(*checkpoints.load_policy(tiny_model), stages / "sl_cai" / "key" / "model")
    policy, tokenizer = checkpoints.load_policy(stages / "sl_cai" / "key" / "model")
    tuned = checkpoints.add_lora(policy, LoraSettings(rank=2, alpha=4))
    checkpoints.save(tuned, tokenizer, stages / "rl_cai" / "key.partial" / "snapshots" / "step-000001")
    (stages / "rl_cai" / "key.partial").rename(stages / "rl_cai" / "key")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").rename(tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    checkpoints.load_policy(tmp_path / "elsewhere/moved/stages/rl_cai/key/snapshots/step-000001")
    # A base that is not of the run stays where it is.
    policy, tokenizer = checkpoints.load_policy(tiny_model)
    checkpoints.save(checkpoints.add_lora(policy, LoraSettings(rank=2, alpha=4)), tokenizer, tmp_path / "adapter")
    monkeypatch.chdir("/")
    checkpoints.load_policy(tmp_path / "adapter")


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    (tmp_path / "own.py").write_text("raise SystemExit('run')")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"own\.OwnModel.*models\.trust_remote_code: true") as caught:
        checkpoints.load_policy(tmp_path)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv(checkpoints.TRUST, "1")
    with pytest.raises(SystemExit, match="run"):
        checkpoints.load_policy(tmp_path)


def test_of_several_templates_the_plain_one_is_taken(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = checkpoints.load_tokenizer(tiny_model)
    plain = tokenizer.chat_template
    tokenizer.chat_template = {"default": plain, "tool_use": "{{ raise_exception('tools') }}"}
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    loaded = checkpoints.load_tokenizer(tmp_path)
    assert loaded.chat_template == plain
    assert chat.encode_prompt(loaded, "Tea?") == chat.encode_prompt(checkpoints.load_tokenizer(tiny_model), "Tea?")


def test_lora_on_the_top_layers_leaves_the_lower_ones_alone(tiny_model: Path) -> None:
    policy, _ = checkpoints.load_policy(tiny_model)
    tuned = checkpoints.add_lora(policy, LoraSettings(rank=2, alpha=4, top_layers=1))
    trained = {name.split("layers.")[1][0] for name, p in tuned.named_parameters() if p.requires_grad}
    assert trained == {"1"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./no/such/folder", "not found"),
        ("/no/such/folder", "not found"),
        ("nobody/no-such-model", "cannot be loaded"),
        (" ", "neither a folder nor a hub id"),
        ("two words", "neither a folder nor a hub id"),
        ("-x", "neither a folder nor a hub id"),
    ],
)
def test_a_model_that_cannot_be_found_is_one_clear_line(name: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        checkpoints.load_policy(name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_folder_that_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        checkpoints.load_policy(tmp_path)


class Touch:
    """What a hostile pickle does when it is opened: makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["pickle", "cut pickle", "cut safetensors", "empty safetensors"])
def test_weights_that_cannot_be_read_are_one_line_and_run_nothing(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    if "pickle" in kind:
        weights.unlink()
        content = pickle.dumps({"a": Touch(tmp_path / "ran")})
        (folder / "pytorch_model.bin").write_bytes(content if kind == "pickle" else content[:20])
    else:
        weights.write_bytes(weights.read_bytes()[:200] if kind.startswith("cut") else b"")
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        checkpoints.load_policy(folder)
    assert "\n" not in str(caught.value)
    assert ("safetensors" in str(caught.value)) == ("pickle" in kind)
    assert not (tmp_path / "ran").exists()


@pytest.mark.model
def test_the_embedded_model_loads_answers_and_is_cached() -> None:
    from harness.models.transformers import Generator

    policy, tokenizer = checkpoints.load_policy("embedded")
    assert sum(p.numel() for p in policy.parameters()) == 134_515_008
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    asked = ["What is the capital of France?"]
    (answer,) = Generator(policy, tokenizer).sample(asked, max_new_tokens=16, temperature=0)
    assert "Paris" in answer.text
    assert embedded.embedded_model().joinpath("model.safetensors").is_file()
