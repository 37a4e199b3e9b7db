"""What a run's tables say about each claim: one measure a claim, as contrasts with their bootstrap over prompts.

Tables are those of RUN/results; one that is missing, or holds too little, raises `NotMeasured` with the remedy. Here
are the measures of revisions, feedback models and PMs; those of the arms are in `claims_arms`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from harness.stats import Bootstrap
from harness.stats.calibration import squared_calibration_error
from suites import claims_arms
from suites.claims_contrasts import RESAMPLES, Contrast, NotMeasured
from suites.claims_tables import Tables, part
from suites.responses import main_chains

_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)\s*([MB])(?![A-Za-z])", re.IGNORECASE)


# ---------------------------------------------------------------- revisions (claims 1 to 4)

_CHAINS = "score chains with a PM: `cai eval CHAINS --suite pm_score --judge pm:FOLDER`, or suite pm_score of a run"
_HELPFUL = "run suite pm_score in `cai run`, or give chains a column score_helpful"


def _chains(tables: Tables, score: str, *columns: str) -> pd.DataFrame:
    remedy = _HELPFUL if score == "score_helpful" else _CHAINS
    return tables.read("chains", ["prompt", "revision", score, *columns], remedy)


def _last(chains: pd.DataFrame) -> pd.DataFrame:
    return chains[chains["revision"] == chains["revision"].max()]


def _standardised(tables: Tables, chains: pd.DataFrame, score: str, a: pd.DataFrame, b: pd.DataFrame) -> Bootstrap:
    """Mean score of a minus that of b, in standard deviations of the scores of the first answers."""
    first = chains[chains["revision"] == 0]
    if first.empty or np.ptp(first[score]) == 0:
        raise NotMeasured(f"chains.parquet: {score} of the first answers is missing or does not vary; {_CHAINS}")
    return tables.combine(part(1, a, score), part(-1, b, score), unit=part(1, first, score))


def revisions_harmless(tables: Tables) -> list[Contrast]:
    """Harmlessness PM score of each revision minus that of the one before."""
    chains = main_chains(_chains(tables, "score_harmless"))
    steps = sorted(chains["revision"].unique())
    if len(steps) < 2:
        raise NotMeasured("chains.parquet holds no revision; run with revise.rounds of 4")
    by = {step: chains[chains["revision"] == step] for step in steps}
    return [
        Contrast(
            f"revision {b} - {a}",
            tables.combine(part(1, by[b], "score_harmless"), part(-1, by[a], "score_harmless")),
        )
        for a, b in itertools.pairwise(steps)
    ]


def revisions_helpful(tables: Tables) -> list[Contrast]:
    """Helpfulness PM score of the last revision minus that of the first answer."""
    chains = main_chains(_chains(tables, "score_helpful"))
    first, last = chains[chains["revision"] == 0], _last(chains)
    if first.empty or last["revision"].max() == 0:
        raise NotMeasured("chains.parquet holds no revision; run with revise.rounds of 4")
    value = tables.combine(part(1, last, "score_helpful"), part(-1, first, "score_helpful"))
    return [Contrast(f"revision {last['revision'].max()} - 0", value)]


def number_of_principles(tables: Tables) -> list[Contrast]:
    """Harmlessness PM score of the last revision with N principles minus that with the most, in SD.

    Assay: with the most principles, revisions raise the score by more than the margin.
    """
    chains = _chains(tables, "score_harmless", "n_principles")
    if "mode" in chains and (chains["mode"] == "critiqued").any():
        chains = chains[chains["mode"] == "critiqued"]
    last = _last(chains)
    sizes = sorted(last["n_principles"].dropna().unique())
    if len(sizes) < 2:
        raise NotMeasured("chains.parquet knows one number of principles; make chains with N in 1, 2, 4, 8, 16")
    most = last[last["n_principles"] == sizes[-1]]
    contrasts = [
        Contrast(
            f"N = {n} - {sizes[-1]}",
            _standardised(tables, chains, "score_harmless", last[last["n_principles"] == n], most),
        )
        for n in sizes[:-1]
    ]
    return [*contrasts, _revisions_work(tables, chains, most, chains[chains["n_principles"] == sizes[-1]])]


def critiques(tables: Tables) -> list[Contrast]:
    """Harmlessness PM score of the last revision, critiqued minus direct, in SD.

    Assay: direct revisions raise the score by more than the margin.
    """
    chains = _chains(tables, "score_harmless", "mode")
    last = _last(chains)
    critiqued, direct = last[last["mode"] == "critiqued"], last[last["mode"] == "direct"]
    if critiqued.empty or direct.empty:
        raise NotMeasured("chains.parquet needs both modes, critiqued and direct; run with revise.also_direct: true")
    return [
        Contrast("critiqued - direct", _standardised(tables, chains, "score_harmless", critiqued, direct)),
        _revisions_work(tables, chains, direct, chains[chains["mode"] == "direct"]),
    ]


def _revisions_work(tables: Tables, chains: pd.DataFrame, last: pd.DataFrame, own: pd.DataFrame) -> Contrast:
    """Assay: `last` revisions minus the first answers of their `own` chains."""
    first = own[own["revision"] == 0]
    if first.empty:
        raise NotMeasured(f"chains.parquet holds no first answers (revision 0); {_CHAINS}")
    value = _standardised(tables, chains, "score_harmless", last, first)
    return Contrast("last revision - first answer", value, "exceeds", "increase", "assay")


# ---------------------------------------------------------------- feedback models (claims 12 to 14)

_HHH = "run suite hhh"


def _mode(questions: pd.DataFrame, mode: str) -> pd.DataFrame:
    rows = questions[questions["mode"] == mode]
    if rows.empty:
        raise NotMeasured(f"hhh/questions.parquet has no answers in mode {mode}; {_HHH} with it")
    return rows


def chain_of_thought_hhh(tables: Tables) -> list[Contrast]:
    """HHH accuracy with CoT minus that without."""
    questions = tables.read("hhh/questions", ["question", "mode", "correct"], f"{_HHH} with modes plain and cot")
    parts = [part(w, _mode(questions, mode), "correct", "question") for w, mode in ((1, "cot"), (-1, "plain"))]
    return [Contrast("cot - plain", tables.combine(*parts))]


def calibration(tables: Tables) -> list[Contrast]:
    """Squared calibration error of plain labels on HHH, and how far mean confidence exceeds accuracy with CoT.

    Premise: plain labels are right more often than chance, since who guesses and says so is calibrated.
    """
    columns = ["question", "mode", "p_correct", "correct"]
    questions = tables.read("hhh/questions", columns, f"{_HHH} with modes plain and cot")
    p, right = questions["p_correct"].astype("float64"), questions["correct"].astype("float64")
    confidence = np.maximum(p, 1 - p)
    questions = questions.assign(confidence=confidence, excess=confidence - right, above_chance=right - 0.5)
    plain, cot = _mode(questions, "plain"), _mode(questions, "cot")
    error = squared_calibration_error(
        plain["confidence"], plain["correct"].astype("float64"), plain["question"], tables.seed, RESAMPLES
    )
    above = tables.combine(part(1, plain, "above_chance", "question"))
    return [
        Contrast("plain, squared error", error, "non_inferiority", "decrease"),
        Contrast("cot, confidence - accuracy", tables.combine(part(1, cot, "excess", "question"))),
        Contrast("plain, accuracy - chance", above, "difference", role="premise"),
    ]


def parameters(name: str) -> float:
    """Parameters that a model's name tells ("SmolLM2-135M" -> 1.35e8), NaN where it does not."""
    found = _SIZE.findall(name)
    return float(found[-1][0]) * {"M": 1e6, "B": 1e9}[found[-1][1].upper()] if found else float("nan")


