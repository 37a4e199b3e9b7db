"""A model's identity: content, not path; cheap when nothing changed; hub ids by commit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.models import embedded, identity


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))


def _model(folder: Path, weights: bytes = b"w" * 100) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "README.md").write_text("a model")
    return folder


def test_equal_content_is_one_identity_wherever_it_lies(tmp_path: Path) -> None:
    first = _model(tmp_path / "a")
    before = identity.identity(first)
    shutil.copytree(first, tmp_path / "b")
    assert identity.identity(str(tmp_path / "b")) == before
    (first / "README.md").write_text("other words")
    assert identity.identity(first) == before


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_file_changes_the_identity_though_its_size_and_time_stay(tmp_path: Path, file: str) -> None:
    folder = _model(tmp_path / "a")
    (folder / "tokenizer.json").write_text("[]")
    old = 1_000_000_000
    for path in folder.iterdir():
        os.utime(path, (old, old))
    before = identity.identity(folder)
    assert identity.identity(folder) == before
    content = bytearray((folder / file).read_bytes())
    content[0] ^= 1
    (folder / file).write_bytes(content)
    os.utime(folder / file, (old, old))
    assert identity.identity(folder) != before


def test_unchanged_weights_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _model(tmp_path / "a")
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    before = identity.identity(folder)
    monkeypatch.setattr(identity.hashlib, "file_digest", None)  # a second reading would fail
    assert identity.identity(folder) == before


def test_an_adapter_is_another_model_on_another_base(tmp_path: Path) -> None:
    base = _model(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = identity.identity(adapter)
    (base / "model.safetensors").write_bytes(b"v" * 100)
    assert identity.identity(adapter) != before


def test_a_hub_id_is_its_cached_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert identity.identity("org/name") == "hub:org/name@unresolved"
    refs = tmp_path / "hub" / "models--org--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0123abc")
    assert identity.identity("org/name") == "hub:org/name@0123abc"


def test_other_names() -> None:
    assert identity.identity("server:http://x/v1#m") == "server:http://x/v1#m"
    assert embedded.GGUF_SHA256 in identity.identity("embedded")
    with pytest.raises(UserError, match="not found"):
        identity.identity("./no/such/folder")


def test_a_plan_needs_no_torch_for_it(tmp_path: Path) -> None:
    folder = _model(tmp_path / "a")
    call = f"identity.identity({str(folder)!r})"
    code = f"import sys; from harness.models import identity; {call}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
