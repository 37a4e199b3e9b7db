"""Prompts and human preferences: the shipped set, HH-RLHF's layout, or the user's own files and data sets.

`select` turns them into the two tables that a run stands on, `prompts` and `preferences`, and makes sure
that no held-out prompt is trained on and that no gold pair is seen by an arm (`harness.leaks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import annotators, hh_layout, leaks, preferences, scoring, sources, store
from harness.draws import uniforms
from harness.errors import UserError
from harness.experiment import Data, Pairs, Scale
from harness.files import read_jsonl
from harness.graph import Work
from harness.hh_layout import PREFERENCES, SHIPPED
from harness.models import chat

KINDS = ("harmless", "helpful")  # red-team prompts and harm labels; helpfulness prompts and labels
PROMPTS = ["kind", "split", "prompt"]
_HELDOUT = 0.2  # of the prompts of a source without a test split


def select(data: Data, scale: Scale, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """(prompts, preferences, notes) of a run.

    prompts: kind, split (train, heldout), prompt. preferences: kind, split (train: the human labels that arms
    see; gold: those of the gold PMs; heldout: for accuracy), prompt, chosen, rejected, p = P(chosen is better), 0.5 to
    1. notes say where what came from and what was left out. Raises UserError for a missing or malformed file, an empty
    prompt set, and where fewer prompts or pairs are there than `scale` asks for.
    """
    prompt_tables, pair_tables, notes = [], [], []
    for kind in KINDS:
        of_kind, source, said = _pairs(kind, data, seed)
        pair_tables.append(of_kind)
        prompt_tables.append(_prompts(kind, data, of_kind if source != "shipped" else None))
        notes += [f"{kind} labels: {_words(source)}", *said]
    prompts, pairs, left_out = leaks.apart(
        pd.concat(prompt_tables, ignore_index=True), pd.concat(pair_tables, ignore_index=True)
    )
    drawn_prompts, drawn_pairs = [], []
    for kind in KINDS:
        train = "redteam_prompts" if kind == "harmless" else "helpful_prompts"
        asked = {"train": train, "heldout": "heldout_prompts"}
        drawn_prompts.append(_draw(prompts[prompts["kind"] == kind], asked, scale, seed, f"{kind} prompts"))
        asked = {"train": "preference_pairs", "gold": "gold_pairs", "heldout": "gold_pairs"}
        of_kind = pairs[pairs["kind"] == kind]
        what, most = f"{kind} preference pairs", {"train": labels_of_harm(scale)} if kind == "harmless" else {}
        drawn_pairs.append(_draw(of_kind, asked, scale, seed, what, ["heldout"], most))  # heldout: of accuracy alone
    return pd.concat(drawn_prompts, ignore_index=True), pd.concat(drawn_pairs, ignore_index=True), notes + left_out


def labels_of_harm(scale: Scale) -> int:
    """How many labels of harm an arm learns from at most, people's or AI's; with equal_labels, both arms as many."""
    redteam = scale.redteam_prompts + scale.written_prompts.chains
    return (min if scale.equal_labels else max)(scale.preference_pairs, redteam)


def _words(source: str) -> str:
    return "the shipped pairs, a stand-in for human labels" if source == "shipped" else source


def _draw(
    table: pd.DataFrame,
    asked: dict[str, str],
    scale: Scale,
    seed: int,
    what: str,
    fewer: Sequence[str] = (),
    most: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """As many rows of each split as the key `asked[split]` of `scale` says, at random, each prompt once.

    No more than most[split], where it says so.

    Longer prompts are left out. Raises UserError where there are fewer, but for the splits in `fewer`.
    """
    # Four characters a token is the usual English rate; exact lengths would need the tokenizer here.
    short = table[table["prompt"].str.len() <= 4 * scale.max_prompt_tokens]
    parts = []
    for split, key in asked.items():
        rows = short[short["split"] == split].drop_duplicates("prompt")
        if rows.empty:
            raise UserError(f"{what}: none left for split '{split}'; give more data or raise scale.max_prompt_tokens")
        count = getattr(scale, key)
        count = min(count, (most or {}).get(split, count))
        if len(rows) < count and split not in fewer:
            raise UserError(
                f"scale.{key}: {count:,} asked, and there are {len(rows):,} {what} in split '{split}'; ask for "
                f"{len(rows):,} or fewer, or give more data"
            )
        order = np.random.default_rng([seed, len(what), len(split)]).permutation(len(rows))
        parts.append(rows.iloc[np.sort(order[:count])])
    return pd.concat(parts, ignore_index=True)


def _pairs(kind: str, data: Data, seed: int) -> tuple[pd.DataFrame, str, list[str]]:
    """All preference pairs of a kind, the source they came from, and notes of what was left out of it."""
    own = _own_pairs(data)[kind]
    if own is not None:
        return _from_source(kind, own, seed)
    return *hh_layout.pairs_of_kind(kind, data, seed), []


def _own_pairs(data: Data) -> dict[str, Pairs | None]:
    return {"harmless": data.harmless_pairs, "helpful": data.helpful_pairs}


def _from_source(kind: str, pairs: Pairs, seed: int) -> tuple[pd.DataFrame, str, list[str]]:
    """Pairs in TRL's or PKU-SafeRLHF's format; see `_pairs`."""
    key = f"data.{kind}_pairs"
    train = sources.read(pairs.source, pairs.train, key, pairs.subset)
    test = sources.read(pairs.source, pairs.test or "test", key, pairs.subset)
    if train is None or (test is None and pairs.test is not None):
        which, name = ("train", pairs.train) if train is None else ("test", pairs.test)
        raise UserError(f"{key}: {pairs.source} has no split {name!r}; name the one to take: {key}.{which}")
    table, notes = preferences.table(train, kind, pairs, key)
    heldout = None
    if test is not None:
        heldout, more = preferences.table(test, kind, pairs, key)
        notes += more
    return _split(kind, table, heldout, seed), pairs.source, notes


def _split(kind: str, train: pd.DataFrame, heldout: pd.DataFrame | None, seed: int) -> pd.DataFrame:
    """Rows by split; without held-out rows a fifth of the prompts is. Of the rest half is for the gold PM.

    Drawn by opening, whatever the kind, so that two kinds of judgments on the same pairs are split alike. A tie says
    nothing of accuracy, so none is held out.
    """
    openings = pd.Series([leaks.opening(prompt) for prompt in train["prompt"]], index=train.index)
    order = sorted(set(openings), key=lambda opening: uniforms(seed, f"split/{opening}", 1)[0])
    n = 0 if heldout is not None else round(_HELDOUT * len(order))
    split = dict.fromkeys(order[:n], "heldout") | dict.fromkeys(order[n : n + (len(order) - n) // 2], "gold")
    rows = train.assign(split=[split.get(opening, "train") for opening in openings])
    if heldout is not None:
        seen = set(order)
        unseen = [leaks.opening(prompt) not in seen for prompt in heldout["prompt"]]
        rows = pd.concat([rows, heldout[unseen].assign(split="heldout")], ignore_index=True)
    return rows[(rows["split"] != "heldout") | (rows["p"] > 0.5)].assign(kind=kind)[PREFERENCES]


def is_local(data: Data) -> bool:
    """Whether nothing of `data` comes from the hub."""
    named = [of_kind.source for of_kind in _own_sources(data).values()]
    return hh_layout.is_local(data) and all(sources.is_local(source) for source in named)


def _own_sources(data: Data) -> dict[str, Any]:
    """The user's own sources by their key under `data`."""
    keys = ("harmless_pairs", "helpful_pairs", "redteam_prompts", "helpful_prompts")
    return {key: found for key in keys if (found := getattr(data, key)) is not None}


