"""Hypothesis strategies for what a user may type and name: response tables, experiment files and whole commands.

Most of what they make is nearly right, since nonsense is refused at the door: good tables and files with a few hostile
cells, keys, bytes or options in them.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import yaml
from hypothesis import strategies as st

from tests import hostile

TEXTS = st.sampled_from(hostile.TEXTS) | st.text(max_size=12)
NUMBERS = st.sampled_from(hostile.NUMBERS) | st.integers() | st.floats()
NAMES = st.sampled_from(hostile.NAMES) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\x00"), min_size=1, max_size=8
).filter(lambda name: name not in (".", ".."))
VALUES = (
    TEXTS | NUMBERS | st.lists(st.integers(), max_size=2) | st.dictionaries(st.text(max_size=3), st.none(), max_size=2)
)


@dataclass
class Case:
    """A command, and the files (by name, within its folder) that it is run on."""

    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


# ---------------------------------------------------------------- tables


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


# ---------------------------------------------------------------- experiment files

EXPERIMENT: dict[str, Any] = {
    "name": "x",
    "seed": 0,
    "constitution": "default",
    "arms": ["helpful_only", "sl_cai"],
    "suites": ["evasiveness"],
    "models": {"base": "embedded", "feedback": None, "judge": "gold_pm"},
    "data": {"redteam_prompts": None},
    "scale": {
        "redteam_prompts": 4,
        "helpful_prompts": 4,
        "heldout_prompts": 4,
        "preference_pairs": 4,
        "gold_pairs": 4,
        "samples_per_prompt": 1,
        "max_new_tokens": 8,
        "max_prompt_tokens": 128,
        "batch_size": 8,
    },
    "lora": {"rank": 4, "alpha": 8, "top_layers": 1},
    "revise": {"rounds": 2, "also_principles": [2]},
    "sft": {"epochs": 1.0, "learning_rate": 0.001},
    "feedback": {"clamp": [0.4, 0.6]},
    "pm": {"max_length": 64},
    "rl": {"updates": 2, "rollouts_per_update": 4, "learning_rate": 0.001},
    "methods": [],
    "report_to": "none",
}


@st.composite
def experiment_file(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(sorted(hostile.YAML.values())))
    raw = copy.deepcopy(EXPERIMENT)
    for _ in range(draw(st.integers(0, 3))):
        place: dict[str, Any] = raw
        key = draw(st.sampled_from(sorted(raw)))
        if isinstance(raw[key], dict) and raw[key] and draw(st.integers(0, 4)):
            place, key = raw[key], draw(st.sampled_from(sorted(raw[key])))
        if draw(st.integers(0, 8)) == 0:
            key = draw(st.sampled_from(["kl_coef", "epochs", "few_shot", "variants"]) | st.text(max_size=5))
        match draw(st.sampled_from(["set", "set", "set", "drop", "list"])):
            case "drop":
                place.pop(key, None)
            case "list":
                place[key] = draw(st.lists(VALUES | st.sampled_from(["hh_rlhf", "rl_cai", "elo", "hhh"]), max_size=3))
            case _:
                place[key] = draw(VALUES | st.sampled_from(["mine.py", "a.jsonl", "folder", "c.yaml", "server:x#y"]))
    try:
        content = yaml.safe_dump(raw, allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")
    except yaml.YAMLError:  # not every value has a form in YAML
        content = json.dumps(raw).encode()
    return draw(damaged(content))


CONSTITUTION = {
    "name": "c",
    "description": "d",
    "license": "l",
    "critique_revision": [{"id": "a", "tags": ["t"], "critique": "What is wrong?", "revision": "Fix it."}],
    "comparison": [{"id": "b", "question": "Which?"}],
}


@st.composite
def constitution_file(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(sorted(hostile.YAML.values())))
    raw: dict[str, Any] = copy.deepcopy(CONSTITUTION)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.sampled_from([raw, raw["critique_revision"][0] if raw.get("critique_revision") else raw]))
        if isinstance(place, dict):
            place[draw(st.sampled_from(sorted(place)) | st.text(max_size=4))] = draw(VALUES)
        if not isinstance(raw.get("critique_revision"), list) or not isinstance(raw["critique_revision"], list):
            break
        if raw["critique_revision"] and not isinstance(raw["critique_revision"][0], dict):
            break
    return draw(damaged(json.dumps(raw).encode()))


# ---------------------------------------------------------------- commands

_ODD = st.sampled_from(["-1", "0", "1", "7", "x", "", "1e9", "99999999999999999999", "NaN", "-", "0x1"]) | st.text(
    max_size=4
)


@st.composite
def options(draw: st.DrawFn, known: dict[str, st.SearchStrategy[str]], most: int = 2) -> list[str]:
    chosen = draw(st.lists(st.sampled_from(sorted(known)), max_size=most, unique=True))
    return [word for option in chosen for word in (option, draw(known[option]))]


@st.composite
def evaluation(draw: st.DrawFn) -> Case:
    name, content = draw(table_file())
    case = Case(["eval", name], {name: content})
    if draw(st.integers(0, 3)) == 0:
        other, more = draw(table_file("b"))
        case.files[other] = more
        case.arguments.append(draw(st.sampled_from([other, "*.csv", "**", ".", "absent.jsonl"]) | NAMES))
    suite = draw(
        st.sampled_from(
            ["evasiveness", "goodharting", "pm_score", "elo", "harmfulness", "votes", "hhh", "default", "own", "odd"]
        )
    )
    judge = [
        "--judge",
        draw(st.sampled_from(["column:score"] * 4 + ["column:paper_pm_score", "pm:absent", "x", "column:"])),
    ]
    if suite == "votes":
        case.files["votes.csv"] = draw(
            damaged(as_csv([row | {"winner": draw(st.sampled_from("ab"))} for row in VOTES]))
        )
        case.arguments = ["eval", "--suite", "elo", "--judge", "votes:votes.csv"]
    elif suite == "harmfulness":
        case.files["ratings.jsonl"] = draw(plain_rows(RATINGS))
        case.arguments += ["--suite", suite, "--ratings", "ratings.jsonl"]
    elif suite == "hhh":
        case.files["hhh.jsonl"] = draw(plain_rows(HHH))
        case.arguments = ["eval", "--suite", "hhh", "--hhh", "hhh.jsonl", "--model", "absent/folder/x"]
    elif suite == "own":
        code = draw(
            st.sampled_from(["return responses", "raise SystemExit(0)", "return 1/0", "import x_y_z", "return None"])
        )
        case.files["mine.py"] = f"def run(responses, *, seed):\n    {code}\n".encode()
        case.arguments += ["--suite", "mine.py"]
    elif suite == "odd":
        case.arguments += ["--suite", draw(NAMES)]
    elif suite != "default":
        case.arguments += ["--suite", suite, *(judge if suite in ("pm_score", "elo") else [])]
    known = {
        "--seed": _ODD | st.just("3"),
        "--limit": _ODD,
        "--cot": _ODD,
        "--max-new-tokens": _ODD,
        "--judge": TEXTS,
        "--anchor": NAMES | st.just("a"),
        "--prompts": NAMES,
        "--ratings": NAMES,
        "--engine": NAMES,
    }
    case.arguments += [word for word in draw(options(known, 1)) if "\x00" not in word]
    ending = draw(st.sampled_from([[], ["--json"], ["--json"]]))
    return Case(case.arguments + ending, case.files)


@st.composite
def comparison(draw: st.DrawFn) -> Case:
    (first, one), (second, two) = draw(table_file("a")), draw(table_file("b"))
    if draw(st.booleans()):
        second, two = "b" + first[1:], one
    arms = st.sampled_from(["", "", ":a", ":b", ":rl_cai", ":nobody"])
    words = ["compare", first + draw(arms), second + draw(arms), "--out", "OUT"]
    gate = {
        "metrics": {"evasive_rate": {"better": "lower", "margin": 0.1}, "pm_score": {"better": "higher", "margin": 1}}
    }
    files = {first: one, second: two}
    if draw(st.integers(0, 2)) == 0:
        for _ in range(draw(st.integers(0, 2))):
            place = draw(st.sampled_from([gate, gate["metrics"], *gate["metrics"].values()]))
            if isinstance(place, dict):
                place[draw(st.sampled_from(["alpha", "margin", "better", "metrics", "min_prompts", "x"]))] = draw(
                    VALUES
                )
            if not isinstance(gate["metrics"], dict):
                break
        files["gate.yaml"] = json.dumps(gate).encode()
        words += ["--gate", "gate.yaml"]
    judge = st.sampled_from(["column:score", "column:score", "column:x", "pm:absent", "votes:x"]) | TEXTS
    words += draw(options({"--judge": judge, "--seed": _ODD | st.just("1"), "--ratings": NAMES}, 1))
    return Case([word for word in words if "\x00" not in word], files)


@st.composite
def training(draw: st.DrawFn) -> Case:
    files = {"x.yaml": draw(experiment_file()), "c.yaml": draw(constitution_file())}
    files["a.jsonl"] = draw(table_file())[1]
    code = draw(
        st.sampled_from(["return {}", "return None", "raise SystemExit(0)", "return {'sl_cai': training.data}"])
    )
    files["mine.py"] = f"def arms(experiment, training):\n    {code}\n".encode()
    return Case([draw(st.sampled_from(["plan", "plan", "run"])), "x.yaml", "--out", "OUT"], files)


@st.composite
def principles(draw: st.DrawFn) -> Case:
    files = {"c.yaml": draw(constitution_file())}
    names = (
        "CritiqueRevisionInstructions",
        "RLMadisonInstructions",
        "CritiqueRevisionFewShotPrompts",
        "RLMadisonFewShotPrompts",
        "RLMadisonPrecogFewShotPrompts",
    )
    for name in names[: draw(st.integers(3, 5))]:
        good = {"a": {"prompt": ["x"], "edit_request": "y"}} if name == names[0] else ["CritiqueRequest: x"]
        spoilt = draw(st.sampled_from([good, good, {}, [], None, 3]) | VALUES.map(lambda v: [v]))
        files[f"{name}.json"] = draw(damaged(json.dumps(spoilt).encode()))
    words = draw(st.sampled_from([["validate", "c.yaml"], ["show", "c.yaml"], ["import", ".", "--out", "OUT"]]))
    return Case(["constitutions", *words], files)


@st.composite
def reading(draw: st.DrawFn) -> Case:
    """`claims` or `report` on a whole run ("RUN") one of whose files is replaced; the key "RUN/*" says by what."""
    how = draw(st.sampled_from(["json", "table", "bytes", "none"]))
    content = b""
    if how == "json":
        content = json.dumps(
            draw(
                st.dictionaries(
                    st.sampled_from(
                        ["arms", "models", "kind", "data", "scale", "seed", "versions", "name", "suites", "tokens"]
                    ),
                    VALUES,
                    max_size=4,
                )
            )
        ).encode()
    elif how == "table":
        content = as_parquet(draw(rows()))
    elif how == "bytes":
        content = draw(st.binary(max_size=40))
    place = str(draw(st.integers(0, 40)))
    command = draw(st.sampled_from(["claims", "claims", "report"]))
    return Case([command, "RUN"], {} if how == "none" else {f"RUN/{'run.json' if how == 'json' else place}": content})


@st.composite
def other(draw: st.DrawFn) -> Case:
    words = draw(
        st.sampled_from(
            [
                ["models"],
                ["dashboard"],
                ["claims"],
                ["report"],
                ["doctor", "x"],
                ["--debugg"],
                ["eval"],
                ["constitutions"],
                ["plan"],
                ["run"],
                ["compare"],
                [],
            ]
        )
    )
    more = draw(st.lists(NAMES | _ODD | st.sampled_from(["--port", "--host", "--out", "--json", "--help"]), max_size=3))
    return Case([word for word in [*words, *more] if "\x00" not in word])


CASES = st.one_of(
    evaluation(),
    evaluation(),
    evaluation(),
    comparison(),
    comparison(),
    training(),
    training(),
    principles(),
    reading(),
    other(),
)
