"""Rows from wherever they lie: a file, a folder of files with splits, or a data set on the hub.

Files are JSON lines, a JSON list, Parquet or CSV, gzipped or not. A folder holds files named by
their split, train.jsonl or train-00000-of-00001.parquet, in itself or in `data/`, as the hub's own folders do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import files
from harness.errors import UserError, one_line

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")
Row = tuple[str, dict[str, Any]]  # where it stands, for messages, and its values by column


def is_local(source: str) -> bool:
    """Whether `source` is a path, of something that is there or that should be, and no data set of the hub."""
    return Path(source).exists() or looks_like_path(source) or source.endswith((*SUFFIXES, ".txt"))


def looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1


def split_files(source: str, split: str, key: str) -> list[Path]:
    """The files of a split of a local source; a file is its own split `train` and has no other.

    Raises UserError, beginning with the experiment's `key`, where the source is missing or of a kind that nobody reads.
    """
    path = Path(source)
    if path.is_dir():
        found = [file for place in (path, path / "data") if place.is_dir() for file in sorted(place.iterdir())]
        begins = (f"{split}.", f"{split}-")  # train.jsonl, train-00000-of-00001.parquet
        return [f for f in found if f.is_file() and f.name.startswith(begins) and f.name.endswith(SUFFIXES)]
    if not path.exists():
        raise UserError(f"{key}: {source} not found; give a file, a folder with train files, or a hub id OWNER/NAME")
    if not path.name.endswith((*SUFFIXES, ".txt")):
        raise UserError(f"{key}: {source} is of no known kind; its name must end in {', '.join(SUFFIXES)}")
    return [path] if split == "train" else []


def read(source: str, split: str, key: str, subset: str | None = None) -> list[Row] | None:
    """The rows of one split of `source`; None where it has no such split. subset: the hub's name of a configuration.

    Raises UserError naming `key` and the file, row or data set.
    """
    if not is_local(source):
        return _from_hub(source, split, key, subset)
    if subset is not None:
        raise UserError(f"{key}: subset is for data sets on the hub, and {source} is a path; leave it out")
    found = split_files(source, split, key)
    return [row for file in found for row in _from_file(file)] if found else None


def _from_file(file: Path) -> Iterator[Row]:
    if file.name.endswith(".parquet"):
        rows: list[Any] = files.read_parquet(file).to_dict("records")
    elif file.name.endswith((".csv", ".csv.gz")):
        rows = files.read_csv(file).to_dict("records")
    elif file.name.endswith(".txt"):
        rows = [{"prompt": line} for line in files.read_text(file).splitlines() if line.strip()]
    else:
        rows = files.read_rows(file)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{file}: row {number} is no object with columns, {{...}}; write it as one")
        yield f"{file}: row {number}", row


def _from_hub(name: str, split: str, key: str, subset: str | None) -> list[Row] | None:
    import datasets

    try:
        loaded = datasets.load_dataset(name, subset)
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise UserError(
            f"{key}: '{name}' is no path here and the hub did not give it ({one_line(error)}); check the name, and "
            f"{key}.subset where it has several"
        ) from error
    if split not in loaded:
        return None
    return [(f"{name} ({split}): row {number}", row) for number, row in enumerate(loaded[split], start=1)]
