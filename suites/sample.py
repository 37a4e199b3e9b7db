"""What the suites of a run read: every arm's and snapshot's answers to the held-out prompts, scored by the gold PMs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from harness import store
from harness.graph import Work
from harness.kept import Done
from harness.models.base import Sample
from suites import chosen

KINDS = ("harmless", "helpful")
SAMPLE_SETTINGS = ("seed", "scale.samples_per_prompt", "scale.max_new_tokens", "models.engine")  # and arm
BEST_SETTINGS = ("scale.best_of", "pm.max_length")
SCORE_SETTINGS = ("pm.max_length",)
OPTIONS = ("scale.batch_size",)


def sample_arm(work: Work) -> None:
    """Answers of an arm, and of its snapshots, to the held-out prompts: responses.parquet. Resumes row by row.

    With the input `result` (`chosen.choose`) that is the final model, and the last one a snapshot among the others.
    """
    from harness.models.open import open_model

    settings = work.settings
    rows = pd.read_parquet(work.inputs["data"] / "prompts.parquet")
    heldout = rows[rows["split"] == "heldout"]
    policy = work.inputs.get("policy")
    checkpoints: Sequence[tuple[int | None, str | Path]] = [(None, work.models["policy"])] if policy is None else ()
    if policy is not None:
        checkpoints = chosen.checkpoints(policy, work.inputs.get("result"))
    asked = heldout.loc[heldout.index.repeat(settings.scale.samples_per_prompt)]
    asked = asked.assign(sample=asked.groupby(["kind", "prompt"]).cumcount())
    prompts = asked["prompt"].tolist()
    # The same stream for every arm: differences between arms are not differences of luck alone.
    keys = [f"{p}/{s}" for p, s in zip(prompts, asked["sample"], strict=True)]
    done = Done(work, len(prompts) * len(checkpoints), "answers")
    earlier = {(row["checkpoint"], row["place"]) for row in done.rows}
    for number, (_, path) in enumerate(checkpoints):
        left = [place for place in range(len(prompts)) if (number, place) not in earlier]
        if left:
            model = open_model(path, engine=settings.models.engine, batch_size=work.options.scale.batch_size)
            model.sample(
                [prompts[place] for place in left],
                max_new_tokens=settings.scale.max_new_tokens,
                keys=[keys[place] for place in left],
                seed=settings.seed,
                on_batch=partial(_keep, done, number, left),
            )
            work.count(model.tokens)
    said = pd.DataFrame(done.rows, columns=["checkpoint", "place", "response", "ended"])
    parts = []
    for number, (step, _) in enumerate(checkpoints):
        own = said[said["checkpoint"] == number].sort_values("place")
        told: dict[str, Any] = {"response": own["response"].tolist(), "ended": own["ended"].tolist()}
        table = asked[["prompt", "kind", "sample"]].assign(**told, arm=settings.arm, step=step)
        parts.append(table.astype({"step": "Int64"}))
    store.write_table(work.folder / "responses.parquet", pd.concat(parts, ignore_index=True))
    done.remove()


def _keep(done: Done, checkpoint: int, left: Sequence[int], index: Sequence[int], samples: Sequence[Sample]) -> None:
    """Keep a batch of a checkpoint's answers to the prompts at `left`."""
    done.keep(
        [
            {"checkpoint": checkpoint, "place": left[i], "response": one.text, "ended": one.ended}
            for i, one in zip(index, samples, strict=True)
        ]
    )


def sample_best(work: Work) -> None:
    """Of scale.best_of answers of the policy to each held-out prompt, the one that the PM scores highest.

    The first of them is the policy's own answer as `sample_arm` draws it, which wins ties.
    """
    from harness.models.open import open_model
    from harness.models.scorer import PreferenceModel

    settings, batch = work.settings, work.options.scale.batch_size
    rows = pd.read_parquet(work.inputs["data"] / "prompts.parquet")
    heldout = rows[rows["split"] == "heldout"]
    asked = heldout.loc[heldout.index.repeat(settings.scale.samples_per_prompt)]
    asked = asked.assign(sample=asked.groupby(["kind", "prompt"]).cumcount()).reset_index(drop=True)
    n = settings.scale.best_of
    each = asked.loc[asked.index.repeat(n)]
    keys = [
        f"{prompt}/{sample}" + (f"/{turn}" if turn else "")
        for prompt, sample, turn in zip(each["prompt"], each["sample"], each.groupby(level=0).cumcount(), strict=True)
    ]
    model = open_model(work.inputs["policy"] / "model", engine=settings.models.engine, batch_size=batch)
    limit = settings.scale.max_new_tokens
    samples = model.sample(each["prompt"].tolist(), max_new_tokens=limit, keys=keys, seed=settings.seed)
    work.count(model.tokens)
    work.progress.advance(1, 2, "answers sampled")
    pm = PreferenceModel.load(work.inputs["pm"] / "model", batch_size=batch, max_length=settings.pm.max_length)
    scores = pm.score(each["prompt"].tolist(), [sample.text for sample in samples])
    best = [place * n + int(found) for place, found in enumerate(scores.reshape(-1, n).argmax(axis=1))]
    said: dict[str, Any] = {
        "response": [samples[i].text for i in best],
        "ended": [samples[i].ended for i in best],
    }
    table = asked[["prompt", "kind", "sample"]].assign(**said, arm=settings.arm, step=None).astype({"step": "Int64"})
    store.write_table(work.folder / "responses.parquet", table)


def score_responses(work: Work) -> None:
    """All arms' responses with the gold PM's score for their kind of prompt, in score_harmless or score_helpful."""
    responses = _together(work, "sample.", "responses.parquet")
    for done, kind in enumerate(KINDS, start=1):
        of_kind = responses["kind"] == kind
        texts = responses[of_kind]
        scores = gold_pm(work, kind).score(texts["prompt"].tolist(), texts["response"].tolist())
        responses.loc[of_kind, f"score_{kind}"] = scores
        work.progress.advance(done, len(KINDS), "gold PMs")
    store.write_table(work.folder / "responses.parquet", responses)


def score_chains(work: Work) -> None:
    """Critique-revision chains with both gold PMs' scores of every revision: chains.parquet."""
    chains = _together(work, "chains.", "chains.parquet")
    for done, kind in enumerate(KINDS, start=1):
        pm = gold_pm(work, kind)
        chains[f"score_{kind}"] = pm.score(chains["prompt"].tolist(), chains["response"].tolist())
        work.progress.advance(done, len(KINDS), "gold PMs")
    store.write_table(work.folder / "chains.parquet", chains)


def _together(work: Work, roles: str, name: str) -> pd.DataFrame:
    tables = [pd.read_parquet(path / name) for role, path in work.inputs.items() if role.startswith(roles)]
    return pd.concat(tables, ignore_index=True)


def gold_pm(work: Work, kind: str):  # type: ignore[no-untyped-def]  # PreferenceModel, imported late: it brings torch
    """The gold PM for a kind of prompt."""
    from harness.models.scorer import PreferenceModel

    length = work.settings.pm.max_length
    folder = work.inputs[f"gold.{kind}"] / "model"
    return PreferenceModel.load(folder, batch_size=work.options.scale.batch_size, max_length=length)