def feedback_model_size(tables: Tables) -> list[Contrast]:
    """Slope of HHH accuracy (plain) on log10 of the feedback model's parameters."""
    remedy = f"{_HHH} with feedback models of two sizes at least, named in column model (or sized in parameters)"
    columns = ["question", "mode", "correct", "model"]
    questions = _mode(tables.over_sizes("hhh/questions", columns, remedy), "plain")
    if questions["model"].nunique() < 2:
        raise NotMeasured(f"one feedback model; {remedy}")
    named = questions["model"].astype(str).map(parameters)
    questions = questions.assign(
        parameters=questions["parameters"].fillna(named) if "parameters" in questions else named
    )
    if (unsized := questions["parameters"].isna()).any():
        raise NotMeasured(f"the size of {questions.loc[unsized, 'model'].iloc[0]} is unknown; add column parameters")
    sizes = questions["parameters"].unique()
    if len(sizes) < 2:
        raise NotMeasured(f"feedback models of one size; {remedy}")
    x = np.log10(np.asarray(sizes, dtype=float))
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    parts = [
        part(w, questions[questions["parameters"] == s], "correct", "question")
        for w, s in zip(weights, sizes, strict=True)
    ]
    return [Contrast(f"slope over {len(sizes)} sizes", tables.combine(*parts))]