def declared(data: Data) -> dict[str, Any]:
    """Settings of the stage beside `SETTINGS`: what is read of which source; of the hub's, which they are, too."""
    hub = {} if hh_layout.is_local(data) else {"data.hub": data.hh_rlhf}
    read = {
        key: {name: value for name, value in own if name != "source" or not sources.is_local(own.source)}
        for key, own in _own_sources(data).items()
    }
    return hub | ({"data.read": read} if read else {})


def _prompts(kind: str, data: Data, pairs: pd.DataFrame | None) -> pd.DataFrame:
    """Prompts of a kind: the user's file, else first human turns of the preference data, else shipped."""
    key = "redteam_prompts" if kind == "harmless" else "helpful_prompts"
    own = getattr(data, key)
    if own is not None:
        named = f"data.{key}"
        prompts = read_prompts(own.source, named, column=own.column, subset=own.subset, split=own.split)
        # Every fifth prompt is held out, whatever their order means.
        split = np.where(np.arange(len(prompts)) % 5 == 0, "heldout", "train")
        return pd.DataFrame({"kind": kind, "split": split, "prompt": prompts})
    if pairs is not None:
        first = pairs.assign(prompt=[chat.parse(p)[0]["content"] for p in pairs["prompt"]])
        first = first[first["split"].isin(["train", "heldout"]) & (first["prompt"] != "")]
        return first[PROMPTS].drop_duplicates("prompt")
    name = "redteam" if kind == "harmless" else "helpful"
    return pd.DataFrame(read_jsonl(SHIPPED / f"{name}.jsonl")).assign(kind=kind)[PROMPTS]


