"""Bring your own responses: files of any kind, the paper's published samples among them, as one response table.

A response table has the columns prompt, response, arm, step (NA: the final model), sample, then `kind` and whatever
else the files hold (scores, temperature). Prompts are plain text for one turn and HH layout for several.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import files
from harness.errors import UserError, one_line, shown
from harness.models import chat

COLUMNS = ["prompt", "response", "arm", "step", "sample"]
CHAIN_COLUMNS = ["prompt", "arm", "sample", "revision", "principle", "critique", "response", "mode", "n_principles"]
EXTENSIONS = (".jsonl", ".csv", ".parquet")
KINDS = ("harmless", "helpful")
# The arms as the paper's published files call them.
PAPER_ARMS = {
    "HRLHF": "helpful_only",
    "HHRLHF": "hh_rlhf",
    "RLMADISON": "rl_cai",
    "RLMADISON_COT": "rl_cai_cot",
    "SLMADISON": "sl_cai",
}
MOST_COLUMNS = 1000
_LARGEST = 2**53  # the largest number up to which floats hold every whole one
PAPER_PRINCIPLES = 16  # the paper's chains draw from its 16 critique-revision pairs
# What the paper's samplers left behind an answer: the next turn's opening, perhaps cut short, or a ruler of dashes.
_LEFTOVER = re.compile(r"(\s*\n\s*Human:?|\s+Human:|\s*\n-{4,})\s*$")
_SINGLE_BREAK = re.compile(r"(?<!\n)\n(?=(Human|Assistant):)")


def load_responses(paths: Sequence[str | Path]) -> pd.DataFrame:
    """One response table from JSONL, CSV or Parquet files, folders (a run's too) and globs.

    A file without `arm` gives its stem as arm; rows without `sample` are numbered within (arm, step, prompt). The
    paper's files get their arm from their name, and keep their score as `paper_pm_score` and `comparison_dataset`.
    What a further column holds besides numbers and text (lists, objects, a mixture) becomes its JSON text.
    Of critique-revision chains (the paper's are arm sl_cai) the last revision is the response. Raises UserError, naming
    file and row, for input that is missing, unreadable, empty, incomplete or doubled.
    """
    found = find_files(paths)
    table = storable(pd.concat([_typed(_read(path), path) for path in found], ignore_index=True))
    _refuse_shared_stems(found, table)
    numbered = table["sample"].notna()
    counted = table[~numbered].groupby(["arm", "step", "prompt"], dropna=False, sort=False).cumcount()
    table["sample"] = table["sample"].where(numbered, counted.astype("Int64")).astype("int64")
    _refuse_duplicates(table)
    first = [*COLUMNS, *(["kind"] if "kind" in table else [])]
    rest = [c for c in table if c not in first and not str(c).startswith("_")]
    return table[[*first, *rest]]


def load_chains(paths: Sequence[str | Path]) -> pd.DataFrame | None:
    """Critique-revision chains in the shape of chains.parquet (CHAIN_COLUMNS), one row a revision; None if none holds.

    From the paper's SLMADISON files, runs, and Parquet, JSONL or CSV files with prompt, revision and response (arm,
    sample, principle, critique, mode and n_principles where known); files without a column `revision` hold single
    answers and are passed over. Raises UserError as `load_responses`.
    """
    found = find_files(paths, ("chains.parquet", "responses.parquet"))
    parts = [_chains_of(path) for path in found if _holds_chains(path)]
    return storable(pd.concat(parts, ignore_index=True)) if parts else None


def main_chains(chains: pd.DataFrame) -> pd.DataFrame:
    """The paper's main condition: with critiques, all principles."""
    if "mode" in chains and (chains["mode"] == "critiqued").any():
        chains = chains[chains["mode"] == "critiqued"]
    if "n_principles" in chains and chains["n_principles"].notna().any():
        chains = chains[chains["n_principles"] == chains["n_principles"].max()]
    return chains


def red_team(responses: pd.DataFrame) -> pd.DataFrame:
    """The answers to red-team prompts where prompts say their kind, else all."""
    if "kind" not in responses or responses["kind"].isna().all():
        return responses
    return responses[responses["kind"] == "harmless"]


def find_files(paths: Sequence[str | Path], run_tables: Sequence[str] = ("responses.parquet",)) -> list[Path]:
    """The files that `paths` (files, folders, globs) mean, each once; a run's folder means the first of `run_tables`
    that it has."""
    if not paths:
        raise UserError("responses: no file given; name JSONL, CSV or Parquet files")
    found = [file for path in paths for file in _expand(Path(path), run_tables)]
    for file in found:
        if file.suffix not in EXTENSIONS:
            raise UserError(f"{file}: unknown extension '{file.suffix}'; give .jsonl, .csv or .parquet")
    return list({file.resolve(): file for file in found}.values())


def _expand(path: Path, run_tables: Sequence[str]) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        for name in run_tables:
            for table in (path / "results" / name, path / name):
                if table.is_file():
                    return [table]
        found = sorted(p for p in path.iterdir() if p.suffix in EXTENSIONS and p.is_file())
        if not found:
            raise UserError(f"{path}: no .jsonl, .csv or .parquet file in this folder; give one with response files")
        return found
    found = [p for p in files.matching(path) if p.suffix in EXTENSIONS]
    if not found:
        what = "no response file matches" if glob.has_magic(str(path)) else "file not found"
        raise UserError(f"{path}: {what}; check the path")
    return found


# ---------------------------------------------------------------- reading one file


def _read(path: Path) -> pd.DataFrame:
    """The file's answers, the paper's layout unfolded, of chains the last revisions; never empty."""
    if _holds_chains(path):
        chains = pd.concat([main_chains(part) for _, part in _chains_of(path).groupby("arm", sort=False)])
        last = chains.groupby(["prompt", "arm", "sample"], sort=False)["revision"].idxmax()
        return chains.loc[last].drop(columns=["revision", "principle", "critique", "mode", "n_principles"])
    if path.suffix == ".jsonl":
        rows = _json_rows(path)
        return _paper_samples(rows, path) if "sampled_answers" in rows[0] else _frame(rows, path)
    return _records(path)


def _holds_chains(path: Path) -> bool:
    """Whether the file's first row is the paper's layout of a chain, or has a column `revision`."""
    try:
        if path.suffix == ".jsonl":
            names = set(files.first_row(path) or {})
        else:
            names = set(files.parquet_columns(path) if path.suffix == ".parquet" else files.csv_columns(path))
    except UserError:
        return False  # whoever reads the whole file says what is wrong with it
    return "revision" in names or (path.suffix == ".jsonl" and "cst" in names)


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows = files.read_jsonl(path)
    if not rows:
        raise UserError(f"{path}: the file is empty; it needs at least one response")
    return rows


def _records(path: Path) -> pd.DataFrame:
    """A table file as it is. CSV cells stay text (an answer 'None' is an answer) but for columns of numbers."""
    if path.suffix == ".jsonl":
        return _frame(_json_rows(path), path)
    table = files.read_parquet(path) if path.suffix == ".parquet" else files.read_csv(path)
    if table.empty:
        raise UserError(f"{path}: the file is empty; it needs at least one response")
    if path.suffix == ".csv":
        for column in table.columns.difference(["prompt", "response", "arm", "critique", "principle"]):
            cells = table[column].replace("", None)
            numbers = pd.to_numeric(cells, errors="coerce")
            table[column] = numbers if numbers.notna().equals(cells.notna()) else cells
    return table


def _frame(rows: list[dict[str, Any]], path: Path) -> pd.DataFrame:
    names = {name for row in rows for name in row}
    if len(names) > MOST_COLUMNS:
        raise UserError(f"{path}: {len(names)} different keys; a response file has at most {MOST_COLUMNS} columns")
    return pd.DataFrame(rows)


def storable(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with every column of a kind that Parquet holds: what is neither all numbers nor all text as JSON."""
    for column in table.select_dtypes("object"):
        kinds = {type(value) for value in table[column] if not _is_missing(value)}
        if kinds and kinds <= {int, float}:
            try:
                table[column] = table[column].astype("float64")
            except OverflowError:
                kinds.add(object)
        if not (kinds <= {str} or kinds <= {bool} or kinds <= {int, float}):
            table[column] = [_json_text(value) for value in table[column]]
    return table.rename(columns=str)


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value))


def _json_text(value: Any) -> str | None:
    if isinstance(value, str) or _is_missing(value):
        return value if isinstance(value, str) else None
    return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value, ensure_ascii=False, default=str)


# ---------------------------------------------------------------- the paper's files

_FOREIGN = (LookupError, TypeError, ValueError, AttributeError, OverflowError)  # what another layout runs into


def _paper_samples(rows: list[dict[str, Any]], path: Path) -> pd.DataFrame:
    arm, out = _paper_arm(path), []
    for number, row in enumerate(rows, start=1):
        try:
            for sample, answer in enumerate(row["sampled_answers"]):
                out.append(
                    {
                        "prompt": _paper_prompt(row["rl_prompt"]),
                        "response": strip_leftover(answer["sampled_string"]),
                        "arm": arm,
                        "sample": sample,
                        "paper_pm_score": float(answer["pm_scores"][0]["pm_score"]),
                        "comparison_dataset": row["comparison_dataset"],
                    }
                )
        except _FOREIGN as error:
            raise UserError(f"{path}: row {number} is not in the paper's layout ({one_line(repr(error))})") from error
    if not out:
        raise UserError(f"{path}: 'sampled_answers' is empty in every row; fetch the file again")
    return pd.DataFrame(out)


def _paper_chains(rows: list[dict[str, Any]], path: Path) -> pd.DataFrame:
    out = []
    for number, row in enumerate(rows, start=1):
        try:
            steps = [(None, None, row["initial_response"][0]["sample"])]
            steps += [(s["cst_key"], s["critique"]["sample"].strip(), s["revision"]["sample"]) for s in row["cst"]]
            for revision, (principle, critique, response) in enumerate(steps):
                out.append(
                    {
                        "prompt": _paper_prompt(row["rl_prompt"]),
                        "arm": _paper_arm(path),
                        "sample": 0,
                        "revision": revision,
                        "principle": principle,
                        "critique": critique,
                        "response": strip_leftover(response),
                        "mode": "critiqued",
                        "n_principles": PAPER_PRINCIPLES,
                        "comparison_dataset": row["comparison_dataset"],
                    }
                )
        except _FOREIGN as error:
            raise UserError(f"{path}: row {number} is not in the paper's layout ({one_line(repr(error))})") from error
    return pd.DataFrame(out)


def _paper_arm(path: Path) -> str:
    names = [name for name in PAPER_ARMS if path.stem == name or path.stem.endswith(f"_{name}")]
    return PAPER_ARMS[max(names, key=len)] if names else path.stem


def _paper_prompt(prompt: str) -> str:
    # Its few-shot prompts separate a question from its answer by one line break only.
    return chat.normalise(_SINGLE_BREAK.sub("\n\n", prompt))


def strip_leftover(text: str) -> str:
    """A sampled answer without the human turn that the sampler began after it."""
    while (shorter := _LEFTOVER.sub("", text)) != text:
        text = shorter
    return text.strip()


def _chains_of(path: Path) -> pd.DataFrame:
    """The chains of a file that holds some."""
    if path.suffix == ".jsonl":
        rows = _json_rows(path)
        if "cst" in rows[0]:
            return _paper_chains(rows, path)
    table = _typed(_records(path), path, ("prompt", "response", "revision")).drop(columns=["step", "_stem_arm"])
    if table["revision"].isna().any():
        raise UserError(
            f"{path}: row {int(table['revision'].isna().to_numpy().argmax()) + 1} has no revision; number it"
        )
    table["revision"] = _whole(table["revision"], f"{path}: column 'revision'").astype("int64")
    table["sample"] = table["sample"].fillna(0).astype("int64")
    for column, default in (("principle", None), ("critique", None), ("mode", "critiqued"), ("n_principles", pd.NA)):
        if column not in table:
            table[column] = default
    table["n_principles"] = _whole(table["n_principles"], f"{path}: column 'n_principles'")
    table["mode"] = table["mode"].map(lambda mode: mode if isinstance(mode, str) else "critiqued")
    key = ["prompt", "arm", "sample", "mode", "n_principles", "revision"]
    if (twice := table.duplicated(key)).any():
        row = int(twice.to_numpy().argmax()) + 1
        raise UserError(f"{path}: row {row} repeats the revision of an earlier row; number `sample`")
    return table[[*CHAIN_COLUMNS, *table.columns.difference(CHAIN_COLUMNS)]]


# ---------------------------------------------------------------- checks


def _typed(table: pd.DataFrame, path: Path, required: Sequence[str] = ("prompt", "response")) -> pd.DataFrame:
    """`table` with the shared columns checked and typed; sample is NA where the file does not number it."""
    missing = [column for column in required if column not in table]
    if missing:
        have = ", ".join(map(str, table.columns[:8]))
        raise UserError(f"{path}: no column '{missing[0]}' (it has {have}); each row needs {' and '.join(required)}")
    table = table.reset_index(drop=True)
    for column in ("prompt", "response"):
        for row, value in enumerate(table[column], start=1):
            if not isinstance(value, str):
                raise UserError(f"{path}: row {row}: {column} is {_short(value)}, not text; correct or delete the row")
    prompts = {text: _normalise(text) for text in table["prompt"].unique()}
    table["prompt"] = table["prompt"].map(prompts)
    if (empty := table["prompt"] == "").any():
        raise UserError(f"{path}: row {int(empty.to_numpy().argmax()) + 1}: prompt is empty; correct or delete the row")
    table["response"] = table["response"].str.strip()
    table["_stem_arm"] = "arm" not in table
    arms = table["arm"] if "arm" in table else pd.Series(path.stem, table.index)
    if (nameless := arms.isna() | (arms.astype(str).str.strip() == "")).any():
        raise UserError(f"{path}: row {int(nameless.to_numpy().argmax()) + 1}: arm is empty; name the arm in every row")
    for row, value in enumerate(arms, start=1):
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise UserError(f"{path}: row {row}: arm is {_short(value)}; name the arm by a text")
    table["arm"] = arms.astype(str)
    for column in ("step", "sample"):
        values = table[column] if column in table else pd.Series(pd.NA, table.index)
        table[column] = _whole(values, f"{path}: column '{column}'")
    if "kind" in table:
        kind = table["kind"].astype(object).where(table["kind"].notna(), None)
        for row, value in enumerate(kind, start=1):
            if value is not None and value not in KINDS:
                raise UserError(
                    f"{path}: row {row}: kind is {_short(value)}; use 'harmless', 'helpful' or leave it out"
                )
        table["kind"] = kind
    return table


def _normalise(prompt: str) -> str:
    text = prompt if prompt.startswith("\n\nHuman:") else prompt.strip()
    # Editors and CSV writers strip the layout's two leading line breaks.
    if text.startswith("Human:") and "\n\nAssistant:" in text:
        text = f"\n\n{text}"
    return chat.normalise(text) if chat.parse(text) else ""


def _whole(values: pd.Series, what: str) -> pd.Series:
    """`values` as Int64, or a UserError naming the first one that is not a whole number of 0 or more."""
    numbers = pd.Series([_number(value) for value in values], values.index, dtype="float64")
    bad = values.notna() & ~((numbers % 1 == 0) & numbers.between(0, _LARGEST))
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise UserError(
            f"{what}: row {row + 1} is {_short(values.iloc[row])}; use whole numbers from 0, or leave it out"
        )
    return numbers.astype("Int64")


def _number(value: Any) -> float:
    try:
        return float("nan") if isinstance(value, bool) or _is_missing(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _refuse_shared_stems(files: Sequence[Path], table: pd.DataFrame) -> None:
    """Two files that both go by their stem must not melt into one arm."""
    stems = [file for file in files if table.loc[table["_stem_arm"], "arm"].eq(file.stem).any()]
    seen: dict[str, Path] = {}
    for file in stems:
        if file.stem in seen:
            raise UserError(
                f"{file}: its arm would be '{file.stem}', as that of {seen[file.stem]}; add a column 'arm' or rename it"
            )
        seen[file.stem] = file


def _refuse_duplicates(table: pd.DataFrame) -> None:
    key = ["arm", "step", "prompt", "sample"]
    twice = table.duplicated(key)
    if twice.any():
        row = table[twice].iloc[0]
        at = "" if pd.isna(row["step"]) else f" at step {row['step']}"
        raise UserError(
            f"responses: arm {row['arm']}{at} has sample {row['sample']} of prompt {_short(row['prompt'])} twice; "
            "number `sample` differently or delete one"
        )


def _short(value: object) -> str:
    return shown(value.item() if isinstance(value, np.generic) else value, 60)
