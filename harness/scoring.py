"""Answers scored by something with a name: a preference model, or a known function of a Python file.

pm:NAME        a preference model: a folder, or a public reward model of the hub (a sequence classifier with one output)
scorer:FILE.py a function score(prompts, responses) of a Python file, one number an answer, higher is better
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError

if TYPE_CHECKING:
    import numpy as np

KINDS = ("pm", "scorer")
Scorer = Callable[[Sequence[str], Sequence[str]], "np.ndarray"]


def is_scorer(name: str | None) -> bool:
    """Whether `name` is one of a scorer: pm:NAME or scorer:FILE.py."""
    kind, colon, _ = (name or "").partition(":")
    return bool(colon) and kind in KINDS


def open_scorer(name: str, *, batch_size: int = 32, max_length: int = 512) -> Scorer:
    """(prompts, responses) -> (n,) scores of pm:NAME or scorer:FILE.py. Raises UserError as `scorer_of` does."""
    kind, _, value = name.partition(":")
    if kind == "scorer":
        return scorer_of(Path(value))
    from harness.models.scorer import PreferenceModel

    return PreferenceModel.load(value, batch_size=batch_size, max_length=max_length).score


def label(name: str) -> str:
    """What a scorer is called in tables: its name without the place that a folder or file lies in."""
    kind, colon, value = name.partition(":")
    path = Path(value)
    if kind not in (*KINDS, "model") or not path.exists():
        return name
    return f"{kind}{colon}{path.parent.parent.name if path.name == 'model' else path.name}"


def declared(name: str, role: str) -> tuple[dict[str, str | Path], dict[str, str]]:
    """(files, models) that a stage which opens the scorer `name` declares under `role`."""
    kind, _, value = name.partition(":")
    return ({role: value}, {}) if kind == "scorer" else ({}, {role: value})


def scorer_of(file: Path) -> Scorer:
    """Function `score` of a user's Python file. Raises UserError where it is not there, fails or gives no numbers."""
    import numpy as np

    from harness.stats import finite

    if not file.is_file():
        raise UserError(f"scorer:{file}: file not found; name one with a function score(prompts, responses)")
    spec = importlib.util.spec_from_file_location(f"cai_scorer_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"scorer:{file}: not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)

    def called(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except (Exception, SystemExit) as error:  # whatever a user's code may raise
            raise UserError(f"scorer:{file}: {type(error).__name__}: {error}; correct the file") from error

    called(lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]  # checked above
    own = called(lambda: module.score)

    def score(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        values = called(lambda: np.asarray(own(list(prompts), list(responses)), dtype=np.float64))
        if values.shape != (len(prompts),):
            raise UserError(f"scorer:{file}: scores of shape {values.shape} for {len(prompts)} answers; give one each")
        return finite(values, f"scorer:{file}")

    return score
