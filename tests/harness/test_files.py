"""Reading files: what is good is read as it stands, what is not is one line that names the file."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import files
from harness.errors import UserError
from tests import hostile

GOOD = b'{"prompt": "p", "response": "r", "arm": "x"}\n'


def refused(read: Callable[[Path], Any], path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400
    return message


# ---------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    "name", [n for n in hostile.YAML if n not in ("empty", "null", "list", "text", "utf-16", "binary")]
)
def test_yaml_that_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(hostile.YAML[name])
    if name == "huge hexadecimal":
        assert files.read_yaml(path)["name"] > 2**31999  # for the schema to refuse
        return
    before, began = psutil.Process().memory_info().rss, time.monotonic()
    message = refused(files.read_yaml, path)
    assert time.monotonic() - began < 5
    assert psutil.Process().memory_info().rss - before < 200 << 20
    if "twice" in name:
        assert "twice" in message
    if "bomb" in name:
        assert "aliases" in message


def test_yaml_with_a_few_aliases_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("base: &base {a: 1}\none: *base\ntwo: {<<: *base, a: 2}\nthree: {<<: *base}\n")
    assert files.read_yaml(path) == {"base": {"a": 1}, "one": {"a": 1}, "two": {"a": 2}, "three": {"a": 1}}


def test_yaml_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: a\n")
    assert files.read_yaml(path) == {"name": "a"}


# ---------------------------------------------------------------- JSON lines


@pytest.mark.parametrize("break_", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_newline_ends_a_json_line(tmp_path: Path, break_: str) -> None:
    rows = [{"prompt": f"a{break_}b"}, {"prompt": "c"}]
    path = tmp_path / "a.jsonl"
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    if break_ < " ":  # JSON wants these escaped; they may not end a line all the same
        text = text.replace(break_, json.dumps(break_)[1:-1])
    path.write_text(text, encoding="utf-8")
    assert files.read_jsonl(path) == rows


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n\n", b"  \r\n"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_json_lines_as_editors_leave_them(
    tmp_path: Path, start: bytes, end: bytes, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / ("a.jsonl" if pack is bytes else "a.jsonl.gz")
    path.write_bytes(pack(start + GOOD.strip() + end + GOOD.strip()))
    assert files.read_jsonl(path) == [json.loads(GOOD)] * 2
    assert files.first_row(path) == json.loads(GOOD)


@pytest.mark.parametrize("name", hostile.JSON_LINES)
def test_a_bad_json_line_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD * 2 + hostile.JSON_LINES[name] + b"\n" + GOOD)
    message = refused(files.read_jsonl, path)
    assert "delete" not in message
    assert name == "not utf-8" or "line 3" in message


def test_a_line_cut_by_a_kill_is_left_out_on_request(tmp_path: Path) -> None:
    path = tmp_path / "done.jsonl"
    path.write_bytes(GOOD + GOOD[:9])
    assert files.read_jsonl(path, partial_end=True) == [json.loads(GOOD)]
    path.write_bytes(GOOD + '{"a": "é'.encode()[:-1])  # cut within a character
    assert files.read_jsonl(path, partial_end=True) == [json.loads(GOOD)]
    path.write_bytes(GOOD[:9] + b"\n" + GOOD)
    refused(lambda p: files.read_jsonl(p, partial_end=True), path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3), max_leaves=5,
), max_size=4), max_size=4), ascii_only=st.booleans())  # fmt: skip
def test_what_python_writes_is_read_back(tmp_path: Path, rows: list[dict[str, Any]], ascii_only: bool) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows), encoding="utf-8")
    assert files.read_jsonl(path) == rows


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".yaml", ".json", ".jsonl", ".jsonl.gz", ".csv"]))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    read: dict[str, Callable[[Path], Any]] = {
        ".yaml": files.read_yaml, ".json": files.read_json, ".csv": files.read_csv}  # fmt: skip
    said = ""
    try:
        read.get(suffix, files.read_jsonl)(path)
    except UserError as error:
        said = str(error)
    assert not said or said.startswith(str(path))
    assert "\n" not in said


# ---------------------------------------------------------------- JSON, gzip, tables


@pytest.mark.parametrize("name", ["not json", "key twice", "lone surrogate", "deep", "huge integer", "not utf-8"])
def test_json_that_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(hostile.JSON_LINES[name])
    refused(files.read_json, path)


@pytest.mark.parametrize("name", hostile.GZIP)
def test_gzip_that_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(hostile.GZIP[name])
    if name == "empty":
        assert files.read_jsonl(path) == []  # as gzip -d has it
    else:
        refused(files.read_jsonl, path)


@pytest.mark.parametrize("name", ["column twice", "more cells than columns", "more cells in one row", "unclosed quote",
                                  "not utf-8", "utf-16", "binary"])  # fmt: skip
def test_csv_that_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(hostile.CSV[name])
    message = refused(files.read_csv, path)
    if name == "column twice":
        assert "column 'arm' twice" in message


def test_csv_cells_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfprompt,n\nNone,007\n"a\nb",\n')
    table = files.read_csv(path)
    assert table.to_dict("list") == {"prompt": ["None", "a\nb"], "n": ["007", ""]}


@pytest.mark.parametrize("name", hostile.PARQUET)
def test_parquet_that_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(hostile.PARQUET[name])
    refused(files.read_parquet, path)
    refused(files.parquet_columns, path)


def test_parquet_with_a_column_twice(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["arm", "arm"]), path)
    assert "column 'arm' twice" in refused(files.read_parquet, path)


def test_parquet_columns_are_read_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"a": [1], "b": ["x"]}).to_parquet(path)
    assert files.read_parquet(path, ["b", "c"]).to_dict("list") == {"b": ["x"]}
    assert files.parquet_columns(path) == ["a", "b"]


@pytest.mark.parametrize(
    "read", [files.read_yaml, files.read_json, files.read_jsonl, files.read_csv, files.read_parquet]
)
def test_what_is_no_file(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    assert "not found" in refused(read, tmp_path / "absent")
    assert "folder" in refused(read, tmp_path)
    refused(read, hostile.symlink_loop(tmp_path, "loop"))
    refused(read, tmp_path / ("x" * 300))


def test_globs_do_not_follow_links_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_bytes(GOOD)
    for name in ("one", "two", "three"):
        (tmp_path / "a" / name).symlink_to(tmp_path / "a")
    hostile.symlink_loop(tmp_path / "a", "y.jsonl")
    began = time.monotonic()
    assert files.matching(f"{tmp_path}/**/*.jsonl") == [tmp_path / "a" / "x.jsonl"]
    assert files.matching(f"{tmp_path}/a/?.jsonl") == [tmp_path / "a" / "x.jsonl"]
    assert files.matching(f"{tmp_path}/a/../a/x.*") == [tmp_path / "a" / ".." / "a" / "x.jsonl"]
    assert time.monotonic() - began < 2
