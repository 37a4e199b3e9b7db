"""The suites as stages of a run: sample every arm and snapshot on the held-out prompts, score, measure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness import store
from harness.experiment import Experiment, Scale
from harness.graph import Stage, Work
from harness.models.base import LanguageModel

KINDS = ("harmless", "helpful")


def plan(
    experiment: Experiment,
    arms: Mapping[str, Stage | None],
    pms: Mapping[str, Stage],
    chains: Mapping[str, Stage],
    data: Stage,
) -> dict[str, Stage]:
    """Stages by name: "responses", "chains" (scored) and one for each suite of the experiment."""
    base = {"base": experiment.models.base, "scale": experiment.scale.model_dump(mode="json"), "seed": experiment.seed}
    base["max_length"] = experiment.pm.max_length
    sampled = {
        f"sample.{arm}": Stage(
            f"sample.{arm}", sample_arm, base | {"arm": arm}, {"data": data} | ({"policy": policy} if policy else {})
        )
        for arm, policy in arms.items()
    }
    gold = {f"gold.{kind}": pms[f"gold.{kind}"] for kind in KINDS}
    stages = {"responses": Stage("responses", score_responses, base, sampled | gold)}
    if chains:
        stages["chains"] = Stage("chains", score_chains, base, {f"chains.{m}": s for m, s in chains.items()} | gold)
    trained = {f"arm.{arm}": stage for arm, stage in arms.items() if stage is not None}
    inputs: dict[str, dict[str, Stage]] = {
        "elo": {},
        "pm_score": {"chains": stages["chains"]} if chains else {},
        "evasiveness": {},
        "goodharting": trained | {"gold.harmless": gold["gold.harmless"]},
        "harmfulness": {},
    }
    functions = {
        "elo": measure_elo,
        "pm_score": measure_pm_score,
        "evasiveness": measure_evasiveness,
        "goodharting": measure_goodharting,
        "harmfulness": measure_harmfulness,
    }
    for suite in experiment.suites:
        if suite == "hhh":
            path = experiment.data.hhh
            config = base | {"path": path, "feedback": experiment.models.feedback or experiment.models.base}
            config["cot_tokens"] = experiment.feedback.cot_tokens
            stages["hhh"] = Stage("hhh", measure_hhh, config, files=[path] if path else [])
            continue
        config = base | {"judge": experiment.models.judge}
        if suite == "elo" and experiment.models.judge == "feedback":
            config["feedback"] = experiment.models.feedback or experiment.models.base
        config["ratings"] = experiment.data.harm_ratings
        stages[suite] = Stage(suite, functions[suite], config, {"responses": stages["responses"]} | inputs[suite])
    return stages


def sample_arm(work: Work) -> None:
    """Answers of an arm, and of its snapshots, to the held-out prompts: responses.parquet. Resumes model by model."""
    from harness.models.open import open_model

    scale = Scale(**work.config["scale"])
    rows = pd.read_parquet(work.inputs["data"] / "prompts.parquet")
    heldout = rows[rows["split"] == "heldout"]
    policy = work.inputs.get("policy")
    checkpoints: list[tuple[int | None, Any]] = [(None, policy / "model" if policy else work.config["base"])]
    if policy is not None:
        found = sorted((policy / "snapshots").glob("step-*"))
        checkpoints = [(int(path.name.removeprefix("step-")), path) for path in found] + checkpoints
    asked = heldout.loc[heldout.index.repeat(scale.samples_per_prompt)]
    asked = asked.assign(sample=asked.groupby(["kind", "prompt"]).cumcount())
    for number, (step, path) in enumerate(checkpoints):
        part = work.folder / f"part-{number:03d}.parquet"
        if not part.exists():
            model = open_model(path, batch_size=scale.batch_size)
            samples = model.sample(
                asked["prompt"].tolist(),
                max_new_tokens=scale.max_new_tokens,
                # The same stream for every arm: differences between arms are not differences of luck alone.
                keys=[f"{p}/{s}" for p, s in zip(asked["prompt"], asked["sample"], strict=True)],
                seed=work.config["seed"],
            )
            said: dict[str, Any] = {
                "response": [sample.text for sample in samples],
                "ended": [sample.ended for sample in samples],
            }
            table = asked[["prompt", "kind", "sample"]].assign(**said, arm=work.config["arm"], step=step)
            store.write_table(part, table.astype({"step": "Int64"}))
            work.tokens += model.tokens
        work.progress.advance(number + 1, len(checkpoints), "checkpoints sampled")
    parts = sorted(work.folder.glob("part-*.parquet"))
    store.write_table(work.folder / "responses.parquet", pd.concat(map(pd.read_parquet, parts), ignore_index=True))
    for part in parts:
        part.unlink()


def score_responses(work: Work) -> None:
    """All arms' responses with the gold PM's score for their kind of prompt, in score_harmless or score_helpful."""
    tables = [
        pd.read_parquet(path / "responses.parquet") for role, path in work.inputs.items() if role.startswith("sample.")
    ]
    responses = pd.concat(tables, ignore_index=True)
    for done, kind in enumerate(KINDS, start=1):
        of_kind = responses["kind"] == kind
        pm = _pm(work, f"gold.{kind}")
        scores = pm.score(responses.loc[of_kind, "prompt"].tolist(), responses.loc[of_kind, "response"].tolist())
        responses.loc[of_kind, f"score_{kind}"] = scores
        work.progress.advance(done, len(KINDS), "gold PMs")
    store.write_table(work.folder / "responses.parquet", responses)


def score_chains(work: Work) -> None:
    """Critique-revision chains with both gold PMs' scores of every revision: chains.parquet."""
    tables = [
        pd.read_parquet(path / "chains.parquet") for role, path in work.inputs.items() if role.startswith("chains.")
    ]
    chains = pd.concat(tables, ignore_index=True)
    for done, kind in enumerate(KINDS, start=1):
        chains[f"score_{kind}"] = _pm(work, f"gold.{kind}").score(
            chains["prompt"].tolist(), chains["response"].tolist()
        )
        work.progress.advance(done, len(KINDS), "gold PMs")
    store.write_table(work.folder / "chains.parquet", chains)


