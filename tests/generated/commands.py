"""Whole commands, each with the files that it is run on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tests.generated.files import constitution_file, experiment_file
from tests.generated.tables import (
    HHH,
    PREFERENCES,
    RATINGS,
    VOTES,
    as_csv,
    as_jsonl,
    as_parquet,
    damaged,
    plain_rows,
    rows,
    table_file,
)
from tests.generated.values import NAMES, TEXTS, VALUES

SWARM: dict[str, Any] = {"constitutions": [{"critic": "What is wrong?", "revision": "Fix it."}], "system_chat": []}
EVENTS: list[dict[str, Any]] = [
    {"time": 1.0, "event": "run", "stages": [{"stage": "data", "needs": []}], "pid": 1, "host": "here"},
    {"time": 2.0, "event": "stage", "stage": "data", "position": 1, "total": 1},
    {"time": 3.0, "event": "progress", "stage": "data", "done": 1, "total": 2, "eta": 3.0, "note": "half"},
    {"time": 3.5, "event": "row", "stage": "data", "row": {"step": 1, "loss": 0.5}},
    {"time": 4.0, "event": "finished", "stage": "data", "seconds": 2.0, "tokens": 5, "device": "cpu"},
    {"time": 5.0, "event": "failed", "stage": "data", "error": "the disk is full"},
    {"time": 6.0, "event": "end"},
]


@dataclass
class Case:
    """A command, and the files (by name, within its folder) that it is run on."""

    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


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
    files["pairs.jsonl"] = draw(plain_rows(draw(st.sampled_from(PREFERENCES))))
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
def imported(draw: st.DrawFn) -> Case:
    """Principles of other projects' forms, with a template of one's own or without."""
    kind = draw(st.sampled_from(["a.txt", "a.csv", "a.json"]))
    content = {
        "a.txt": "\n".join(draw(st.lists(TEXTS | st.just("Be kind."), max_size=3))).encode("utf-8", "surrogatepass"),
        "a.csv": as_csv([{draw(st.sampled_from(["principle"] * 4 + ["text"])): draw(TEXTS)} for _ in range(2)]),
        "a.json": json.dumps(draw(st.just(SWARM) | st.just(SWARM | {"system_chat": [[]]}) | VALUES)).encode(),
    }[kind]
    files = {kind: draw(damaged(content))}
    words = ["constitutions", "import", kind, "--out", "OUT"]
    if draw(st.booleans()):
        asks = {"critique": "{principle}?", "revision": "{principle}!", "comparison": "{principle} or {critique}?"}
        for _ in range(draw(st.integers(0, 1))):
            asks[draw(st.sampled_from(sorted(asks)))] = draw(TEXTS)
        files["t.yaml"] = draw(damaged(json.dumps(asks).encode()))
        words += ["--template", "t.yaml"]
    return Case(words, files)


@st.composite
def watching(draw: st.DrawFn) -> Case:
    """`status` of a run ("RUN") whose events were cut, spoilt or left by something else."""
    events = draw(st.lists(st.sampled_from(EVENTS), max_size=6))
    spoilt = [event | draw(st.dictionaries(st.sampled_from(sorted(event)), VALUES, max_size=1)) for event in events]
    content = draw(damaged(as_jsonl(spoilt)))
    return Case(["status", "RUN", *draw(st.sampled_from([[], ["--json"]]))], {"RUN/events.jsonl": content})


@st.composite
def writing(draw: st.DrawFn) -> Case:
    """`new` and `publish`, which write into a folder of their own."""
    kinds, name = st.sampled_from(["method", "suite", "constitution", "experiment"]), st.just("mine")
    if draw(st.booleans()):
        words = ["new", draw(st.one_of(*[kinds] * 6, NAMES)), draw(st.one_of(*[name] * 6, NAMES)), "--in", "OUT"]
        return Case([word for word in words if "\x00" not in word])
    model = f"RUN:{draw(NAMES | st.sampled_from(['rl_cai', 'pm.rl_cai', '']))}"
    return Case(["publish", model, draw(st.one_of(*[st.just("me/model")] * 6, NAMES)), "--dry-run", "--out", "OUT"])


@st.composite
def reading(draw: st.DrawFn) -> Case:
    """`claims`, `report` or `export` on a whole run ("RUN") with one file replaced; the key "RUN/*" says by what."""
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
    words = draw(
        st.sampled_from([["claims", "RUN"], ["claims", "RUN"], ["report", "RUN"], ["export", "RUN", "--out", "OUT"]])
    )
    return Case(words, {} if how == "none" else {f"RUN/{'run.json' if how == 'json' else place}": content})


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
    imported(),
    reading(),
    watching(),
    writing(),
    other(),
)
