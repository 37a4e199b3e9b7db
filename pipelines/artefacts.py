"""What the stages' functions read and write alike: prompts, policies, PMs, and tables in the order asked for.

Artefacts: `model/` a checkpoint, `snapshots/step-*/` checkpoints along RL, `*.parquet` tables, `*.json` numbers.
Heavy libraries are imported inside functions, so that a plan loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from harness.experiment import Lora
from harness.graph import Work

if TYPE_CHECKING:
    from harness.models.base import LanguageModel
    from harness.models.scorer import PreferenceModel


def start_of(work: Work) -> str | Path:
    """The checkpoint that a stage starts from: the input policy, or else the model `base`."""
    return work.inputs["policy"] / "model" if "policy" in work.inputs else work.models["base"]


def load_generator(work: Work) -> LanguageModel:
    """The input policy, or the model `base`, ready to sample."""
    from harness.models.open import open_model

    return open_model(start_of(work), engine=work.settings.models.engine, batch_size=work.options.scale.batch_size)


def load_pm(folder: Path, work: Work) -> PreferenceModel:
    """The PM that a stage left in `folder`."""
    from harness.models.scorer import PreferenceModel

    length = work.settings.pm.max_length
    return PreferenceModel.load(folder / "model", batch_size=work.options.scale.batch_size, max_length=length)


def lora_of(work: Work) -> Lora | None:
    return Lora(**vars(work.settings.lora)) if work.settings.lora is not None else None


def train_prompts(work: Work, *kinds: str, uses: Sequence[str] = ()) -> list[str]:
    """Training prompts of those kinds, then those that the model wrote for `uses`, where the stage has any."""
    return prompts_in(work.inputs, kinds, uses)


def prompts_in(inputs: Mapping[str, Path], kinds: Sequence[str], uses: Sequence[str]) -> list[str]:
    """As `train_prompts`, of a stage whose inputs lie in the folders `inputs`."""
    rows = pd.read_parquet(inputs["data"] / "prompts.parquet")
    found = list(rows.loc[(rows["split"] == "train") & rows["kind"].isin(kinds), "prompt"])
    if "written" in inputs:
        written = pd.read_parquet(inputs["written"] / "written.parquet")
        found += list(written.loc[written["use"].isin(uses) & written["kind"].isin(kinds), "prompt"])
    return found


def as_asked(table: pd.DataFrame, prompts: list[str]) -> pd.DataFrame:
    """Rows in the order of `prompts`, whatever batches they came in, so that a resumed stage writes the same file."""
    place = {prompt: i for i, prompt in enumerate(prompts)}
    keys = [c for c in ("sample", "revision") if c in table]
    return (
        table.assign(_place=table["prompt"].map(place))
        .sort_values(["_place", *keys], kind="stable")
        .drop(columns="_place")
        .reset_index(drop=True)
    )