def read_prompts(
    source: str | Path,
    key: str = "prompts",
    *,
    column: str | None = None,
    subset: str | None = None,
    split: str = "train",
) -> list[str]:
    """Distinct prompts of a column: by default `prompt`, or `transcript` as in red-team-attempts; see `sources.read`.

    Raises UserError, naming `key` in the experiment, where there are none, and for a row without text or messages.
    """
    rows = sources.read(str(source), split, key, subset)
    if rows is None:
        raise UserError(f"{key}: {source} has no split {split!r}; name the one to take: {key}.split")
    there = {name for _, row in rows for name in row}
    name = column or ("transcript" if "prompt" not in there and "transcript" in there else "prompt")
    if rows and name not in there:
        raise UserError(
            f"{source}: no column {name!r}, its columns are {', '.join(sorted(map(str, there)))}; name the one to take "
            f"under {key}.column"
        )
    given = [(f"{where}, {name}", row.get(name)) for where, row in rows]
    prompts = [preferences.prompt_of(value, where) for where, value in given if value is not None and value != ""]
    distinct = [prompt for prompt in dict.fromkeys(prompts) if prompt]
    if not distinct:
        raise UserError(f"{source}: the prompt set is empty; each row needs a non-empty text under {name!r}")
    return distinct


SETTINGS = (
    *("seed", "scale.redteam_prompts", "scale.helpful_prompts", "scale.heldout_prompts"),
    *("scale.preference_pairs", "scale.gold_pairs", "scale.equal_labels", "scale.max_prompt_tokens"),
    "scale.written_prompts.chains",
)
PLACES = (
    *("data.hh_rlhf", "data.helpful", "data.harmless_pairs", "data.helpful_pairs"),
    *("data.redteam_prompts", "data.helpful_prompts"),
)


def files_read(data: Data) -> dict[str, Path]:
    """The files that `select` reads for `data`, by role; what comes from the hub is not among them."""
    found: dict[str, Path] = {}
    for kind, key in (("harmless", "redteam_prompts"), ("helpful", "helpful_prompts")):
        pairs, prompts = _own_pairs(data)[kind], getattr(data, key)
        shipped = pairs is None and hh_layout.add_files(found, kind, data)
        if pairs is not None and sources.is_local(pairs.source):
            for role, split in (("train", pairs.train), ("test", pairs.test or "test")):
                found |= _numbered(f"{kind}.{role}", sources.split_files(pairs.source, split, f"data.{kind}_pairs"))
        if prompts is not None and sources.is_local(prompts.source):
            found |= _numbered(f"{kind}.prompts", sources.split_files(prompts.source, prompts.split, f"data.{key}"))
        elif prompts is None and shipped:
            found[f"{kind}.prompts"] = SHIPPED / f"{'redteam' if kind == 'harmless' else 'helpful'}.jsonl"
    return found


def _numbered(role: str, files: Sequence[Path]) -> dict[str, Path]:
    return {role if place == 0 else f"{role}.{place}": file for place, file in enumerate(files)}


def select_data(work: Work) -> None:
    """Draw the run's prompts and comparisons: prompts.parquet, preferences.parquet.

    annotators: who labels the pairs of a kind anew, in all splits, where not people: {kind: name}.
    """
    settings = work.settings
    prompts, pairs, notes = select(work.options.data, settings.scale, settings.seed)
    for kind, name in settings.annotators.items():
        role = f"annotator.{kind}"
        place = work.files.get(role) or work.models[role]
        score = scoring.open_scorer(f"{name.partition(':')[0]}:{place}")
        mine = pairs["kind"] == kind
        labelled = annotators.relabel(pairs[mine], score, flip=settings.annotator.flip, seed=settings.seed)
        pairs.loc[mine, ["chosen", "rejected"]] = labelled[["chosen", "rejected"]]
        pairs.loc[mine, "p"] = 1.0
        begins = f"{kind} labels: "
        notes = [
            annotators.said(kind, name, settings.annotator.flip, note.removeprefix(begins))
            if note.startswith(begins)
            else note
            for note in notes
        ]
    store.write_table(work.folder / "prompts.parquet", prompts)
    store.write_table(work.folder / "preferences.parquet", pairs)
    store.write_json(work.folder / "notes.json", notes)
