"""The model card that lies beside each checkpoint: what it is, and what it was made from. `cai publish` says more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import store

LIMITS = "A research artefact: it has not been checked for any use."


def text(name: str, what: str, start: str | Path, settings: Mapping[str, Any]) -> str:
    """The card of model `name`: `what` it is ("The arm `x`, by ppo"), the checkpoint it was trained from, settings."""
    listed = "".join(f"- {key.replace('_', ' ')}: {value}\n" for key, value in settings.items())
    return (
        f"---\nlibrary_name: transformers\ntags: [cai-harness]\n---\n# {name}\n\n"
        f"{what}, trained by cai-harness from `{called(start)}`.\n\n{listed}\n{LIMITS}\n"
    )


def write(folder: Path, card: str) -> None:
    """Put `card` beside a finished checkpoint, in place of one that a library wrote."""
    store.write_text(folder / "README.md", card)


def called(start: str | Path) -> str:
    """A checkpoint's name without this machine's paths: of one in a run its stage, of another folder its last part."""
    path = Path(start)
    if not path.is_absolute():
        return str(start)
    parts = path.parts
    return parts[parts.index("stages") + 1] if "stages" in parts[:-1] else path.name
