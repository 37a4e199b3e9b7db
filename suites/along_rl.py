"""A policy along its RL run, on its own answers to the held-out prompts: KL to the reference, proxy and gold scores.

What RL logs (reward and KL of rollouts on training prompts, before an update) is no measure of the snapshot that is
saved after it; here proxy, gold and KL are those of the same answers by the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from harness import store
from harness.graph import Work
from suites import chosen

SETTINGS = ("pm.max_length",)  # and arm
OPTIONS = ("scale.batch_size",)
KIND = "harmless"  # red-team prompts, which the gold PM for harm judges
COLUMNS = ["arm", "step", "prompt", "sample", "kl", "proxy"]


def measure_along(work: Work) -> None:
    """KL and proxy score of each answer of an arm and its snapshots to red-team prompts: along.parquet (COLUMNS).

    step: the update after which the policy was saved, of the final model too; no rows for an arm whose training.parquet
    does not tell. Inputs: the arm, its answers (`sample`), its `pm`, `result` where that is not its last, and `policy`
    where it did not start from the model `reference`.
    """
    import torch

    from harness.models import checkpoints
    from harness.models.divergence import sequence_kl
    from harness.models.scorer import PreferenceModel

    arm, batch = work.inputs["arm"], work.options.scale.batch_size
    last = chosen.updates(arm / "training.parquet")
    final = chosen.result_of(work.inputs["result"])[0] if "result" in work.inputs else last
    if last is None or final is None:
        store.write_table(work.folder / "along.parquet", pd.DataFrame(columns=COLUMNS))
        return
    table = pd.read_parquet(work.inputs["sample"] / "responses.parquet")
    table = table[table["kind"] == KIND].reset_index(drop=True)
    pm = PreferenceModel.load(work.inputs["pm"] / "model", batch_size=batch, max_length=work.settings.pm.max_length)
    table["proxy"] = pm.score(table["prompt"].tolist(), table["response"].tolist())
    del pm
    start = work.inputs["policy"] / "model" if "policy" in work.inputs else work.models["reference"]
    reference, _ = checkpoints.load_policy(start, dtype=torch.float32)
    table["step"] = table["step"].fillna(final).astype("int64")
    places, steps = chosen.saved(arm, last), sorted(table["step"].unique())
    for done, step in enumerate(steps, start=1):
        policy, tokenizer = checkpoints.load_policy(places[step], dtype=torch.float32)
        mine = table["step"] == step
        columns = (table.loc[mine, column].tolist() for column in ("prompt", "response", "ended"))
        table.loc[mine, "kl"] = sequence_kl(policy, reference, tokenizer, *columns, batch_size=batch)
        work.progress.advance(done, len(steps), "checkpoints measured")
    store.write_table(work.folder / "along.parquet", table.assign(arm=work.settings.arm)[COLUMNS])


def with_gold(responses: pd.DataFrame, along: Iterable[pd.DataFrame]) -> pd.DataFrame | None:
    """What `suites.overoptimisation` reads: arm, step, prompt, kl, proxy, gold, means over a prompt's samples.

    responses: with score_harmless. along: tables of `measure_along`; None where there is none.
    """
    frames = []
    for table in (table for table in along if not table.empty):
        gold = responses[responses["kind"] == KIND].rename(columns={"score_harmless": "gold"})
        gold = gold[gold["arm"].isin(table["arm"])]
        final = set(table["step"]) - set(gold["step"].dropna())  # the one that responses do not number
        gold["step"] = gold["step"].fillna(final.pop() if final else -1).astype("int64")
        key = ["arm", "step", "prompt", "sample"]
        joined = table.merge(gold[[*key, "gold"]], on=key, validate="one_to_one")
        frames.append(joined.groupby(["arm", "step", "prompt"])[["kl", "proxy", "gold"]].mean().reset_index())
    return pd.concat(frames, ignore_index=True) if frames else None
