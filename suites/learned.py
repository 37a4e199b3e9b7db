"""Did training move what it optimises? The same measure at the start and the end of an arm, paired by prompt.

For RL the score that the arm's own PM gives to answers to held-out prompts, of the kinds that RL trained on, by the
policy it started from and by the arm as it ended: a rise says that RL learned, and nothing of whether the PM is right.
For fine-tuning the log-probability per token of revisions that were kept from it (`sft.heldout`).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from harness import stats, store
from harness.graph import Work

REWARD = "proxy PM's score of held-out answers"
LIKELIHOOD = "log-probability per token of held-out revisions"
COLUMNS = ["arm", "measure", "start", "end", "estimate", "low", "high", "n"]
REWARD_SETTINGS = ("seed", "pm.max_length")  # and arm, kinds
LIKELIHOOD_SETTINGS = ("seed",)  # and arm
OPTIONS = ("scale.batch_size",)


def paired(arm: str, measure: str, start: pd.DataFrame, end: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One row of `COLUMNS` from columns prompt and value: estimate is end - start, its interval a bootstrap of prompts,
    as wide as their number asks for (`stats.expanded`). n counts prompts. Without a value there is no row.
    """
    if start.empty or end.empty:
        return pd.DataFrame(columns=COLUMNS)
    drawn = stats.difference_bootstrap(end["value"], end["prompt"], start["value"], start["prompt"], seed=seed)
    found = stats.expanded(drawn).interval()
    ends = {"start": start["value"].mean(), "end": end["value"].mean()}
    interval = {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}
    return pd.DataFrame([{"arm": arm, "measure": measure} | ends | interval])[COLUMNS]


def measure_reward(work: Work) -> None:
    """What RL did to its own reward: learned.parquet. Inputs: the `end`'s answers, the `start`'s, and the `pm`."""
    from harness.models.scorer import PreferenceModel

    settings, batch = work.settings, work.options.scale.batch_size
    pm = PreferenceModel.load(work.inputs["pm"] / "model", batch_size=batch, max_length=settings.pm.max_length)
    sides = []
    for done, side in enumerate(("start", "end"), start=1):
        rows = pd.read_parquet(work.inputs[side] / "responses.parquet")
        rows = rows[rows["step"].isna() & rows["kind"].isin(settings.kinds)]
        scores = pm.score(rows["prompt"].tolist(), rows["response"].tolist())
        sides.append(pd.DataFrame({"prompt": rows["prompt"].to_numpy(), "value": scores}))
        work.progress.advance(done, 2, "scored by the arm's PM")
    store.write_table(work.folder / "learned.parquet", paired(settings.arm, REWARD, sides[0], sides[1], settings.seed))


def measure_likelihood(work: Work) -> None:
    """What fine-tuning did to the likelihood of revisions it did not see: learned.parquet, of no row without any.

    Inputs: the `arm`, which keeps them in heldout.parquet; the model `start`.
    """
    import torch

    from harness.models import checkpoints
    from harness.models.divergence import mean_logprob

    arm, kept = work.inputs["arm"], work.inputs["arm"] / "heldout.parquet"
    rows = pd.read_parquet(kept) if kept.is_file() else pd.DataFrame(columns=["prompt", "response", "ended"])
    sides = []
    places: list[str | Path] = [work.models["start"], arm / "model"] if len(rows) else []
    for done, place in enumerate(places, start=1):
        policy, tokenizer = checkpoints.load_policy(place, dtype=torch.float32)
        columns = (rows[column].tolist() for column in ("prompt", "response", "ended"))
        values = mean_logprob(policy, tokenizer, *columns, batch_size=work.options.scale.batch_size)
        sides.append(pd.DataFrame({"prompt": rows["prompt"], "value": values}).dropna())
        work.progress.advance(done, 2, "models read held-out revisions")
    start, end = sides or [pd.DataFrame(), pd.DataFrame()]
    table = paired(work.settings.arm, LIKELIHOOD, start, end, work.settings.seed)
    store.write_table(work.folder / "learned.parquet", table)
