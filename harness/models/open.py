"""Opening a model by its name: the one place that knows which engine serves which name."""

from __future__ import annotations

from pathlib import Path

from harness.models.base import LanguageModel
from harness.models.server import ServerGenerator, address, is_server


def open_model(name: str | Path, *, batch_size: int = 32, choosing: bool = False) -> LanguageModel:
    """The model `name`, ready to be asked `batch_size` rows at once.

    name: a folder, a hub id or 'embedded', loaded here, or server:URL#MODEL. choosing: it will be asked to choose, so
    a server is checked with a first question.
    """
    if is_server(str(name)):
        server = ServerGenerator(*address(str(name)), workers=batch_size)
        if choosing:
            server.check()
        return server
    from harness.models.checkpoints import load_policy
    from harness.models.transformers import Generator

    return Generator(*load_policy(name), batch_size)