def measure_elo(work: Work) -> None:
    """Harmlessness Elo on red-team prompts, helpfulness Elo on helpfulness prompts."""
    from suites import evaluate, judges

    model = _feedback(work) if work.config["judge"] == "feedback" else None

    def compare(part: pd.DataFrame, kind: str) -> pd.DataFrame:
        if model is not None:
            return judges.from_feedback(part, model, evaluate.QUESTIONS[kind], judge=work.config["feedback"])
        return judges.from_scores(part, f"score_{kind}", judge=f"gold PM ({kind})")

    evaluate.elo_by_kind(_responses(work), compare, seed=work.config["seed"]).save(work.folder)


def measure_pm_score(work: Work) -> None:
    """Harmlessness PM score by arm, and of the chains by revision."""
    from suites import pm_score

    responses = _responses(work)
    chains = pd.read_parquet(work.inputs["chains"] / "chains.parquet") if "chains" in work.inputs else None
    of_kind = responses[responses["kind"] == "harmless"]
    pm_score.run(of_kind, column="score_harmless", chains=chains, seed=work.config["seed"]).save(work.folder)


def measure_evasiveness(work: Work) -> None:
    """Evasiveness on red-team prompts, over-refusal on helpfulness prompts."""
    from suites import evasiveness

    evasiveness.run(_responses(work), seed=work.config["seed"]).save(work.folder)


def measure_goodharting(work: Work) -> None:
    """Boilerplate and diversity by arm and snapshot, proxy and gold PM along RL, and what the gold PM pays for it."""
    from suites import goodharting

    responses = _responses(work)
    pm = _pm(work, "gold.harmless")
    training = _along_rl(work, responses)
    goodharting.run(responses, scorer=pm.score, training=training, seed=work.config["seed"]).save(work.folder)


def measure_harmfulness(work: Work) -> None:
    """Predicted absolute harmfulness, 0 to 4, on red-team prompts."""
    from suites import harmfulness

    responses = _responses(work)
    ratings = Path(work.config["ratings"]) if work.config["ratings"] else None
    of_kind = responses[responses["kind"] == "harmless"]
    harmfulness.run(of_kind, ratings=ratings, seed=work.config["seed"]).save(work.folder)


def measure_hhh(work: Work) -> None:
    """The feedback model on the HHH comparisons, plain and with chain of thought."""
    from harness.errors import UserError
    from suites import hhh

    if work.config["path"] is None:
        raise UserError("data.hhh: the hhh suite needs the HHH comparisons; name their file, or leave the suite out")
    model = _feedback(work)
    questions = hhh.load(Path(work.config["path"]))
    hhh.run(questions, model, cot_tokens=work.config["cot_tokens"], seed=work.config["seed"]).save(work.folder)
    work.tokens += model.tokens


def _along_rl(work: Work, responses: pd.DataFrame) -> pd.DataFrame | None:
    """arm, step, kl, proxy (PM score in training), prompt, gold: what over-optimisation is read from."""
    frames = []
    for role, path in work.inputs.items():
        if not role.startswith("arm.") or not (path / "training.parquet").is_file():
            continue
        log = pd.read_parquet(path / "training.parquet")
        if not {"kl", "reward"} <= set(log):
            continue
        arm = role.removeprefix("arm.")
        mine = responses[(responses["arm"] == arm) & (responses["kind"] == "harmless")]
        mine = mine.assign(step=mine["step"].fillna(log["step"].max()).astype("int64"))
        gold = mine.groupby(["arm", "step", "prompt"])["score_harmless"].mean().rename("gold").reset_index()
        along = log[["step", "kl", "reward"]].rename(columns={"reward": "proxy"}).astype({"step": "int64"})
        frames.append(gold.merge(along, on="step"))
    return pd.concat(frames, ignore_index=True) if frames else None


def _responses(work: Work) -> pd.DataFrame:
    return pd.read_parquet(work.inputs["responses"] / "responses.parquet")


def _pm(work: Work, role: str) -> Any:
    from harness.models.scorer import PreferenceModel

    batch = work.config["scale"]["batch_size"]
    return PreferenceModel.load(work.inputs[role] / "model", batch_size=batch, max_length=work.config["max_length"])


def _feedback(work: Work) -> LanguageModel:
    from harness.models.open import open_model

    return open_model(work.config["feedback"], batch_size=work.config["scale"]["batch_size"], choosing=True)
