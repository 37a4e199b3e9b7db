"""Opening a judge by its name, the same for `cai run`, `cai eval`, `cai compare` and `cai judge`.

pm:NAME        a preference model: a folder, or a public reward model of the hub (a sequence classifier with one output)
model:NAME     a language model: a folder, a hub id or 'embedded', asked in both orders
server:URL#MODEL  the same behind a server that gives log-probabilities; words:URL#MODEL, one that only answers in words
scorer:FILE.py a function score(prompts, responses) of a Python file, one number an answer, higher is better
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import pandas as pd

from harness.errors import UserError
from harness.models import server
from harness.models.base import LanguageModel
from harness.models.open import Engine
from harness.scoring import KINDS as SCORING
from harness.scoring import Scorer, open_scorer
from suites import judges
from suites.judge_quality import Compare

KINDS = (*SCORING, "model", "server", "words")
FORMS = "pm:NAME, scorer:FILE.py, model:NAME, server:URL#MODEL or words:URL#MODEL"


@dataclass(frozen=True)
class Judge:
    """compare(responses, kind of prompts) gives comparisons (`judges.COLUMNS`); score, where the judge gives scores,
    (prompts, responses) -> (n,)."""

    name: str
    compare: Compare
    score: Scorer | None = None
    model: LanguageModel | None = None  # that is asked, where one is


@lru_cache(maxsize=2)
def open_judge(name: str, *, engine: Engine = "auto", batch_size: int = 32, max_length: int = 512) -> Judge:
    """The judge `name`. Raises UserError for a name that is none, a file that is missing or has no function score."""
    kind, _, value = name.partition(":")
    if kind not in KINDS or not value:
        raise UserError(f"judge {name}: no such judge; give {FORMS}")
    if kind in SCORING:
        score = open_scorer(name, batch_size=batch_size, max_length=max_length)
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
