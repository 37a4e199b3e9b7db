"""Run suites on a table of responses, whoever's they are: what `cai eval` and `cai compare` call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import UserError
from harness.graph import Silent, Watcher
from harness.models import server
from harness.models.base import LanguageModel
from harness.models.open import Engine
from harness.stats import finite
from suites import judge_open, judge_quality, judges, registry
from suites.result import SuiteResult

JUDGES = f"column:NAME, votes:FILE.csv, {judge_open.FORMS}"
SCORING = ("column", *judge_open.SCORING)


def check(suites: Sequence[str], judge: str | None) -> None:
    """Raises UserError for an unknown suite or judge, or a suite that lacks its judge."""
    kind = (judge or "").partition(":")[0]
    if judge is not None and kind not in ("column", "votes", *judge_open.KINDS):
        raise UserError(f"--judge {judge}: no such judge; give {JUDGES}")
    if kind in ("server", "words"):
        server.address(f"server:{(judge or '').partition(':')[2]}")
    for name in suites:
        needs = set(registry.find(name, "--suite").needs)
        if needs & {"compare", "score_column"} and judge is None:
            raise UserError(f"suite {name}: it needs a judge; add --judge {JUDGES}")
        if "score_column" in needs and kind not in SCORING:
            raise UserError(
                f"suite {name}: --judge {judge} gives no scores; give pm:NAME, scorer:FILE.py or column:NAME"
            )


def measure(
    responses: pd.DataFrame,
    suites: Sequence[str],
    *,
    judge: str | None = None,
    anchor: str | None = None,
    ratings: Path | None = None,
    chains: pd.DataFrame | None = None,
    models: Mapping[str, str] | None = None,
    comparisons: pd.DataFrame | None = None,
    reasoning: tuple[int, int] = (0, 64),
    progress: Watcher | None = None,
    seed: int = 0,
    engine: Engine = "auto",
) -> dict[str, SuiteResult]:
    """`suites` (of the registry, or Python files as in docs/add-a-suite.md) by name on `responses`.

    `judge` is one of `JUDGES`; `chains` (`score_chains`) are for pm_score; `models` by label, `comparisons` and
    `reasoning` for hhh; `progress` receives the suite at work and its progress. Raises UserError as `check`, and
    for what a suite cannot read.
    """
    check(suites, judge)
    watcher = progress or Silent()
    given = _Given(
        responses, judge or "", anchor, ratings, chains, models or {}, comparisons, reasoning, engine, Silent().advance
    )
    results = {}
    for position, name in enumerate(suites, start=1):
        suite = registry.find(name, "--suite")
        given.advance = watcher.stage(suite.name, position, len(suites)).advance
        if "compare" in suite.needs and given.kind == "votes":
            results[suite.name] = _by_votes(given, seed)
            continue
        found = suite.function()(**{need: getattr(given, need) for need in suite.needs}, seed=seed)
        if "scored_responses" in suite.needs:
            found.notes += given.scores[1]
        results[suite.name] = found
        watcher.ended(suite.name)
    return results


@dataclass
class _Given:
    """What suites may need (`registry.NEEDS`), from the options of a command; scores are made when asked for."""

    responses: pd.DataFrame
    judge: str
    anchor: str | None
    ratings: Path | None
    chains: pd.DataFrame | None
    names: Mapping[str, str]
    comparisons: pd.DataFrame | None
    reasoning: tuple[int, int]
    engine: Engine
    advance: Callable[[int, int], None]
    training: None = field(default=None, init=False)  # along RL: only a run knows it
    others: Mapping[str, judge_quality.Compare] = field(default_factory=dict, init=False)  # --judge names one

    @property
    def kind(self) -> str:
        return self.judge.partition(":")[0]

    @property
    def value(self) -> str:
        return self.judge.partition(":")[2]

    @cached_property
    def scores(self) -> tuple[pd.DataFrame, list[str]]:
        if self.kind == "column":
            return _from_column(self.responses, self.value)
        if self.scorer is None:
            return self.responses, []
        scores = self.scorer(self.responses["prompt"].tolist(), self.responses["response"].tolist())
        return self.responses.assign(score=scores), []

    @property
    def scored_responses(self) -> pd.DataFrame:
        return self.scores[0]

    @property
    def score_column(self) -> str:
        return self.value if self.kind == "column" else "score"

    @property
    def scorer(self) -> judge_open.Scorer | None:
        scores = self.kind in judge_open.SCORING
        return judge_open.open_judge(self.judge, engine=self.engine).score if scores else None

    @property
    def models(self) -> dict[str, Any]:
        from harness.models.open import open_model

        return {
            label: partial(open_model, name, engine=self.engine, choosing=True) for label, name in self.names.items()
        }

    @property
    def judge_model(self) -> LanguageModel | None:
        asked = self.kind in ("model", "server")
        return judge_open.open_judge(self.judge, engine=self.engine).model if asked else None

    def compare(self, part: pd.DataFrame, kind: str) -> pd.DataFrame:
        """The comparisons of pairs, by the judge."""
        if self.kind in SCORING:
            return judges.from_scores(part, "score", judge=self.judge)
        return judge_open.open_judge(self.judge, engine=self.engine).compare(part, kind)


def judge_tests(
    responses: pd.DataFrame,
    suites: Sequence[str],
    judge: str | None,
    human: Mapping[str, pd.DataFrame] | None = None,
    seed: int = 0,
    engine: Engine = "auto",
) -> pd.DataFrame:
    """Has `judge` earned its verdicts on these responses? `judge_quality.COLUMNS`, a row a suite, kind and metric.

    human: held-out pairs (prompt, chosen, rejected) by kind of prompts. Empty where no suite asks a judge, or the judge
    cannot be asked anew: a column of scores, votes.
    """
    needs = {suite: set(registry.find(suite, "--suite").needs) for suite in suites}
    asked = [suite for suite, own in needs.items() if own & {"compare", "score_column"}]
    tables = []
    if asked and judge is not None and judge.partition(":")[0] in judge_open.KINDS:
        opened = judge_open.open_judge(judge, engine=engine)
        known = "kind" in responses and responses["kind"].notna().any()
        for kind in ("harmless", "helpful"):
            part = responses[responses["kind"] == kind] if known else responses
            if part.empty or (not known and kind == "helpful"):
                continue
            pairs = (human or {}).get(kind)
            found = judge_quality.measure(opened.compare, kind, judge=judge, human=pairs, responses=part, seed=seed)
            tables += [found.assign(suite=suite) for suite in asked]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=judge_quality.COLUMNS)
    return table[judge_quality.COLUMNS]


def _by_votes(given: _Given, seed: int) -> SuiteResult:
    """Elo of people's votes, which are comparisons already."""
    from suites import elo

    votes = judges.from_votes(Path(given.value))
    return elo.run(votes, anchor=given.anchor or str(votes["arm_a"].iloc[0]), seed=seed)


