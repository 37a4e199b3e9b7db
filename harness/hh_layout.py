"""HH-RLHF's layout: a folder or a data set on the hub with harmless-base and helpful-base, and the shipped stand-in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from harness import sources
from harness.errors import UserError, one_line
from harness.experiment import Data
from harness.files import read_jsonl
from harness.models import chat

SHIPPED = Path(__file__).parent / "shipped"
PREFERENCES = ["kind", "split", "prompt", "chosen", "rejected", "p"]


def pairs_of_kind(kind: str, data: Data, seed: int) -> tuple[pd.DataFrame, str]:
    """Pairs of HH-RLHF, of a folder in its layout, or the shipped ones; (table, source)."""
    subset = f"{kind}-base"
    if data.hh_rlhf is not None:
        root = Path(data.hh_rlhf)
        if not root.exists() and sources.looks_like_path(data.hh_rlhf):
            raise UserError(f"data.hh_rlhf: {data.hh_rlhf} not found; give a folder with harmless-base/ or a hub id")
        if root.is_dir():
            if (root / subset).is_dir():
                return read_hh_folder(root / subset, kind, seed), str(root / subset)
            if kind == "harmless":
                raise UserError(f"data.hh_rlhf: {root} has no folder {subset}/; it must be in HH-RLHF layout")
        elif not root.exists():
            return _hub_pairs(data.hh_rlhf, subset, kind, seed), f"{data.hh_rlhf} ({subset})"
        else:
            raise UserError(f"data.hh_rlhf: {root} is a file; give the folder that holds {subset}/")
    if kind == "helpful" and data.helpful is not None:
        if not Path(data.helpful).is_dir():
            raise UserError(f"data.helpful: {data.helpful} not found; give a folder with train and test files")
        return read_hh_folder(Path(data.helpful), kind, seed), data.helpful
    rows = read_jsonl(SHIPPED / f"preferences_{kind}.jsonl")
    return pd.DataFrame(rows).assign(kind=kind, p=1.0)[PREFERENCES], "shipped"


def is_local(data: Data) -> bool:
    return data.hh_rlhf is None or Path(data.hh_rlhf).exists() or sources.looks_like_path(data.hh_rlhf)


def read_hh_folder(folder: Path, kind: str, seed: int) -> pd.DataFrame:
    """Pairs of a folder with train.jsonl[.gz] and test.jsonl[.gz] of {chosen, rejected} transcripts.

    The training file is halved by prompt: one half is the arms' human labels, the other the gold PM's.
    """
    tables = []
    for name in ("train", "test"):
        there = [p for p in (folder / f"{name}.jsonl.gz", folder / f"{name}.jsonl") if p.is_file()]
        if not there:
            raise UserError(
                f"{folder}: {name}.jsonl or {name}.jsonl.gz is missing; the folder must be in HH-RLHF layout"
            )
        tables.append(
            _pairs_of(read_jsonl(there[0]), str(there[0]), kind).assign(split="heldout" if name == "test" else "")
        )
    return _halve(tables[0], tables[1], seed)


def _hub_pairs(name: str, subset: str, kind: str, seed: int) -> pd.DataFrame:
    import datasets

    try:
        loaded = datasets.load_dataset(name, data_dir=subset)
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = one_line(error)
        raise UserError(f"data.hh_rlhf: '{name}' is no folder here and the hub did not give it ({reason})") from error
    train, test = (_pairs_of(list(loaded[s]), f"{name}/{subset}", kind) for s in ("train", "test"))
    return _halve(train, test.assign(split="heldout"), seed)


def _halve(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> pd.DataFrame:
    # By first human turn, so that two pairs from one conversation never stand on both sides.
    openings = pd.Series([chat.parse(p)[0]["content"] for p in train["prompt"]], index=train.index)
    distinct = openings.drop_duplicates()
    gold = set(distinct.iloc[np.random.default_rng(seed).permutation(len(distinct))[: len(distinct) // 2]])
    train = train.assign(split=np.where(openings.isin(gold), "gold", "train"))
    seen = set(openings)
    unseen = [chat.parse(p)[0]["content"] not in seen for p in test["prompt"]]
    return pd.concat([train, test[unseen]], ignore_index=True).assign(p=1.0)[PREFERENCES]


def _pairs_of(rows: list[dict[str, object]], source: str, kind: str) -> pd.DataFrame:
    """Transcript pairs as (prompt, chosen, rejected); pairs whose transcripts differ before the answer are left out."""
    pairs = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("chosen"), str) or not isinstance(row.get("rejected"), str):
            raise UserError(f"{source}: row {number} lacks text under 'chosen' or 'rejected'; each row needs both")
        try:
            prompt, chosen = chat.split_transcript(str(row["chosen"]))
            other, rejected = chat.split_transcript(str(row["rejected"]))
        except ValueError:
            continue  # HH-RLHF holds a few transcripts that end with a human turn
        if prompt == other and chosen and rejected and chosen != rejected:
            pairs.append({"kind": kind, "split": "", "prompt": prompt, "chosen": chosen, "rejected": rejected})
    if not pairs:
        raise UserError(f"{source}: no usable preference pair; rows need 'chosen' and 'rejected' transcripts")
    return pd.DataFrame(pairs)


def add_files(found: dict[str, Path], kind: str, data: Data) -> bool:
    """Add what `pairs_of_kind` reads to `found`; whether that is the shipped set."""
    hub = not is_local(data)
    folder = Path(data.hh_rlhf) / f"{kind}-base" if data.hh_rlhf is not None else None
    if kind == "helpful" and data.helpful is not None and not (hub or (folder and folder.is_dir())):
        folder = Path(data.helpful)
    if folder is not None and not hub and (folder.is_dir() or kind == "harmless"):
        for split in ("train", "test"):
            names = [folder / f"{split}.jsonl.gz", folder / f"{split}.jsonl"]
            found[f"{kind}.{split}"] = next((name for name in names if name.is_file()), names[0])
    elif not hub:
        found[f"{kind}.pairs"] = SHIPPED / f"preferences_{kind}.jsonl"
    return f"{kind}.pairs" in found
