"""Importers of plain principles and of llm-swarm's JSON: what comes out, and what is wrong with a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from constitutions import dump, import_llm_swarm, import_principles, load
from constitutions.plain import TEMPLATES
from harness.errors import UserError
from harness.models import chat

Cai = Callable[..., tuple[int, str, str]]


def test_plain_principles_become_all_three_requests(own_data: Path, tmp_path: Path) -> None:
    found = import_principles(own_data / "principles" / "principles.txt")
    template = yaml.safe_load((TEMPLATES / "principles.yaml").read_text())
    assert [len(part) for part in (found.critique_revision, found.comparison)] == [4, 4]
    second = "Say plainly what you do not know."
    assert found.critique_revision[1].critique == template["critique"].replace("{principle}", second)
    assert found.critique_revision[1].revision == template["revision"].replace("{principle}", second)
    assert found.comparison[1].question == template["comparison"].replace("{principle}", second)
    dump(found, tmp_path / "mine.yaml")
    assert load(tmp_path / "mine.yaml") == found


def test_principles_of_a_csv_file_by_a_template_of_ones_own(own_data: Path, tmp_path: Path) -> None:
    own = tmp_path / "t.yaml"
    own.write_text('critique: "C {principle}"\nrevision: "R {principle}"\ncomparison: "Q {principle} {braces}"\n')
    found = import_principles(own_data / "principles" / "principles.csv", own)
    assert found.critique_revision[0].critique == "C Help nobody to hurt a person, or an animal."
    assert found.comparison[1].question == "Q Say plainly what you do not know. {braces}"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "# nothing\n", "a.txt: no principle in it"),
        ("a.txt", "Be kind.\nBe brief.\nbe kind.\n", "a.txt: line 3 says the same as line 1"),
        ("a.csv", "rule\nBe kind.\n", "a.csv: no column 'principle', its columns are rule"),
        ("a.csv", "principle,n\nBe kind.,1\n,2\n", "a.csv: row 2 has no principle"),
        ("a.csv", "", "a.csv: no column 'principle', its columns are none"),
        ("none.txt", None, "none.txt: file not found"),
    ],
)
def test_a_faulty_list_names_its_line(tmp_path: Path, name: str, text: str | None, expected: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=expected):
        import_principles(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('critique: "a"\nrevision: "{principle}"\ncomparison: "{principle}"\n', r"critique: \{principle\} is missing"),
        ('critique: "{principle}"\n', "revision: missing; add this key"),
        ('principle: "a"\n', "critique: missing|principle: unknown key"),
    ],
)
def test_a_faulty_template_names_its_key(own_data: Path, tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"t\.yaml: {expected}"):
        import_principles(own_data / "principles" / "principles.txt", tmp_path / "t.yaml")


def test_llm_swarm_keeps_pairs_and_worked_chains(own_data: Path, tmp_path: Path) -> None:
    file = own_data / "llm-swarm" / "constitution.json"
    raw, found = json.loads(file.read_text()), import_llm_swarm(file)
    assert [(p.critique, p.revision) for p in found.critique_revision] == [
        (pair["critic"], pair["revision"]) for pair in raw["constitutions"]
    ]
    assert [pair["critic"] in p.question for pair, p in zip(raw["constitutions"], found.comparison, strict=True)] == [
        True,
        True,
    ]
    assert found.few_shot is not None
    for chain, messages in zip(found.few_shot.critique_revision, raw["system_chat"], strict=True):
        assert chat.parse(chain, chain=True) == messages
        assert chain.count("CritiqueRequest: ") == chain.count("Revision: ") == 1
    dump(found, tmp_path / "swarm.yaml")
    assert load(tmp_path / "swarm.yaml") == found


PAIR = {"critic": "c", "revision": "r"}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([], "Input should be"),
        ({"system_chat": []}, "constitutions: missing"),
        ({"constitutions": [{"critic": "c"}]}, "constitutions.0.revision: missing"),
        ({"constitutions": [PAIR], "system_chat": [[{"role": "tool", "content": "x"}]]}, "system_chat.0.0.role: "),
        ({"constitutions": [PAIR], "system_chat": [[{"role": "user", "content": "x"}]]}, "system_chat.0: 1 messages"),
    ],
)
def test_faulty_json_names_its_key(tmp_path: Path, raw: Any, expected: str) -> None:
    (tmp_path / "c.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=rf"c\.json: {expected}"):
        import_llm_swarm(tmp_path / "c.json")


def test_a_heading_within_a_message_is_text(tmp_path: Path) -> None:
    turns = ["q", "a", "c", "one\n\nRevision: two", "r", "three"]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    (tmp_path / "c.json").write_text(json.dumps({"constitutions": [PAIR], "system_chat": [messages]}))
    shots = import_llm_swarm(tmp_path / "c.json").few_shot
    assert shots is not None
    assert len(chat.parse(shots.critique_revision[0], chain=True)) == 6


def test_the_command_line_imports_by_the_kind_of_file(own_data: Path, tmp_path: Path, cai: Cai) -> None:
    for name in ("principles/principles.txt", "principles/principles.csv", "llm-swarm/constitution.json"):
        out = tmp_path / f"{Path(name).name}.yaml"
        code, said, _ = cai("constitutions", "import", own_data / name, "--out", out)
        assert code == 0
        assert "comparison questions" in said
        assert load(out).comparison
    (tmp_path / "x.doc").write_text("")
    code, _, said = cai("constitutions", "import", tmp_path / "x.doc", "--out", tmp_path / "x.yaml")
    assert code == 2
    assert "x.doc: of no known kind; give a .txt, .csv or .json file" in said


def test_a_printed_template_can_be_handed_in(own_data: Path, tmp_path: Path, cai: Cai) -> None:
    for name, source in (("principles", "principles/principles.txt"), ("critiques", "llm-swarm/constitution.json")):
        _, text, _ = cai("constitutions", "template", name)
        (tmp_path / "t.yaml").write_text(text.replace('comparison: "', 'comparison: "MINE '))
        out = tmp_path / f"{name}.yaml"
        code, _, said = cai(
            "constitutions", "import", own_data / source, "--template", tmp_path / "t.yaml", "--out", out
        )
        assert (code, said) == (0, "")
        assert load(out).comparison[0].question.startswith("MINE ")
    assert "no template 'x'; choose from critiques, principles" in cai("constitutions", "template", "x")[2]
