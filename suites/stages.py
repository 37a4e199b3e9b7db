"""The suites as stages of a run: sample every arm and snapshot, score, and give each suite what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from harness import scoring
from harness.errors import UserError
from harness.experiment import Experiment
from harness.graph import Stage, Work
from harness.hh_layout import SHIPPED
from suites import along_rl, chosen, judge_stage, judges, learned, registry
from suites.sample import (
    BEST_SETTINGS,
    KINDS,
    OPTIONS,
    SAMPLE_SETTINGS,
    SCORE_SETTINGS,
    gold_pm,
    sample_arm,
    sample_best,
    score_chains,
    score_responses,
)

REASONINGS = 5  # averaged for hhh, as in the paper


def plan(
    experiment: Experiment,
    arms: Mapping[str, Stage | None],
    pms: Mapping[str, Stage],
    chains: Mapping[str, Stage],
    data: Stage,
) -> dict[str, Stage]:
    """Stages by name: "responses", "chains" (scored), "learned.ARM" and one for each suite of the experiment.

    Raises UserError for an unknown suite, and for one whose data the experiment does not name.
    """
    options = experiment.settings(*OPTIONS)
    results = _results(experiment, arms, data)
    sampled = {f"sample.{arm}": _sample(arm, policy, experiment, data, results.get(arm))
               for arm, policy in arms.items()}  # fmt: skip
    gold = {f"gold.{kind}": pms[f"gold.{kind}"] for kind in KINDS}
    score = experiment.settings(*SCORE_SETTINGS)
    stages = {"responses": Stage("responses", score_responses, score, sampled | gold, options=options, kind="score")}
    if chains:
        inputs = {f"chains.{mode}": stage for mode, stage in chains.items()} | gold
        stages["chains"] = Stage("chains", score_chains, score, inputs, options=options, kind="score")
    stages |= _learned(experiment, arms, sampled, data)
    given = {"responses": stages["responses"], "gold.harmless": gold["gold.harmless"]}
    given |= {"chains": stages["chains"]} if chains else {}
    given |= {f"along.{arm}": _along(arm, stage, sampled[f"sample.{arm}"], experiment, results.get(arm))
              for arm, stage in arms.items() if stage is not None and "pm" in stage.inputs and not _best_of(stage)
              }  # fmt: skip
    needed: set[str] = set()
    for name in experiment.suites:
        suite = registry.find(name, "suites:")
        needed |= set(suite.needs)
        stages[suite.name] = _stage(suite, experiment, given)
    if needed & {"compare", "score_column"}:
        stages["judges"] = judge_stage.stage(experiment, stages["responses"], data, gold)
    return stages


def _results(experiment: Experiment, arms: Mapping[str, Stage | None], data: Stage) -> dict[str, Stage]:
    """The stages that choose the snapshots which count as results of the arms trained against a PM; none: the last."""
    rule = experiment.rl.result
    if rule == "last":
        return {}
    found = {}
    for arm, trained in arms.items():
        if trained is not None and "pm" in trained.inputs and not _best_of(trained):
            start = {role: trained.inputs[role] for role in ("policy",) if role in trained.inputs}
            found[arm] = Stage(
                f"result.{arm}",
                chosen.choose,
                experiment.settings(*chosen.SETTINGS) | {"arm": arm, "prompts": _kinds(trained)},
                {"arm": trained, "data": data, "pm": trained.inputs["pm"]} | start,
                models={} if start else {"reference": experiment.models.base},
                options=experiment.settings(*chosen.OPTIONS),
                kind="score",
            )
    return found


def _kinds(trained: Stage) -> list[str]:
    """The kinds of prompts that an arm's RL trained on."""
    return [kind for kind in KINDS if kind in trained.settings.get("prompts", KINDS)]


def _best_of(arm: Stage | None) -> bool:
    return arm is not None and "scale.best_of" in arm.settings


def _sample(arm: str, policy: Stage | None, experiment: Experiment, data: Stage, result: Stage | None = None) -> Stage:
    """The stage that samples an arm and its snapshots; of a best-of-n arm, the policy and the PM that make it up.

    result: the stage that chooses which of them counts as the arm's result; None: the last.
    """
    settings, options = experiment.settings(*SAMPLE_SETTINGS) | {"arm": arm}, experiment.settings(*OPTIONS)
    if policy is not None and _best_of(policy):
        settings |= experiment.settings(*BEST_SETTINGS)
        return Stage(
            f"sample.{arm}", sample_best, settings, {"data": data, **policy.inputs}, options=options, kind="sample"
        )
    inputs, models = {"data": data}, dict[str, str]()
    if policy is None:
        models["policy"] = experiment.models.base
    else:
        inputs["policy"] = policy
    inputs |= {"result": result} if result is not None else {}
    return Stage(f"sample.{arm}", sample_arm, settings, inputs, models=models, options=options, kind="sample")


