"""Which snapshot counts as an RL arm's result, where the experiment's `rl.result` does not say the last one.

The choice looks at answers to training prompts alone, never at the held-out prompts that the arms are measured on: by
the highest mean score of the arm's own PM ("best_proxy"), or by the KL to the start of RL that is nearest to a number
of nats ("kl:NATS"). Gold PMs, judges and suites have no part in it. The other snapshots, the last one among them, are
measured along RL as ever; arms that are trained from this one start from its last.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from harness import store
from harness.errors import UserError
from harness.graph import Work

SETTINGS = ("seed", "scale.max_new_tokens", "models.engine", "pm.max_length", "rl.result")  # and arm, prompts
OPTIONS = ("scale.batch_size",)
PROMPTS = 64  # training prompts that are answered for the choice, at most
COLUMNS = ["arm", "step", "last", "rule", "value", "n", "chosen"]


def updates(log: Path) -> int | None:
    """The last update that a training log tells of."""
    if not log.is_file() or "step" not in (rows := pd.read_parquet(log)) or rows.empty:
        return None
    return int(rows["step"].max())


def saved(arm: Path, last: int | None) -> dict[int | None, Path]:
    """The folders of an arm's weights by update: its snapshots, and after them its last, at `last`."""
    found = sorted((arm / "snapshots").glob("step-*"))
    return {int(path.name.removeprefix("step-")): path for path in found} | {last: arm / "model"}


def result_of(folder: Path) -> tuple[int, int]:
    """(update of the arm's result, last update), from the folder of a stage `choose`."""
    rows = pd.read_parquet(folder / "rl_result.parquet")
    return int(rows.loc[rows["chosen"], "step"].iloc[0]), int(rows["last"].iloc[0])


def checkpoints(arm: Path, result: Path | None) -> list[tuple[int | None, Path]]:
    """What of an arm is sampled: (update, weights) of its snapshots, and at the end its result, whose update is None.

    result: the folder of its `choose`; None: its last weights are its result.
    """
    if result is None:
        return list(saved(arm, None).items())
    step, last = result_of(result)
    found = saved(arm, last)
    chosen = found.pop(step)
    return [*found.items(), (None, chosen)]


def choose(work: Work) -> None:
    """rl_result.parquet (`COLUMNS`), a row for each checkpoint: value is its mean PM score or its KL, n the prompts.

    Inputs: the `arm`, the `data`, its `pm`, and `policy` where it did not start from the model `reference`.
    Raises UserError for an arm whose training.parquet does not tell its updates.
    """
    from harness.models.open import open_model
    from harness.models.scorer import PreferenceModel

    settings, batch, arm = work.settings, work.options.scale.batch_size, work.inputs["arm"]
    if (last := updates(arm / "training.parquet")) is None:
        raise UserError(f"rl.result: arm {settings.arm} logs no updates (training.parquet, step); use rl.result: last")
    rows = pd.read_parquet(work.inputs["data"] / "prompts.parquet")
    rows = rows[(rows["split"] == "train") & rows["kind"].isin(settings.prompts)]
    prompts = rows.sample(min(PROMPTS, len(rows)), random_state=settings.seed)["prompt"].tolist()
    found, rule = [], settings.rl.result
    target = float(rule.removeprefix("kl:")) if rule.startswith("kl:") else None
    places = saved(arm, last)
    for done, (step, place) in enumerate(places.items(), start=1):
        model = open_model(place, engine=settings.models.engine, batch_size=batch)
        samples = model.sample(
            prompts, max_new_tokens=settings.scale.max_new_tokens, keys=[f"{p}/result" for p in prompts],
            seed=settings.seed,
        )  # fmt: skip
        work.count(model.tokens)
        said, ended = [sample.text for sample in samples], [sample.ended for sample in samples]
        if target is not None:
            value = _kl(work, place, prompts, said, ended)
        else:
            pm = PreferenceModel.load(work.inputs["pm"] / "model", batch_size=batch, max_length=settings.pm.max_length)
            value = float(pm.score(prompts, said).mean())
        found.append({"arm": settings.arm, "step": step, "last": last, "value": value, "n": len(prompts)})
        work.progress.advance(done, len(places), "checkpoints looked at")
    table = pd.DataFrame(found)
    best = table["value"].idxmax() if target is None else (table["value"] - target).abs().idxmin()
    table = table.assign(rule=rule, chosen=table.index == best)[COLUMNS]
    store.write_table(work.folder / "rl_result.parquet", table)


def _kl(work: Work, place: Path, prompts: list[str], said: list[str], ended: list[bool]) -> float:
    """Mean KL of the weights at `place` to those that the arm's RL started from, in nats an answer."""
    import torch

    from harness.models.checkpoints import load_policy
    from harness.models.divergence import sequence_kl

    start = work.inputs["policy"] / "model" if "policy" in work.inputs else work.models["reference"]
    reference, _ = load_policy(start, dtype=torch.float32)
    policy, tokenizer = load_policy(place, dtype=torch.float32)
    batch = work.options.scale.batch_size
    return float(sequence_kl(policy, reference, tokenizer, prompts, said, ended, batch_size=batch).mean())