def score_chains(chains: pd.DataFrame, judge: str | None) -> pd.DataFrame:
    """`chains` with the PM's score of every revision in score_harmless, in place of the scores they came with.

    By judge column:NAME the chains' own column of that name, where they have it; by any other they stay as they are.
    """
    kind, _, value = (judge or "").partition(":")
    if judge and kind in judge_open.SCORING and (scorer := judge_open.open_judge(judge).score) is not None:
        own = chains.drop(columns=["score_harmless", "score_helpful"], errors="ignore")
        return own.assign(score_harmless=scorer(own["prompt"].tolist(), own["response"].tolist()))
    if kind == "column" and value in chains and value not in ("score_harmless", "score_helpful"):
        return chains.assign(score_harmless=_numbers(chains, value))
    return chains


def _from_column(responses: pd.DataFrame, value: str) -> tuple[pd.DataFrame, list[str]]:
    """(responses with column score, notes). Kinds, arms and steps that the column scores nowhere are left out."""
    if value not in responses:
        there = ", ".join(map(str, responses.columns))
        raise UserError(f"--judge column:{value}: the responses have no such column; they have {there}")
    table = responses.reset_index(drop=True)
    if table[value].isna().all():
        raise UserError(f"--judge column:{value}: no response has a value there; fill it in or give another column")
    step = table["step"].map(lambda step: "" if pd.isna(step) else f" at step {step}")
    groups = ["responses of " + table["arm"] + step]
    if "kind" in table:
        groups.insert(0, "responses to " + table["kind"].fillna("other") + " prompts")
    notes = []
    for group in groups:
        # What no row of a group has was not scored, on purpose; what some rows lack is an error (`_numbers`).
        group = group[table.index]
        scored = table[value].notna().groupby(group).transform("any")
        notes += [f"{name}: left out, none has a {value}" for name in group[~scored].unique()]
        table = table[scored]
    return table.assign(score=_numbers(table, value)), notes


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    """Finite numbers of `column`; a row that has none is named by its place and arm."""
    rows = [f"{row + 1} (arm {arm})" for row, arm in zip(table.index, table["arm"], strict=True)]
    return finite(pd.to_numeric(table[column], errors="coerce").astype("float64"), column, rows)
