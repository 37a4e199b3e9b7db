"""What the stages' functions read and write alike: prompts, policies, PMs, and rows that resume after a kill.

Artefacts: `model/` a checkpoint, `snapshots/step-*/` checkpoints along RL, `*.parquet` tables, `*.json` numbers.
Heavy libraries are imported inside functions, so that a plan loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness import files, store
from harness.experiment import Lora
from harness.graph import Work

if TYPE_CHECKING:
    from harness.models.base import LanguageModel
    from harness.models.scorer import PreferenceModel

Rows = list[dict[str, Any]]


def load_generator(work: Work) -> LanguageModel:
    """The input policy, or the model that config['base'] names, ready to sample."""
    from harness.models.open import open_model

    start = work.inputs["policy"] / "model" if "policy" in work.inputs else work.config["base"]
    return open_model(start, batch_size=work.config["scale"]["batch_size"])


def load_pm(folder: Path, config: Any) -> PreferenceModel:
    """The PM that a stage left in `folder`."""
    from harness.models.scorer import PreferenceModel

    batch, length = config["scale"]["batch_size"], config["pm"]["max_length"]
    return PreferenceModel.load(folder / "model", batch_size=batch, max_length=length)


def lora_of(config: Any) -> Lora | None:
    return Lora(**config["lora"]) if config["lora"] is not None else None


def train_prompts(work: Work, kind: str) -> list[str]:
    rows = pd.read_parquet(work.inputs["data"] / "prompts.parquet")
    return list(rows.loc[(rows["split"] == "train") & (rows["kind"] == kind), "prompt"])


def resumed(
    work: Work,
    prompts: list[str],
    remaining: Callable[[list[str], Callable[[Rows], None]], None],
    note: str,
    *,
    per_prompt: int | None = None,
) -> Rows:
    """All rows of a stage that works prompt by prompt, what an earlier try stored taken from `done.jsonl`.

    `per_prompt` is the number of rows that make a prompt whole, where its rows may come in different batches.
    """
    path = work.folder / "done.jsonl"
    rows = files.read_jsonl(path, partial_end=True) if path.is_file() else []
    if per_prompt is not None:
        counts = pd.Series([row["prompt"] for row in rows], dtype=object).value_counts()
        rows = [row for row in rows if counts[row["prompt"]] == per_prompt]
    path.write_text("", encoding="utf-8")  # a line cut short by a kill must not stand before new ones
    store.append_jsonl(path, rows)
    finished = {row["prompt"] for row in rows}

    def keep(batch: Rows) -> None:
        store.append_jsonl(path, batch)
        rows.extend(batch)
        work.progress.advance(len({row["prompt"] for row in rows}), len(prompts), note)

    todo = [prompt for prompt in prompts if prompt not in finished]
    if todo:
        remaining(todo, keep)
    path.unlink()
    return rows


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
