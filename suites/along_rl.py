"""A policy along its RL run, on its own answers to the held-out prompts: KL to the reference, proxy and gold scores.

What RL logs (reward and KL of rollouts on training prompts, before an update) is no measure of the snapshot that is
saved after it; here proxy, gold and KL are those of the same answers by the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from harness import store
from harness.graph import Work

SETTINGS = ("pm.max_length",)  # and arm
OPTIONS = ("scale.batch_size",)
KIND = "harmless"  # red-team prompts, which the gold PM for harm judges
COLUMNS = ["arm", "step", "prompt", "sample", "kl", "proxy"]


def measure_along(work: Work) -> None:
    """KL and proxy score of each answer of an arm and its snapshots to red-team prompts: along.parquet (COLUMNS).

    step: the update after which the policy was saved, of the final model too; no rows for an arm whose training.parquet
    does not tell. Inputs: the arm, its answers (`sample`), its `pm`, and `policy` where it did not start from the model
    `reference`.
    """
    import torch

    from harness.models import checkpoints
    from harness.models.divergence import sequence_kl
    from harness.models.scorer import PreferenceModel

    arm, batch = work.inputs["arm"], work.options.scale.batch_size
    last = _updates(arm / "training.parquet")
    if last is None:
        store.write_table(work.folder / "along.parquet", pd.DataFrame(columns=COLUMNS))
        return
    table = pd.read_parquet(work.inputs["sample"] / "responses.parquet")
    table = table[table["kind"] == KIND].reset_index(drop=True)
    pm = PreferenceModel.load(work.inputs["pm"] / "model", batch_size=batch, max_length=work.settings.pm.max_length)
    table["proxy"] = pm.score(table["prompt"].tolist(), table["response"].tolist())
    del pm
    start = work.inputs["policy"] / "model" if "policy" in work.inputs else work.models["reference"]
    reference, _ = checkpoints.load_policy(start, dtype=torch.float32)
    places: dict[int, Path] = {}
    for step in table["step"].unique():
        places[last if pd.isna(step) else int(step)] = (
            arm / "model" if pd.isna(step) else arm / "snapshots" / f"step-{int(step):06d}"
        )
    table["step"] = table["step"].fillna(last).astype("int64")
    for done, (step, place) in enumerate(sorted(places.items()), start=1):
        policy, tokenizer = checkpoints.load_policy(place, dtype=torch.float32)
        mine = table["step"] == step
        columns = (table.loc[mine, column].tolist() for column in ("prompt", "response", "ended"))
        table.loc[mine, "kl"] = sequence_kl(policy, reference, tokenizer, *columns, batch_size=batch)
        work.progress.advance(done, len(places), "checkpoints measured")
    store.write_table(work.folder / "along.parquet", table.assign(arm=work.settings.arm)[COLUMNS])


def _updates(log: Path) -> int | None:
    """The last update that a training log tells of."""
    if not log.is_file() or "step" not in (rows := pd.read_parquet(log)) or rows.empty:
        return None
    return int(rows["step"].max())


def with_gold(responses: pd.DataFrame, along: Iterable[pd.DataFrame]) -> pd.DataFrame | None:
    """What `suites.overoptimisation` reads: arm, step, prompt, kl, proxy, gold, means over a prompt's samples.

    responses: with score_harmless. along: tables of `measure_along`; None where there is none.
    """
    frames = []
    for table in (table for table in along if not table.empty):
        gold = responses[responses["kind"] == KIND].rename(columns={"score_harmless": "gold"})
        gold["step"] = gold["step"].fillna(table["step"].max()).astype("int64")
        key = ["arm", "step", "prompt", "sample"]
        joined = table.merge(gold[[*key, "gold"]], on=key, validate="one_to_one")
        frames.append(joined.groupby(["arm", "step", "prompt"])[["kl", "proxy", "gold"]].mean().reset_index())
    return pd.concat(frames, ignore_index=True) if frames else None
