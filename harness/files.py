"""Reading files: YAML, JSON, JSON lines, gzip, CSV and Parquet. Everything that a user hands over is read here.

Every reader raises UserError, one line with the file, where in it, what is wrong and how to fix it. Refused are keys
and columns that occur twice (the second would hide the first), text that is not UTF-8, and content that is small on
disk and huge in memory. Paths are those of files that exist; `matching` finds them by a pattern.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from harness.errors import UserError, explain, one_line

if TYPE_CHECKING:
    import pandas as pd
    import yaml
    from pydantic import BaseModel

    M = TypeVar("M", bound=BaseModel)

MOST_YAML_BYTES = 1 << 20  # PyYAML takes some ten seconds for so much
MOST_YAML_NODES = 200_000  # with every alias written out
MOST_NESTED = 100  # levels of JSON, and of brackets in YAML, whose scanner is quadratic in them
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # an escaped half of a pair, in raw JSON


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise UserError(f"{path}: file not found; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: this is a folder; name a file in it") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = one_line(getattr(error, "strerror", error))
        raise UserError(f"{path}: cannot be read ({reason}); check the path") from error


def read_bytes(path: Path) -> bytes:
    """The file's content, unpacked where its name ends in .gz."""
    with _opened(path) as file:
        content = file.read()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except Exception as error:  # zlib.error, EOFError, OSError and struct.error
        raise UserError(f"{path}: not a readable gzip file ({one_line(error)}); fetch it again") from error


def read_text(path: Path) -> str:
    """The file's text, a byte order mark left out."""
    return _decoded(read_bytes(path), path)


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def matching(pattern: str | Path) -> list[Path]:
    """Existing files that a glob pattern matches, sorted; `**` does not follow links to folders."""
    path = Path(pattern)
    root = Path(path.anchor) if path.is_absolute() else Path()
    try:
        return sorted(found for found in root.glob(str(path.relative_to(path.anchor))) if found.is_file())
    except (ValueError, NotImplementedError, OSError, IndexError) as error:  # '**' in a name; a name too long
        raise UserError(f"{pattern}: not a pattern of files ({one_line(error)}); check the path") from error


# ---------------------------------------------------------------- YAML


def read_yaml(path: Path) -> Any:
    """The file's one YAML document, as plain mappings, lists and values."""
    import yaml

    text = read_text(path)
    if len(text) > MOST_YAML_BYTES:
        raise UserError(f"{path}: {len(text):,} characters; a file of settings has at most {MOST_YAML_BYTES:,}")
    try:
        return yaml.load(text, Loader=_loader())
    except RecursionError as error:
        raise UserError(f"{path}: not valid YAML (nested too deeply); write it with fewer levels") from error
    except Exception as error:  # a YAMLError, or whatever PyYAML's constructors of values stumble over
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = one_line(getattr(error, "problem", None) or error)
        raise UserError(f"{path}: {where}not valid YAML ({problem}); quote or correct the text there") from error


@cache
def _loader() -> type[yaml.SafeLoader]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe YAML that refuses what PyYAML lets pass: a key twice, aliases that multiply, halves of characters."""

        def fetch_flow_collection_start(self, token_class: Any) -> None:
            if self.flow_level >= MOST_NESTED:
                raise yaml.scanner.ScannerError(None, None, "nested too deeply", self.get_mark())
            super().fetch_flow_collection_start(token_class)

        def get_single_node(self) -> Any:
            node = super().get_single_node()
            if node is not None and _nodes(node, {}) > MOST_YAML_NODES:
                problem = f"its aliases stand for more than {MOST_YAML_NODES:,} values"
                raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
            return node

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        problem = f"key {one_line(key.value, 60)!r} twice"
                        raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    return Loader


def _nodes(node: Any, known: dict[int, int | None]) -> int:
    """Nodes at and below `node`, an alias counted as what it stands for. `known` holds those counted, None meanwhile.

    Raises yaml.composer.ComposerError for a node within itself and for text that no encoding can hold.
    """
    import yaml

    if id(node) in known:
        counted = known[id(node)]
        if counted is None:
            problem = "an alias stands within its own anchor; aliases like that have no end"
            raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return counted
    if isinstance(node, yaml.ScalarNode):
        if any("\ud800" <= c <= "\udfff" for c in node.value):
            raise yaml.composer.ComposerError(None, None, "half of a surrogate pair", node.start_mark)
        return 1
    known[id(node)] = None
    below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    known[id(node)] = total = min(1 + sum(_nodes(part, known) for part in below), MOST_YAML_NODES + 1)
    return total


def read_model(path: Path, model: type[M], what: str) -> M:
    """The YAML file as a pydantic `model`. `what` it is, for messages: "a constitution"."""
    from pydantic import ValidationError

    raw = read_yaml(path)
    if not isinstance(raw, dict):
        kind = "empty" if raw is None else f"a {type(raw).__name__}"
        first = next(iter(model.model_fields))
        raise UserError(f"{path}: {what} is a mapping of keys, this file is {kind}; begin with `{first}: ...`")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply; write it with fewer levels") from error


# ---------------------------------------------------------------- JSON


class _JSONError(ValueError):
    """What is wrong with a piece of JSON, for people."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add gives None: on purpose
        raise _JSONError(f"key {one_line(twice, 60)!r} twice")
    return found


