"""The judges of a run (`models.judge`): what they read, how they are opened, and the stage that tests them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from harness import scoring, store
from harness.experiment import Experiment
from harness.graph import Stage, Work
from suites import judge_open, judge_quality
from suites.judge_open import Judge
from suites.sample import KINDS, OPTIONS, SCORE_SETTINGS, gold_pm

GOLD = "gold_pm"


def reads(experiment: Experiment) -> tuple[dict[str, Any], dict[str, str | Path], dict[str, str]]:
    """(settings, files, models) of the judges, by their place: "judge.0" decides, others stand beside it."""
    models = experiment.models
    names = [_name(judge, experiment) for judge in models.judge]
    settings: dict[str, Any] = {"judges": [scoring.label(name) for name in names]}
    settings["circular"] = _circular(experiment)
    files: dict[str, str | Path] = {}
    weights: dict[str, str] = {}
    for place, name in enumerate(names):
        kind, _, value = name.partition(":")
        if kind == "scorer":
            files[f"judge.{place}"] = value
        elif kind in ("pm", "model", "server"):
            weights[f"judge.{place}"] = name if kind == "server" else value
            settings |= experiment.settings(*(SCORE_SETTINGS if kind == "pm" else ("models.engine",)))
    return settings, files, weights


def _name(judge: str, experiment: Experiment) -> str:
    """`judge` as `judge_open` knows it; the model that made the AI labels by its own name."""
    if judge != "feedback":
        return judge
    feedback = experiment.models.feedback or experiment.models.base
    return feedback if feedback.startswith("server:") or scoring.is_scorer(feedback) else f"model:{feedback}"


def _circular(experiment: Experiment) -> list[str]:
    """What the report must say of judges that also made labels, AI's or in place of people, of an arm in this run."""
    models, by = experiment.models, experiment.annotator
    makers = {"rl_cai": models.feedback or models.base, "rl_cai_cot": models.feedback_cot}
    of_people = {"hh_rlhf": {by.harmless, by.helpful}} | {
        arm: {by.helpful} for arm in ("helpful_only", "rl_cai", "rl_cai_cot")
    }
    said = []
    for judge in models.judge:
        name = _name(judge, experiment)
        taught = [
            arm
            for arm in experiment.arms
            if name in of_people.get(arm, set()) or (arm in makers and name in (makers[arm], f"model:{makers[arm]}"))
        ]
        if taught:
            said.append(f"circular: {scoring.label(name)} judges, and made the labels of {' and '.join(taught)}")
    return said


def truth(experiment: Experiment) -> tuple[dict[str, Any], dict[str, str | Path], dict[str, str]]:
    """(settings, files, models) of the deciding judge where it gives scores of its own, which are then gold along RL;
    else nothing: the gold PM's are."""
    first = _name(experiment.models.judge[0], experiment)
    if not scoring.is_scorer(first):
        return {}, {}, {}
    files, models = scoring.declared(first, "judge.0")
    return {"judges": [scoring.label(first)]} | experiment.settings(*SCORE_SETTINGS), files, models


def stage(experiment: Experiment, responses: Stage, data: Stage, gold: dict[str, Stage]) -> Stage:
    """The stage that tests the judges on the run's held-out human pairs and its responses."""
    settings, files, models = reads(experiment)
    settings |= experiment.settings("seed", *SCORE_SETTINGS)
    files["nonevasive_pairs"] = judge_quality.PAIRS
    inputs = {"responses": responses, "data": data} | gold
    options = experiment.settings(*OPTIONS)
    return Stage("judges", measure_judges, settings, inputs, files, models, options)


def open_of(work: Work, place: int) -> Judge:
    """The judge at `place` of the experiment's list."""
    name = work.settings.judges[place]
    if name == GOLD:
        return judge_open.of_scores("gold PM", lambda kind: gold_pm(work, kind).score)
    kind, _, value = name.partition(":")
    role = f"judge.{place}"
    if role in work.files:
        value = str(work.files[role])
    elif role in work.models:
        value = work.models[role].removeprefix("server:")
    own: dict[str, Any] = {"batch_size": work.options.scale.batch_size}
    if kind == "pm":
        own["max_length"] = work.settings.pm.max_length
    if kind in ("model", "server"):
        own["engine"] = work.settings.models.engine
    return judge_open.renamed(judge_open.open_judge(f"{kind}:{value}", **own), name)


def measure_judges(work: Work) -> None:
    """judges.parquet: has each judge of Elo earned its verdicts, and has the gold PM, which gives the PM scores?"""
    responses = pd.read_parquet(work.inputs["responses"] / "responses.parquet")
    preferences = pd.read_parquet(work.inputs["data"] / "preferences.parquet")
    heldout = preferences[preferences["split"] == "heldout"]
    names = list(work.settings.judges)
    places: list[int | None] = [*range(len(names)), *([] if GOLD in names else [None])]
    parts = []
    for done, place in enumerate(places, start=1):
        by_scores = place is None or names[place] == GOLD
        gold = judge_open.of_scores("gold PM", lambda kind: gold_pm(work, kind).score)
        judge = gold if place is None else open_of(work, place)
        for kind in KINDS:
            of_kind = {"human": heldout[heldout["kind"] == kind], "responses": responses[responses["kind"] == kind]}
            found = judge_quality.measure(judge.compare, kind, judge=judge.name, seed=work.settings.seed, **of_kind)
            suites = [*(["elo"] if place == 0 else []), *(["pm_score"] if by_scores else [])]
            parts += [found.assign(suite=suite) for suite in suites or [judge_quality.NONE]]
        if judge.model is not None:
            work.count(judge.model.tokens)
        work.progress.advance(done, len(places), "judges tested")
    store.write_table(work.folder / "judges.parquet", pd.concat(parts, ignore_index=True)[judge_quality.COLUMNS])
