"""Opening a model by its name: the one place that knows which engine serves which name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.models.server import ServerGenerator, address, is_server

if TYPE_CHECKING:
    from harness.models.transformers import Generator


def feedback_model(name: str, batch_size: int) -> Generator | ServerGenerator:
    """The model `name`, ready to be asked `batch_size` questions at once: loaded here, or behind a server, which is
    checked with a first question.
    """
    if is_server(name):
        server = ServerGenerator(*address(name), workers=batch_size)
        server.check()
        return server
    from harness.models.checkpoints import load_policy
    from harness.models.transformers import Generator

    return Generator(*load_policy(name), batch_size)