# ---------------------------------------------------------------- preference models (claims 15, 16)

SINGLE_PRINCIPLES = 3  # at least: a claim about single principles is not one about a lucky or an unlucky one


def _pm_accuracy(tables: Tables, variant: str, least: int, remedy: str) -> list[Contrast]:
    """Held-out accuracy of PM X minus the mean over its variants X.variant, X.variant_1, ..., on the same pairs."""
    pairs = tables.read("pm_pairs", ["pm", "prompt", "correct"], remedy)
    if "kind" in pairs and (pairs["kind"] == "harmless").any():
        pairs = pairs[pairs["kind"] == "harmless"]
    variants: dict[str, list[str]] = {}
    for name in sorted(set(pairs["pm"])):
        if (found := re.fullmatch(rf"(.+)\.{variant}(_\d+)?", name)) and (pairs["pm"] == found[1]).any():
            variants.setdefault(found[1], []).append(name)
    if not variants:
        raise NotMeasured(f"pm_pairs.parquet has no PM that stands beside its variant '.{variant}'; {remedy}")
    if (fewest := min(map(len, variants.values()))) < least:
        raise NotMeasured(f"{fewest} of the {least} variants '.{variant}' that are averaged; {remedy}")
    parts = [part(1 / len(variants), pairs[pairs["pm"] == name], "correct") for name in variants]
    for names in variants.values():
        weight = -1 / len(variants) / len(names)
        parts += [part(weight, pairs[pairs["pm"] == name], "correct") for name in names]
    several = f" (mean of {least} or more)" if least > 1 else ""
    return [Contrast(f"{', '.join(variants)} - .{variant}{several}", tables.combine(*parts))]


def soft_labels(tables: Tables) -> list[Contrast]:
    """Held-out accuracy, soft labels minus hard labels."""
    return _pm_accuracy(tables, "hard", 1, "train a PM X on soft AI labels and X.hard on the same labels rounded")


def principles_for_labels(tables: Tables) -> list[Contrast]:
    """Held-out accuracy, 16 principles minus one for all labels, averaged over several single principles."""
    remedy = (
        "train a PM X on labels by 16 principles and X.one_principle, X.one_principle_1, ... on a single one's each"
    )
    return _pm_accuracy(tables, "one_principle", SINGLE_PRINCIPLES, remedy)


MEASURES: dict[str, Callable[[Tables], list[Contrast]]] = {
    measure.__name__: measure
    for measure in (
        revisions_harmless, revisions_helpful, number_of_principles, critiques, claims_arms.harmlessness_order,
        claims_arms.helpfulness_kept, claims_arms.chain_of_thought_elo, claims_arms.evasive_final,
        claims_arms.decline_along_rl, claims_arms.harmful_along_rl, claims_arms.over_trained, chain_of_thought_hhh,
        calibration, feedback_model_size, soft_labels, principles_for_labels,
    )
}  # fmt: skip
