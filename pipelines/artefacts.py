"""What the stages' functions read and write alike: prompts, policies, PMs, and rows that resume after a kill.

Artefacts: `model/` a checkpoint, `snapshots/step-*/` checkpoints along RL, `*.parquet` tables, `*.json` numbers.
Heavy libraries are imported inside functions, so that a plan loads no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.experiment import Lora
from harness.graph import Work

if TYPE_CHECKING:
    from harness.models.base import LanguageModel
    from harness.models.scorer import PreferenceModel

Rows = list[dict[str, Any]]


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


class Done:
    """The rows that a stage has made so far, kept in `done.jsonl` from which it resumes.

    A batch is one line of the file, so a kill loses batches and never a part of one. The rows that are left then fall
    into the same batches as without the kill, whose composition moves a model's last digits.
    """

    def __init__(self, work: Work, total: int, note: str):
        self.work, self.total, self.note = work, total, note
        self.path = work.folder / "done.jsonl"
        self.rows: Rows = [row for batch in _whole_lines(self.path) for row in batch]
        if self.rows:
            work.count(None)  # the tokens of the earlier try were not kept

    def keep(self, batch: Rows) -> None:
        """Store a batch of finished rows."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(batch) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.extend(batch)
        self.work.progress.advance(len(self.rows), self.total, self.note)

    def remove(self) -> None:
        """Forget the file, once the rows are in an artefact."""
        self.path.unlink(missing_ok=True)


def _whole_lines(path: Path) -> list[Rows]:
    """The batches in `path`; a last line that a kill cut short is removed from it."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with path.open("r+b") as file:
            file.truncate(end)
    return [json.loads(line) for line in content[:end].split(b"\n") if line]


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