def parse_json(content: bytes) -> Any:
    """The JSON value in UTF-8 `content`. Raises ValueError, its text for people."""
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise _JSONError(f"not UTF-8 text, byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise _JSONError(f"{error.msg}, column {error.colno}") from error
    except RecursionError as error:
        raise _JSONError("nested too deeply") from error
    except ValueError as error:
        raise error if isinstance(error, _JSONError) else _JSONError("a number of too many digits") from error
    if content.count(b"[") + content.count(b"{") > MOST_NESTED and _depth(value) > MOST_NESTED:
        raise _JSONError("nested too deeply")
    if _SURROGATE.search(content):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise _JSONError(r"half of a surrogate pair, \ud800 to \udfff, which is no character") from error
    return value


def _depth(value: Any) -> int:
    levels, here = 0, [value]
    while here:
        here = [part for v in here if isinstance(v, list | dict) for part in (v.values() if isinstance(v, dict) else v)]
        levels += 1
    return levels


def read_rows(path: Path) -> list[Any]:
    """The values of one JSON list, or the objects of JSON lines."""
    content = read_bytes(path)
    if content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return list(_whole_json(content, path))
    return list(_json_lines(content, path))


def read_json(path: Path) -> Any:
    """The file's one JSON value."""
    return _whole_json(read_bytes(path), path)


def _whole_json(content: bytes, path: Path) -> Any:
    try:
        return parse_json(content)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); correct the file") from error


def read_jsonl(path: Path, *, partial_end: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, one a line; only a line feed ends a line. Blank lines are passed over.

    With `partial_end`, a last line that was cut short by a kill is left out.
    """
    return _json_lines(read_bytes(path), path, partial_end=partial_end)


def _json_lines(content: bytes, path: Path, *, partial_end: bool = False) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.removeprefix(b"\xef\xbb\xbf").strip():
            continue
        try:
            rows.append(_row(line))
        except ValueError as error:
            if partial_end and number == len(lines):
                break
            raise UserError(f"{path}: line {number}: {error}; correct that line") from error
    return rows


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise _JSONError(f"not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise _JSONError("not a JSON object, {...}")
    return row


def first_row(path: Path) -> dict[str, Any] | None:
    """The first object of a JSON-lines file, or None where there is none; the rest is not read."""
    unpack: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with unpack(path, "rb") as file:
            line = next((line for line in file if line.removeprefix(b"\xef\xbb\xbf").strip()), b"")
        return _row(line)
    except Exception:  # not JSON, not gzip, not there
        return None  # whoever reads the whole file says what is wrong with it


# ---------------------------------------------------------------- tables


def read_csv(path: Path) -> pd.DataFrame:
    """The file's table, every cell as the text that it is; no rows and no columns where the file is empty."""
    import pandas as pd

    text = read_text(path)
    if not text.strip():
        return pd.DataFrame()
    _refuse_twice(path, list(_csv(path, text, header=None, nrows=1).iloc[0]))
    table = _csv(path, text)
    if not isinstance(table.index, pd.RangeIndex):
        raise UserError(f"{path}: rows have more cells than the header; name every column")
    return table


def csv_columns(path: Path) -> list[str]:
    """The names of a CSV file's columns."""
    text = read_text(path)
    return list(_csv(path, text, nrows=0).columns) if text.strip() else []


def _csv(path: Path, text: str, **options: Any) -> pd.DataFrame:
    import io

    import pandas as pd

    try:
        return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, **options)
    except Exception as error:  # pandas raises many unrelated types
        raise UserError(f"{path}: not a readable CSV file ({one_line(error)}); write it again") from error


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The file's table, or those of `columns` that it has."""
    there = parquet_columns(path)
    import pandas as pd

    try:
        return pd.read_parquet(path, columns=None if columns is None else [c for c in columns if c in there])
    except Exception as error:  # pyarrow and pandas raise many unrelated types
        raise UserError(f"{path}: not a readable Parquet file ({one_line(error)}); write it again") from error


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns."""
    import pyarrow.parquet as pq

    with _opened(path) as file:
        try:
            names = list(pq.read_schema(file).names)
        except Exception as error:  # pyarrow raises many unrelated types
            raise UserError(f"{path}: not a readable Parquet file ({one_line(error)}); write it again") from error
    _refuse_twice(path, names)
    return names


def _refuse_twice(path: Path, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        if name and name in names[:place]:
            raise UserError(f"{path}: column {one_line(name, 60)!r} twice; rename one")
