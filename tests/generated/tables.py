"""Tables that are nearly right, as files of each kind: responses, ratings, votes, comparisons."""

from __future__ import annotations

import copy
import gzip
import io
import json
from typing import Any

import pandas as pd
from hypothesis import strategies as st

from tests import hostile
from tests.generated.values import NAMES, VALUES


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Responses of one to three arms to up to 14 prompts, with some cells, columns or rows spoilt."""
    arms = draw(st.lists(st.sampled_from(["a", "b", "rl_cai"]) | NAMES, min_size=1, max_size=3, unique=True))
    prompts = [f"Question {i}?" for i in range(draw(st.integers(1, 14)))]
    table: list[dict[str, Any]] = [
        {"prompt": p, "response": f"An answer of {a} to {i}.", "arm": a, "score": float(i % 5), "kind": "harmless"}
        for a in arms
        for i, p in enumerate(prompts)
    ]
    columns = [
        "prompt",
        "response",
        "arm",
        "step",
        "sample",
        "kind",
        "score",
        "benign",
        "revision",
        "ended",
        "temperature",
        "critique",
        "mode",
        "n_principles",
        "principle",
        "paper_pm_score",
    ]
    for _ in range(draw(st.integers(0, 4))):
        column = draw(st.sampled_from(columns) | NAMES)
        match draw(st.sampled_from(["cell", "column", "constant", "drop", "twice", "cut"])):
            case "cell":
                table[draw(st.integers(0, len(table) - 1))][column] = draw(VALUES)
            case "column":
                for row in table:
                    row[column] = draw(VALUES)
            case "constant":
                value = draw(VALUES | st.integers(0, 5))
                for row in table:
                    row[column] = value
            case "drop":
                for row in table:
                    row.pop(column, None)
            case "twice":
                table.append(dict(draw(st.sampled_from(table))))
            case _:
                table = table[: draw(st.integers(1, len(table)))]
    return table


def as_jsonl(table: list[dict[str, Any]], ascii_only: bool = True) -> bytes:
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in table]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def as_csv(table: list[dict[str, Any]]) -> bytes:
    return pd.DataFrame(table).to_csv(index=False).encode("utf-8", "surrogatepass")


def as_parquet(table: list[dict[str, Any]]) -> bytes:
    """The table as Parquet; where its values do not go together, as text."""
    out = io.BytesIO()
    frame = pd.DataFrame(table).rename(columns=str)
    frame = frame.loc[:, ~frame.columns.duplicated()]
    try:
        frame.to_parquet(out, index=False)
    except Exception:  # mixed, huge or lone surrogates
        out = io.BytesIO()
        safe = frame.map(lambda v: str(v).encode("utf-8", "replace").decode("utf-8"))
        safe.rename(columns=lambda c: c.encode("utf-8", "replace").decode("utf-8")).to_parquet(out, index=False)
    return out.getvalue()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content`, mostly as it is; or cut, a byte changed, with a mark before or other line ends."""
    how = draw(st.sampled_from(["whole"] * 7 + ["cut", "flip", "mark", "ends", "packed"]))
    if how == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if how == "flip" and content:
        place = draw(st.integers(0, len(content) - 1))
        return content[:place] + bytes([content[place] ^ (1 << draw(st.integers(0, 7)))]) + content[place + 1 :]
    if how == "mark":
        return b"\xef\xbb\xbf" + content
    if how == "ends":
        return content.replace(b"\n", b"\r\n")
    return gzip.compress(content) if how == "packed" else content


@st.composite
def table_file(draw: st.DrawFn, stem: str = "a") -> tuple[str, bytes]:
    """The name and content of a response file."""
    kind = draw(st.sampled_from(["jsonl", "jsonl", "csv", "parquet", "raw"]))
    if kind == "raw":
        suffix, pool = draw(
            st.sampled_from([(".jsonl", hostile.JSON_LINES), (".csv", hostile.CSV), (".parquet", hostile.PARQUET)])
        )
        return stem + suffix, draw(st.sampled_from(sorted(pool.values())))
    table = draw(rows())
    make = {
        "jsonl": lambda: as_jsonl(table, draw(st.booleans())),
        "csv": lambda: as_csv(table),
        "parquet": lambda: as_parquet(table),
    }[kind]
    return f"{stem}.{kind}", draw(damaged(make()))


@st.composite
def plain_rows(draw: st.DrawFn, good: list[dict[str, Any]]) -> bytes:
    """Rows of some other layout (ratings, votes, comparisons) as JSON lines, one or two cells of them spoilt."""
    table = copy.deepcopy(good)
    for _ in range(draw(st.integers(0, 2))):
        row = draw(st.sampled_from(table))
        row[draw(st.sampled_from(sorted(row)))] = draw(VALUES)
    return draw(damaged(as_jsonl(table)))


RATINGS = [{"prompt": f"q{i}", "response": f"it is {i % 5}", "rating": i % 5} for i in range(30)]
VOTES = [
    {
        "prompt": f"p{i}",
        "arm_a": "a",
        "arm_b": "b",
        "winner": "ab"[i % 2],
        "step_a": "",
        "sample": "0",
        "order": "ab",
        "judge": "me",
    }
    for i in range(12)
]
HHH = [
    {
        "prompt": "Consider the following conversation:\n\nH: hi\n\nPlease choose the response. Options:\n"
        " (A) [[[yes]]]\n (B) [[[no]]]\n\nThe answer is:",
        "corrects": [" (A)"],
        "incorrects": [" (B)"],
        "subset": "x",
    }
] * 3
PREFERENCES: list[list[dict[str, Any]]] = [  # TRL's standard and conversational formats, PKU-SafeRLHF's
    [{"prompt": f"q{i}?", "chosen": f"yes {i}", "rejected": "no", "p": 0.9} for i in range(12)],
    [
        {
            "chosen": [{"role": "user", "content": f"q{i}?"}, {"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "user", "content": f"q{i}?"}, {"role": "assistant", "content": "no"}],
        }
        for i in range(12)
    ],
    [
        {
            "prompt": f"q{i}?",
            "response_0": "yes",
            "response_1": "no",
            "better_response_id": 0,
            "safer_response_id": i % 2,
        }
        for i in range(12)
    ],
]
