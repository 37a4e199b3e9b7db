"""The lock of the folder that a command writes to, held from its first check to its end."""

from __future__ import annotations

import contextlib
from pathlib import Path

from harness import store

_held = contextlib.ExitStack()


def hold(folder: Path) -> None:
    """Lock `folder` until `release`. Raises UserError where another command holds it."""
    _held.enter_context(store.locked(folder))


def release() -> None:
    """Let go of all that `hold` locked: the command has ended."""
    _held.close()
