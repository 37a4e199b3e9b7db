"""Opening a model by its name: the one place that knows which engine serves which name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from harness.models import spread, vllm, vllm_engine
from harness.models.base import LanguageModel
from harness.models.server import ServerGenerator, address, is_server

Engine = Literal["auto", "transformers", "vllm"]


def chosen(engine: Engine) -> Literal["transformers", "vllm"]:
    """What `engine` comes to on this machine: 'auto' is vLLM where it is installed and there is a GPU."""
    if engine != "auto":
        return engine
    if not vllm_engine.installed():
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def rest() -> None:
    """Leave the GPU to what comes next, such as training: models opened before must not be used any more."""
    vllm.rest()


def open_model(
    name: str | Path, *, engine: Engine = "auto", batch_size: int = 32, choosing: bool = False
) -> LanguageModel:
    """The model `name`, a folder, a hub id or 'embedded' on the `engine`, or server:URL#MODEL.

    batch_size: rows that share a forward, or requests to a server at once; vLLM batches as it likes. choosing: the
    model will be asked to choose, so a server is checked with a first question. vLLM holds one model at a time: one
    that was opened before must not be used any more. Where this process has helpers (`spread`), they share its rows.
    """
    if is_server(str(name)):
        server = ServerGenerator(*address(str(name)), workers=batch_size)
        if choosing:
            server.check()
        return server
    how: dict[str, Any] = {"name": name, "engine": chosen(engine), "batch_size": batch_size}
    own = _load(**how)
    return spread.SpreadModel(own, spread.Copies(_load, **how)) if spread.processes() > 1 else own


def _load(name: str | Path, engine: Literal["transformers", "vllm"], batch_size: int) -> spread.Splits:
    """A model in this process."""
    if engine == "vllm":
        return vllm.load(name)
    from harness.models.checkpoints import load_policy
    from harness.models.transformers import Generator

    return Generator(*load_policy(name), batch_size)
