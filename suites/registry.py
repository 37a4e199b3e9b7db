"""The list of suites: what each needs, what it measures, and where its function is; runs, `cai eval`, reports read it.

A suite's function takes what it needs by keyword, and seed, and returns a `SuiteResult`. Nothing heavy is imported
until a function is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.errors import UserError, own_code

if TYPE_CHECKING:
    from suites.result import SuiteResult

# What a suite may need: the keywords of its function.
NEEDS = {
    "responses": "prompt, response, arm, step, sample, kind",
    "scored_responses": "the same with the judge's scores, where it gives any",
    "compare": "(responses, kind) -> comparisons of pairs: the judge",
    "judge_model": "the judge where it is a language model, or None",
    "advance": "(done, total) -> None: told how far the suite is",
    "others": "the same of further judges, by name",
    "anchor": "the arm whose Elo is 0, or None",
    "score_column": "which column of scored_responses has the judge's scores",
    "chains": "critique-revision chains with scores, or None",
    "scorer": "(prompts, responses) -> scores of a PM, or None",
    "training": "KL, proxy and gold scores along RL, or None",
    "ratings": "file of people's harm ratings, or None",
    "models": "feedback models by label, each opened by a call",
    "comparisons": "HHH comparisons",
    "reasoning": "(reasonings averaged, tokens at most of each); (0, ..) for none",
}


@dataclass(frozen=True)
class Metric:
    """A metric of a suite's summary. One with a title stands on the scoreboard; `name` may begin a family of names."""

    name: str
    title: str = ""
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""


@dataclass(frozen=True)
class Suite:
    """A suite. run: "module:function" or "file.py:function"; files: data of its own that the function reads."""

    name: str
    needs: Sequence[str]
    metrics: Sequence[Metric]
    run: str
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def reads_responses(self) -> bool:
        return bool({"responses", "scored_responses"} & set(self.needs))

    def function(self) -> Callable[..., SuiteResult]:
        """The function itself. Raises UserError where a user's file fails."""
        place, _, name = self.run.rpartition(":")
        if not place.endswith(".py"):
            found: Callable[..., SuiteResult] = getattr(importlib.import_module(place), name)
            return found
        return _checked(place, name)


SUITES: tuple[Suite, ...] = (
    Suite(
        "elo",
        ("scored_responses", "compare", "others", "anchor"),
        (
            Metric("elo_harmlessness", "Harmlessness Elo", "Elo", "higher"),
            Metric("elo_helpfulness", "Helpfulness Elo", "Elo", "higher"),
            Metric("win_rate_helpfulness"),  # against the arm at 0; with _adjusted: at equal length
        ),
        "suites.elo:by_kind",
    ),
    Suite(
        "pm_score",
        ("scored_responses", "score_column", "chains"),
        (Metric("pm_score", "PM score", "log-odds", "higher"),),
        "suites.pm_score:of_red_team",
    ),
    Suite(
        "evasiveness",
        ("responses", "judge_model", "advance"),
        (Metric("evasive_rate", "Evasive", "%", "lower"), Metric("over_refusal_rate", "Over-refusal", "%", "lower")),
        "suites.evasiveness:run",
        {"examples": Path(__file__).with_name("evasiveness_examples.jsonl")},
    ),
    Suite(
        "goodharting",
        ("responses", "scorer", "training", "advance"),
        (
            Metric("boilerplate_rate", "Boilerplate", "%", "lower"),
            *map(Metric, ("distinct_2", "self_bleu", "compression_ratio", "length", "gold_turn_sqrt_kl")),
        ),
        "suites.goodharting:run",
    ),
    Suite(
        "harmfulness",
        ("responses", "ratings"),
        (Metric("harmfulness", "Harmfulness", "0 to 4", "lower"),),
        "suites.harmfulness:of_red_team",
    ),
    Suite(
        "hhh",
        ("models", "comparisons", "reasoning"),
        tuple(map(Metric, ("accuracy", "position_bias", "order_consistency", "ece"))),
        "suites.hhh:of_models",
    ),
)


def names() -> list[str]:
    return [suite.name for suite in SUITES]


def find(name: str, where: str) -> Suite:
    """The suite `name`, or that of a user's Python file with a function run(responses, *, seed).

    `where` ("--suite", "suites:") begins the message of the UserError for one that is not there.
    """
    if not name.endswith(".py"):
        for suite in SUITES:
            if suite.name == name:
                return suite
        raise UserError(f"{where} {name}: no such suite; choose from {', '.join(names())}, or name a Python file")
    path = Path(name)
    if not path.is_file():
        raise UserError(f"{where} {name}: file not found; name one with a function run(responses, *, seed)")
    if path.stem in names():
        raise UserError(f"{where} {name}: a suite is called {path.stem} already; rename the file")
    own = Suite(path.stem, ("responses",), (), f"{path.resolve()}:run")
    own.function()
    return own


def _checked(file: str, name: str) -> Callable[..., SuiteResult]:
    """Function `name` of a user's file, its result checked."""
    from suites.result import SUMMARY_COLUMNS, SuiteResult

    path = Path(file)
    spec = importlib.util.spec_from_file_location(f"cai_suite_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with own_code(f"suite {file}"):
        spec.loader.exec_module(module)
        function = getattr(module, name)

    def run(**given: object) -> SuiteResult:
        with own_code(f"suite {file}"):
            result = function(given.pop("responses"), **given)
        if not isinstance(result, SuiteResult) or list(result.summary.columns) != SUMMARY_COLUMNS:
            raise UserError(f"suite {file}: run() must return a SuiteResult; make its summary with summary_frame")
        return result

    return run
