"""Models whose weights are split over the workers of a stage (FSDP2), where one worker cannot hold them.

transformers shards a model as it loads it, so that no worker ever holds all of it; each layer is gathered while it
computes. Parameters are then DTensors. What is added later (adapters, a value head) is plain and whole on each worker.
accelerate's own FSDP2 is not used: on CPUs it gives plain data parallelism, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from harness import ranks


def how() -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` by which a model is split over all workers."""
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(fsdp_size=ranks.size())}


def split(model: Any) -> bool:
    """Whether a model, or what its adapter is added to, is split."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every worker. Every worker must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor`, of which every worker has all, split and placed as `like`."""
    tensor = tensor.to(like.device)
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor


def make_plain(module: Any) -> None:
    """Give a copy of a split model's layer, which FSDP2 knows nothing of, its whole weights."""
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                setattr(owner, name, torch.nn.Parameter(whole(parameter.detach()), parameter.requires_grad))


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Keep all weights on each worker meanwhile, so that workers need not compute in step: to sample from it."""
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def clip(parameters: Sequence[Tensor], largest: float) -> Tensor:
    """As `clip_grad_norm_`, for split and plain parameters together: the norm of all gradients."""
    kinds = [[p for p in parameters if p.grad is not None and isinstance(p, DTensor) == split] for split in (0, 1)]
    grads = [[p.grad for p in kind if p.grad is not None] for kind in kinds]
    norms = [whole(torch.nn.utils.get_total_norm(kind)) for kind in grads if kind]
    norm = torch.stack(norms).norm()
    for kind in filter(None, kinds):
        torch.nn.utils.clip_grads_with_norm_(kind, largest, norm)
    return norm
