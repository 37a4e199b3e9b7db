"""Reading and writing constitutions: the shipped default, the round trip and every error message."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import constitutions
from constitutions import Constitution, dump, load, shipped
from harness.errors import UserError
from harness.models import chat

CHAIN = "Human: a\n\nAssistant: b\n\nCritiqueRequest: c\n\nCritique: d\n\nRevisionRequest: e\n\nRevision: f"
COT = {"prompt": "Human: p\n\nAssistant: q\n\nHuman: r", "a": "x", "b": "y", "reasoning": "because", "answer": "B"}
RAW: dict[str, Any] = {
    "name": "mine",
    "description": "two principles",
    "license": "CC0-1.0",
    "critique_revision": [{"id": "sl-a", "tags": ["x"], "critique": "What is wrong?", "revision": "Fix it."}],
    "comparison": [{"id": "rl-a", "question": "Which?"}, {"id": "rl-b", "question": "Which one?"}],
    "few_shot": {
        "critique_revision": [CHAIN],
        "comparison": [{"prompt": "p", "chosen": "c", "rejected": "r"}],
        "cot": [COT],
    },
}


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def fault(path: Path | str) -> str:
    """The message of the UserError that `load` raises: one line that names the file."""
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    assert ";" in message, "how to fix it follows the fault"
    return message.removeprefix(f"{path}: ")


def test_default_has_sixteen_of_each_with_unique_ids_and_short_texts() -> None:
    default = load("default")
    assert "default" in shipped()
    assert len(default.critique_revision) == len(default.comparison) == 16
    ids = [p.id for p in default.critique_revision] + [p.id for p in default.comparison]
    assert len(set(ids)) == 32
    assert all(p.id.startswith("sl-") and p.tags for p in default.critique_revision)
    assert all(p.id.startswith("rl-") and p.tags for p in default.comparison)
    texts = [t for p in default.critique_revision for t in (p.critique, p.revision)]
    texts += [p.question for p in default.comparison]
    assert len(set(texts)) == 48
    assert max(len(text.split()) for text in texts) <= 30


def test_default_examples_are_complete_and_balanced() -> None:
    shots = load("default").few_shot
    assert shots is not None
    for chain in shots.critique_revision:
        assert [m["role"] for m in chat.parse(chain, chain=True)] == ["user", "assistant"] * 3
    answers = [example.answer for example in shots.cot]
    assert answers.count("A") == answers.count("B") > 0  # an unbalanced set would teach a letter
    assert len(shots.comparison) % 2 == 0  # their order alternates


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_constitution_is_named_as_its_file(name: str) -> None:
    assert load(name).name == name


def test_load_accepts_a_path_and_puts_examples_in_hh_layout(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump(RAW))
    constitution = load(str(path))
    assert constitution == load(path)
    assert constitution.few_shot is not None
    assert constitution.few_shot.critique_revision == ["\n\n" + CHAIN]
    assert constitution.few_shot.cot[0].prompt == f"\n\n{COT['prompt']}\n\nAssistant:"
    assert constitution.few_shot.comparison[0].prompt == "p"
    assert load(write(tmp_path, yaml.safe_dump({k: v for k, v in RAW.items() if k != "few_shot"}))).few_shot is None


# Round trip

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(lambda t: t.strip())
TURN = TEXT.filter(lambda t: ":" not in t and "{}" not in t)
ID = st.from_regex(r"[A-Za-z0-9._-]+", fullmatch=True)


@st.composite
def raw_constitutions(draw: st.DrawFn) -> dict[str, Any]:
    ids = draw(st.lists(ID, min_size=2, max_size=5, unique=True))
    split = draw(st.integers(1, len(ids) - 1))
    tags = st.lists(TEXT, max_size=2)
    chain = "\n\n{}: ".join(["Human: {}", *["{}"] * 5])
    headings = ("Assistant", "CritiqueRequest", "Critique", "RevisionRequest", "Revision")
    turns = [draw(TURN) for _ in range(6)]
    slots = [turns[0], *[part for pair in zip(headings, turns[1:], strict=True) for part in pair]]
    prompt = st.one_of(
        TURN, st.tuples(TURN, TURN, TURN).map(lambda t: "Human: {}\n\nAssistant: {}\n\nHuman: {}".format(*t))
    )
    shots = {
        "critique_revision": [chain.format(*slots)] if draw(st.booleans()) else [],
        "comparison": [{"prompt": draw(prompt), "chosen": draw(TEXT), "rejected": draw(TEXT)}],
        "cot": [
            {"prompt": draw(prompt), "reasoning": draw(TEXT), "answer": draw(st.sampled_from("AB"))}
            | {option: draw(TEXT) for option in "ab"}
        ],
    }
    return {
        "name": draw(ID),
        "description": draw(TEXT),
        "license": draw(TEXT),
        "critique_revision": [
            {"id": i, "tags": draw(tags), "critique": draw(TEXT), "revision": draw(TEXT)} for i in ids[:split]
        ],
        "comparison": [{"id": i, "tags": draw(tags), "question": draw(TEXT)} for i in ids[split:]],
        "few_shot": draw(st.sampled_from([shots, None])),
    }


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=raw_constitutions())
def test_dump_then_load_gives_the_same(tmp_path: Path, raw: dict[str, Any]) -> None:
    constitution = Constitution.model_validate(raw)
    dump(constitution, tmp_path / "c.yaml")
    assert load(tmp_path / "c.yaml") == constitution
    assert [p.name for p in tmp_path.glob("c.*")] == ["c.yaml"]


@pytest.mark.parametrize("text", ["a\x85b", "a\n\x85b", "a\u2028b", "a\rb", "a: b # c", "- a", "a\tb\n  c"])
def test_texts_that_yaml_finds_hard(tmp_path: Path, text: str) -> None:
    raw = RAW | {"description": text}
    dump(Constitution.model_validate(raw), tmp_path / "c.yaml")
    assert load(tmp_path / "c.yaml").description == text


def test_dump_of_the_default_reads_as_blocks(tmp_path: Path) -> None:
    dump(load("default"), tmp_path / "c.yaml")
    assert load(tmp_path / "c.yaml") == load("default")
    assert "- |-\n    Human: My roommate" in (tmp_path / "c.yaml").read_text()


def test_a_dump_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "old")

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); choose"):
        dump(load("default"), path)
    assert path.read_text() == "old"


# Errors


def test_missing_file_names_the_shipped_ones(tmp_path: Path) -> None:
    assert fault("defualt") == f"no such constitution; give a YAML file or a shipped name: {', '.join(shipped())}"
    assert "shipped name: default" in fault(tmp_path / "none.yaml")
    assert "no such constitution" in fault(tmp_path)  # a folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\ndescription: [b\nlicense: c\n", "line 3: not valid YAML"),
        ("name: a\ncomparison: a: b\n", "line 2: not valid YAML (mapping values are not allowed here)"),
        ("name: a\nlicense: b\nname: c\n", "line 3: not valid YAML (key 'name' twice)"),
        ("name: a\x00b\n", "not valid YAML"),
        ("name: 2024-13-45\n", "not valid YAML (month must be in 1..12)"),
        ("name: &a [*b]\n", "line 1: not valid YAML"),
        ("", "this file is empty; begin with `name: ...`"),
        ("- a\n", "this file is a list"),
        ("just text\n", "this file is a str"),
    ],
)
def test_malformed_yaml(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in fault(write(tmp_path, text))


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: \xff\n")
    assert fault(path) == "not UTF-8 text (byte 6); save it as UTF-8"


def change(where: str, value: Any) -> str:
    """RAW with the value at a dotted path replaced (or, with None, deleted), as YAML."""
    raw = copy.deepcopy(RAW)
    *parents, last = [int(part) if part.isdigit() else part for part in where.split(".")]
    place: Any = raw
    for part in parents:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return yaml.safe_dump(raw)


@pytest.mark.parametrize(
    ("where", "value", "expected"),
    [
        ("comparisons", [], "comparisons: unknown key; delete it or correct its spelling"),
        ("comparison.1.questoin", "x", "comparison.1.questoin: unknown key"),
        ("few_shot.chains", [], "few_shot.chains: unknown key"),
        ("license", None, "license: missing; add this key"),
        ("comparison.1.question", None, "comparison.1.question: missing; add this key"),
        (
            "comparison.1.question",
            5,
            "comparison.1.question: Input should be a valid string, got '5'; change the value",
        ),
        ("comparison.1.question", "  ", "comparison.1.question: String should have at least 1 character"),
        ("critique_revision.0.critique", "", "critique_revision.0.critique: String should have at least 1 character"),
        ("critique_revision.0.revision", [], "critique_revision.0.revision: Input should be a valid string"),
        ("critique_revision.0.tags", "x", "critique_revision.0.tags: Input should be a valid list"),
        ("critique_revision.0.id", "sl a", "critique_revision.0.id: String should match pattern"),
        ("critique_revision", [], "critique_revision: List should have at least 1 item"),
        ("comparison", [], "comparison: List should have at least 1 item"),
        ("comparison", "x", "comparison: Input should be a valid list"),
        ("comparison.1.id", "rl-a", "duplicate id 'rl-a'; give each principle an id of its own"),
        ("comparison.1.id", "sl-a", "duplicate id 'sl-a'"),
        ("few_shot.comparison.0.chosen", None, "few_shot.comparison.0.chosen: missing"),
        (
            "few_shot.critique_revision.0",
            "How?",
            "few_shot.critique_revision.0: a worked example must begin with 'Human:'",
        ),
        (
            "few_shot.critique_revision.0",
            "Human: a\n\nAssistant: b",
            "few_shot.critique_revision.0: a worked chain needs a paragraph 'CritiqueRequest:'",
        ),
        ("few_shot.critique_revision.0", CHAIN + "\n\nHuman: g", "few_shot.critique_revision.0: turns must alternate"),
        ("few_shot.critique_revision.0", CHAIN.replace(": d", ":"), "few_shot.critique_revision.0: a turn is empty"),
        ("few_shot.cot.0.answer", "C", "few_shot.cot.0.answer: Input should be 'A' or 'B'"),
        ("few_shot.cot.0.reasoning", " ", "few_shot.cot.0.reasoning: String should have at least 1 character"),
        (
            "few_shot.cot.0.prompt",
            "Human: a\n\nAssistant: b",
            "few_shot.cot.0.prompt: a prompt must end with the human's turn",
        ),
        ("few_shot.comparison.0.prompt", "\n\nHuman: ", "few_shot.comparison.0.prompt: a prompt must end with"),
    ],
)
def test_faults_name_the_key(tmp_path: Path, where: str, value: Any, expected: str) -> None:
    assert expected in fault(write(tmp_path, change(where, value)))


def test_keys_that_are_not_text(tmp_path: Path) -> None:
    assert "Keys should be strings" in fault(write(tmp_path, yaml.safe_dump(RAW) + "1: x\n"))


def test_the_package_exports_what_it_promises() -> None:
    assert all(hasattr(constitutions, name) for name in constitutions.__all__)
