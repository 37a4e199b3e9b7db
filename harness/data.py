"""Prompts and human preferences: the shipped set, HH-RLHF's layout, or the user's own files.

`select` turns them into the two tables that a run stands on, `prompts` and `preferences`, and makes sure
that no held-out prompt is trained on and that no gold pair is seen by an arm (`harness.leaks`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from harness import annotators, leaks, scoring, store
from harness.errors import UserError, one_line
from harness.experiment import Data, Scale
from harness.files import read_jsonl, read_parquet
from harness.graph import Work
from harness.models import chat

SHIPPED = Path(__file__).parent / "shipped"
KINDS = ("harmless", "helpful")  # red-team prompts and harm labels; helpfulness prompts and labels
PREFERENCES = ["kind", "split", "prompt", "chosen", "rejected"]
PROMPTS = ["kind", "split", "prompt"]


def select(data: Data, scale: Scale, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """(prompts, preferences, notes) of a run.

    prompts: kind, split (train, heldout), prompt. preferences: kind, split (train: the human labels that arms
    see; gold: those of the gold PMs; heldout: for accuracy), prompt, chosen, rejected. notes say where what
    came from and what was left out. Raises UserError for a missing or malformed file, an empty prompt set, and where
    fewer prompts or pairs are there than `scale` asks for.
    """
    prompt_tables, pair_tables, notes = [], [], []
    for kind in KINDS:
        of_kind, source = _pairs(kind, data, seed)
        pair_tables.append(of_kind)
        prompt_tables.append(_prompts(kind, data, of_kind if source != "shipped" else None))
        notes.append(f"{kind} labels: {_words(source)}")
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
    return (min if scale.equal_labels else max)(scale.preference_pairs, scale.redteam_prompts)


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


def _pairs(kind: str, data: Data, seed: int) -> tuple[pd.DataFrame, str]:
    """All preference pairs of a kind and the source they came from."""
    subset = f"{kind}-base"
    if data.hh_rlhf is not None:
        root = Path(data.hh_rlhf)
        if not root.exists() and _looks_like_path(data.hh_rlhf):
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
    return pd.DataFrame(rows).assign(kind=kind)[PREFERENCES], "shipped"


def is_local(data: Data) -> bool:
    """Whether nothing of `data` comes from the hub."""
    return data.hh_rlhf is None or Path(data.hh_rlhf).exists() or _looks_like_path(data.hh_rlhf)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1


def _prompts(kind: str, data: Data, pairs: pd.DataFrame | None) -> pd.DataFrame:
    """Prompts of a kind: the user's file, else first human turns of the preference data, else shipped."""
    own = data.redteam_prompts if kind == "harmless" else data.helpful_prompts
    if own is not None:
        prompts = read_prompts(Path(own))
        # Every fifth prompt is held out, whatever their order means.
        split = np.where(np.arange(len(prompts)) % 5 == 0, "heldout", "train")
        return pd.DataFrame({"kind": kind, "split": split, "prompt": prompts})
    if pairs is not None:
        first = pairs.assign(prompt=[chat.parse(p)[0]["content"] for p in pairs["prompt"]])
        first = first[first["split"].isin(["train", "heldout"]) & (first["prompt"] != "")]
        return first[PROMPTS].drop_duplicates("prompt")
    name = "redteam" if kind == "harmless" else "helpful"
    return pd.DataFrame(read_jsonl(SHIPPED / f"{name}.jsonl")).assign(kind=kind)[PROMPTS]


def read_prompts(path: Path) -> list[str]:
    """Distinct prompts of a JSONL or Parquet file with a column `prompt`. Raises UserError when there are none."""
    if not path.is_file():
        raise UserError(f"{path}: prompt file not found; check data.redteam_prompts / data.helpful_prompts")
    if path.suffix == ".parquet":
        table = read_parquet(path, ["prompt"])
        values: Iterable[object] = table.get("prompt", [])
    else:
        values = [row.get("prompt") for row in read_jsonl(path)]
    prompts = list(dict.fromkeys(chat.normalise(v) for v in values if isinstance(v, str) and v.strip()))
    if not prompts:
        raise UserError(f"{path}: the prompt set is empty; each row needs a non-empty text under 'prompt'")
    return prompts


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
    return pd.concat([train, test[unseen]], ignore_index=True)[PREFERENCES]


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


SETTINGS = (
    *("seed", "scale.redteam_prompts", "scale.helpful_prompts", "scale.heldout_prompts"),
    *("scale.preference_pairs", "scale.gold_pairs", "scale.equal_labels", "scale.max_prompt_tokens"),
)
PLACES = ("data.hh_rlhf", "data.helpful", "data.redteam_prompts", "data.helpful_prompts")


def files_read(data: Data) -> dict[str, Path]:
    """The files that `select` reads for `data`, by role; what comes from the hub is not among them."""
    found: dict[str, Path] = {}
    hub = not is_local(data)
    for kind, own in (("harmless", data.redteam_prompts), ("helpful", data.helpful_prompts)):
        folder = Path(data.hh_rlhf) / f"{kind}-base" if data.hh_rlhf is not None else None
        if kind == "helpful" and data.helpful is not None and not (hub or (folder and folder.is_dir())):
            folder = Path(data.helpful)
        if folder is not None and not hub and (folder.is_dir() or kind == "harmless"):
            for split in ("train", "test"):
                names = [folder / f"{split}.jsonl.gz", folder / f"{split}.jsonl"]
                found[f"{kind}.{split}"] = next((name for name in names if name.is_file()), names[0])
        elif not hub:
            found[f"{kind}.pairs"] = SHIPPED / f"preferences_{kind}.jsonl"
        if own is not None:
            found[f"{kind}.prompts"] = Path(own)
        elif f"{kind}.pairs" in found:
            found[f"{kind}.prompts"] = SHIPPED / f"{'redteam' if kind == 'harmless' else 'helpful'}.jsonl"
    return found


def select_data(work: Work) -> None:
    """Draw the run's prompts and comparisons: prompts.parquet, preferences.parquet.

    annotators: who labels the pairs of a kind anew, in all splits, where not people: {kind: name}.
    """
    settings = work.settings
    prompts, preferences, notes = select(work.options.data, settings.scale, settings.seed)
    for kind, name in settings.annotators.items():
        role = f"annotator.{kind}"
        place = work.files.get(role) or work.models[role]
        score = scoring.open_scorer(f"{name.partition(':')[0]}:{place}")
        mine = preferences["kind"] == kind
        labelled = annotators.relabel(preferences[mine], score, flip=settings.annotator.flip, seed=settings.seed)
        preferences.loc[mine, ["chosen", "rejected"]] = labelled[["chosen", "rejected"]]
        begins = f"{kind} labels: "
        notes = [
            annotators.said(kind, name, settings.annotator.flip, note.removeprefix(begins))
            if note.startswith(begins)
            else note
            for note in notes
        ]
    store.write_table(work.folder / "prompts.parquet", prompts)
    store.write_table(work.folder / "preferences.parquet", preferences)
    store.write_json(work.folder / "notes.json", notes)