def _learned(
    experiment: Experiment, arms: Mapping[str, Stage | None], sampled: Mapping[str, Stage], data: Stage
) -> dict[str, Stage]:
    """The stages that say whether each arm's training moved what it optimises: for RL by a PM, and for fine-tuning."""
    found = {}
    options = experiment.settings(*learned.OPTIONS)
    starts = dict(sampled)  # and of models that no arm of the run is: arms may share one
    for arm, trained in arms.items():
        name = f"learned.{arm}"
        if trained is not None and "pm" in trained.inputs and not _best_of(trained):
            start = trained.inputs.get("policy")
            origin = next(
                (other for other, stage in arms.items() if stage is start), start.name if start else "pretrained"
            )
            before = f"sample.{origin}"
            starts[before] = starts.get(before) or _sample(origin, start, experiment, data)
            found[name] = Stage(
                name,
                learned.measure_reward,
                experiment.settings(*learned.REWARD_SETTINGS) | {"arm": arm, "kinds": _kinds(trained)},
                {"start": starts[before], "end": sampled[f"sample.{arm}"], "pm": trained.inputs["pm"]},
                options=options,
                kind="score",
            )
        elif trained is not None and "chains" in trained.inputs:
            found[name] = Stage(
                name,
                learned.measure_likelihood,
                experiment.settings(*learned.LIKELIHOOD_SETTINGS) | {"arm": arm},
                {"arm": trained},
                models={"start": experiment.models.base},
                options=options,
                kind="score",
            )
    return found


def _along(arm: str, trained: Stage, sample: Stage, experiment: Experiment, result: Stage | None) -> Stage:
    """The stage that follows an arm along its RL against a PM; `result` as for `_sample`."""
    start = {role: trained.inputs[role] for role in ("policy",) if role in trained.inputs}
    return Stage(
        f"along.{arm}",
        along_rl.measure_along,
        experiment.settings(*along_rl.SETTINGS) | {"arm": arm},
        {"arm": trained, "sample": sample, "pm": trained.inputs["pm"]}
        | start
        | ({"result": result} if result is not None else {}),
        models={} if start else {"reference": experiment.models.base},
        options=experiment.settings(*along_rl.OPTIONS),
        kind="score",
    )


def _stage(suite: registry.Suite, experiment: Experiment, given: Mapping[str, Stage]) -> Stage:
    """The stage of one suite, declaring what its needs read in a run."""
    needs = set(suite.needs)
    settings = experiment.settings("seed") | {"suite": suite.name, "needs": list(suite.needs)}
    inputs: dict[str, Stage] = {}
    files: dict[str, str | Path] = {**suite.files}
    models: dict[str, str] = {}
    options: dict[str, Any] = {"run": suite.run}
    if suite.reads_responses:
        inputs["responses"] = given["responses"]
    if "chains" in needs and "chains" in given:
        inputs["chains"] = given["chains"]
    if "training" in needs:
        inputs |= {role: stage for role, stage in given.items() if role.startswith("along.")}
        own_settings, own_files, own_models = judge_stage.truth(experiment)
        settings |= own_settings
        files |= own_files
        models |= own_models
    if "scorer" in needs:
        inputs["gold.harmless"] = given["gold.harmless"]
        settings |= experiment.settings(*SCORE_SETTINGS)
    if "compare" in needs:
        judging = judge_stage.reads(experiment)
        settings |= judging[0]
        files |= judging[1]
        models |= judging[2]
    if "ratings" in needs:
        own = experiment.data.harm_ratings
        files["stand_in" if own is None else "ratings"] = SHIPPED / "harmfulness_ratings.jsonl" if own is None else own
    if "comparisons" in needs:
        if experiment.data.hhh is None:
            raise UserError(f"data.hhh: suite {suite.name} needs the HHH comparisons; name their file, or leave it out")
        files["hhh"] = experiment.data.hhh
    if "reasoning" in needs:
        settings |= experiment.settings("feedback.cot_tokens")
    if "models" in needs:
        models["feedback"] = experiment.models.feedback or experiment.models.base
    if models:
        settings |= experiment.settings("models.engine")
    if models or needs & {"scorer", "compare"}:
        options |= experiment.settings("scale.batch_size")
    calls = (suite.run, *(f"suites.stages:_{need}" for need in suite.needs))
    kind = "model" if "scale.batch_size" in options else "table"
    return Stage(suite.name, measure, settings, inputs, files, models, options, calls, kind=kind)


