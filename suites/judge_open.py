"""Opening a judge by its name, the same for `cai run`, `cai eval`, `cai compare` and `cai judge`.

pm:NAME        a preference model: a folder, or a public reward model of the hub (a sequence classifier with one output)
model:NAME     a language model: a folder, a hub id or 'embedded', asked in both orders
server:URL#MODEL  the same behind a server that gives log-probabilities; words:URL#MODEL, one that only answers in words
scorer:FILE.py a function score(prompts, responses) of a Python file, one number an answer, higher is better
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import UserError
from harness.models import server
from harness.models.base import LanguageModel
from harness.models.open import Engine
from suites import judges
from suites.judge_quality import Compare

SCORING = ("pm", "scorer")  # these give scores; the others compare
KINDS = (*SCORING, "model", "server", "words")
FORMS = "pm:NAME, scorer:FILE.py, model:NAME, server:URL#MODEL or words:URL#MODEL"
Scorer = Callable[[Sequence[str], Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Judge:
    """compare(responses, kind of prompts) gives comparisons (`judges.COLUMNS`); score, where the judge gives scores,
    (prompts, responses) -> (n,)."""

    name: str
    compare: Compare
    score: Scorer | None = None
    model: LanguageModel | None = None  # that is asked, where one is


def label(name: str) -> str:
    """What a judge is called in tables: its name without the place that a folder or file lies in."""
    kind, colon, value = name.partition(":")
    path = Path(value)
    if kind not in ("pm", "model", "scorer") or not path.exists():
        return name
    return f"{kind}{colon}{path.parent.parent.name if path.name == 'model' else path.name}"


@lru_cache(maxsize=2)
def open_judge(name: str, *, engine: Engine = "auto", batch_size: int = 32, max_length: int = 512) -> Judge:
    """The judge `name`. Raises UserError for a name that is none, a file that is missing or has no function score."""
    kind, _, value = name.partition(":")
    if kind not in KINDS or not value:
        raise UserError(f"judge {name}: no such judge; give {FORMS}")
    if kind == "pm":
        from harness.models.scorer import PreferenceModel

        pm = PreferenceModel.load(value, batch_size=batch_size, max_length=max_length)
        return of_scores(name, lambda _: pm.score, pm.score)
    if kind == "scorer":
        score = scorer_of(Path(value))
        return of_scores(name, lambda _: score, score)
    if kind == "words":
        url, model = server.address(f"server:{value}")
        return Judge(name, lambda part, k: judges.from_server(part, url, model, question=judges.QUESTIONS[k]))
    from harness.models.open import open_model

    opened = open_model(value if kind == "model" else name, engine=engine, batch_size=batch_size, choosing=True)
    return of_model(name, opened)


def of_model(name: str, model: LanguageModel) -> Judge:
    """A judge that asks a language model in both orders."""

    def compare(responses: pd.DataFrame, kind: str) -> pd.DataFrame:
        return judges.from_feedback(responses, model, judges.QUESTIONS[kind], judge=name)

    return Judge(name, compare, model=model)


def renamed(judge: Judge, name: str) -> Judge:
    """`judge` under the name that tables give it."""
    return replace(judge, name=name, compare=lambda part, kind: judge.compare(part, kind).assign(judge=name))


def of_scores(name: str, by_kind: Callable[[str], Scorer], score: Scorer | None = None) -> Judge:
    """A judge by scores; `by_kind` gives the scorer for a kind of prompts."""

    def compare(responses: pd.DataFrame, kind: str) -> pd.DataFrame:
        pairs = list(zip(responses["prompt"], responses["response"], strict=True))
        distinct = list(dict.fromkeys(pairs))  # an undamaged answer stands in several trials
        scores = by_kind(kind)([prompt for prompt, _ in distinct], [answer for _, answer in distinct])
        known = dict(zip(distinct, scores, strict=True))
        return judges.from_scores(responses.assign(_score=[known[pair] for pair in pairs]), "_score", judge=name)

    return Judge(name, compare, score)


def scorer_of(file: Path) -> Scorer:
    """Function `score` of a user's Python file. Raises UserError where it is not there, fails or gives no numbers."""
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
        from harness.stats import finite

        values = called(lambda: np.asarray(own(list(prompts), list(responses)), dtype=np.float64))
        if values.shape != (len(prompts),):
            raise UserError(f"scorer:{file}: scores of shape {values.shape} for {len(prompts)} answers; give one each")
        return finite(values, f"scorer:{file}")

    return score