# ---------------------------------------------------------------- what a suite needs, in a run
# Each need has a function of its name below, called by name so that a suite's key follows those of its own needs alone.


def measure(work: Work) -> None:
    """Run one suite: summary.parquet and its tables."""
    suite = registry.Suite(work.settings.suite, work.settings.needs, (), work.options.run)
    opened: list[Any] = []
    given = {need: globals()[f"_{need}"](work, opened) for need in suite.needs}
    result = suite.function()(**given, seed=work.settings.seed)
    if "compare" in suite.needs:
        result.notes[:0] = work.settings.circular
    result.save(work.folder)
    for model in opened:
        work.count(model.tokens)


def _responses(work: Work, opened: list[Any]) -> pd.DataFrame:
    return pd.read_parquet(work.inputs["responses"] / "responses.parquet")


def _scored_responses(work: Work, opened: list[Any]) -> pd.DataFrame:
    return _responses(work, opened)  # the gold PMs' scores are in it


def _judge_model(work: Work, opened: list[Any]) -> None:
    return None  # a run's classifier decides alone


def _advance(work: Work, opened: list[Any]) -> Callable[[int, int], None]:
    return work.progress.advance


def _anchor(work: Work, opened: list[Any]) -> None:
    return None


def _chains(work: Work, opened: list[Any]) -> pd.DataFrame | None:
    return pd.read_parquet(work.inputs["chains"] / "chains.parquet") if "chains" in work.inputs else None


def _compare(work: Work, opened: list[Any]) -> Callable[[pd.DataFrame, str], pd.DataFrame]:
    """The first judge of pairs."""
    return _judge(work, opened, 0)


def _others(work: Work, opened: list[Any]) -> dict[str, Callable[[pd.DataFrame, str], pd.DataFrame]]:
    """The other judges of pairs by name."""
    names = work.settings.judges
    return {names[place]: _judge(work, opened, place) for place in range(1, len(names))}


def _judge(work: Work, opened: list[Any], place: int) -> Callable[[pd.DataFrame, str], pd.DataFrame]:
    """The judge at `place` of the experiment's list; the gold PMs' scores are in the responses already."""
    if work.settings.judges[place] == judge_stage.GOLD:
        return lambda part, kind: judges.from_scores(part, f"score_{kind}", judge="gold PM")
    judge = judge_stage.open_of(work, place)
    if judge.model is not None:
        opened.append(judge.model)
    return judge.compare


def _training(work: Work, opened: list[Any]) -> pd.DataFrame | None:
    """KL, proxy and gold scores; gold is the deciding judge's where it gives scores, else the gold PM's."""
    folders = [path for role, path in work.inputs.items() if role.startswith("along.")]
    table = _responses(work, opened)
    if "judge.0" in work.files or "judge.0" in work.models:
        table = table[table["kind"] == along_rl.KIND].reset_index(drop=True)
        kind, place = work.settings.judges[0].partition(":")[0], work.files.get("judge.0") or work.models["judge.0"]
        length, batch = work.settings.pm.max_length, work.options.scale.batch_size
        score = scoring.open_scorer(f"{kind}:{place}", batch_size=batch, max_length=length)
        table["score_harmless"] = score(table["prompt"].tolist(), table["response"].tolist())
    return along_rl.with_gold(table, (pd.read_parquet(path / "along.parquet") for path in folders))


def _comparisons(work: Work, opened: list[Any]) -> pd.DataFrame:
    from suites import hhh

    return hhh.load(work.files["hhh"])


def _open(work: Work, opened: list[Any]) -> Any:
    """The feedback model, remembered in `opened` for its count of tokens."""
    from harness.models.open import open_model

    model = open_model(
        work.models["feedback"],
        engine=work.settings.models.engine,
        batch_size=work.options.scale.batch_size,
        choosing=True,
    )
    opened.append(model)
    return model


def _score_column(work: Work, opened: list[Any]) -> str:
    return "score_harmless"


def _scorer(work: Work, opened: list[Any]) -> Any:
    return gold_pm(work, "harmless").score


def _ratings(work: Work, opened: list[Any]) -> Path | None:
    return work.files.get("ratings")


def _models(work: Work, opened: list[Any]) -> Any:
    return {"feedback_model": partial(_open, work, opened)}


def _reasoning(work: Work, opened: list[Any]) -> tuple[int, int]:
    return REASONINGS, work.settings.feedback.cot_tokens
