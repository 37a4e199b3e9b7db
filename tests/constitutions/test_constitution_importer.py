"""The importer, on own files and the paper's published ones, and the shipped text's independence of the latter."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from constitutions import dump, import_paper, load, shipped
from harness import compare
from harness.errors import UserError
from harness.models import chat
from pipelines.ai_feedback import few_shot

FILES = (
    "CritiqueRevisionInstructions.json",
    "RLMadisonInstructions.json",
    "CritiqueRevisionFewShotPrompts.json",
    "RLMadisonFewShotPrompts.json",
    "RLMadisonPrecogFewShotPrompts.json",
)
MARKERS = ("CritiqueRequest:", "Critique:", "RevisionRequest:", "Revision:", "Options:")


@pytest.fixture
def prompts(outside_data: Path) -> Path:
    return outside_data / "paper" / "prompts"


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_counts_of_the_published_prompts(reference_data: Path) -> None:
    paper = import_paper(reference_data / "paper" / "prompts")
    assert len(paper.critique_revision) == len(paper.comparison) == 16
    assert paper.few_shot is not None
    assert len(paper.few_shot.critique_revision) == 5
    assert len(paper.few_shot.comparison) == 5
    assert len(paper.few_shot.cot) == 6


def test_texts_are_plain_requests_and_nothing_else_is_lost(prompts: Path) -> None:
    paper = import_paper(prompts)
    pairs = read(prompts / "CritiqueRevisionInstructions.json")
    assert [principle.id for principle in paper.critique_revision] == list(pairs)
    for principle in paper.critique_revision:
        source = pairs[principle.id]
        assert source["prompt"][0] == f"\n\nCritiqueRequest: {principle.critique}\n\nCritique:"
        assert source["edit_request"] == f"\n\nRevisionRequest: {principle.revision}\n\nRevision:"
    for principle, text in zip(paper.comparison, read(prompts / "RLMadisonInstructions.json"), strict=True):
        assert text == f"\n{principle.question} Options:"
    texts = [t for p in paper.critique_revision for t in (p.critique, p.revision)]
    assert not [t for t in texts + [p.question for p in paper.comparison] if any(m in t for m in MARKERS)]


def test_few_shot_prompts_become_alternating_turns(prompts: Path) -> None:
    shots = import_paper(prompts).few_shot
    assert shots is not None
    for chain, text in zip(shots.critique_revision, read(prompts / "CritiqueRevisionFewShotPrompts.json"), strict=True):
        assert text in (chain, chain + "\n\nHuman:")
        assert chat.parse(chain, chain=True)[-1]["role"] == "assistant"
    for example, item in zip(shots.comparison, read(prompts / "RLMadisonFewShotPrompts.json"), strict=True):
        assert item["prompt"] == f"\n\nHuman: {example.prompt}\n\nAssistant:"
        assert (example.chosen, example.rejected) == (item["corrects"][0], item["incorrects"][0])
    for example, item in zip(shots.cot, read(prompts / "RLMadisonPrecogFewShotPrompts.json"), strict=True):
        assert item["prompt"].endswith(f"So the answer is: ({example.answer})")
        assert chat.parse(example.prompt)[-1]["role"] == "user"
        # All of its words are there, in the same order, but for what the pipeline puts around them.
        said = " ".join(turn["content"] for turn in chat.parse(example.prompt))
        kept = f"{said} {{}} [[[{example.a}]]] [[[{example.b}]]] {example.reasoning} ({example.answer})".split()
        frame = {"Human:", "H:", "A:", "Assistant:"}
        rest = iter(item["prompt"].split())
        assert all(word in rest for word in kept if word not in frame)
        assert example.reasoning in item["prompt"]


def test_an_import_survives_dump_and_load(prompts: Path, tmp_path: Path) -> None:
    paper = import_paper(prompts)
    dump(paper, tmp_path / "paper.yaml")
    assert load(tmp_path / "paper.yaml") == paper


@pytest.fixture
def folder(own_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(own_data / "paper" / "prompts", tmp_path / "prompts"))


def fault(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        import_paper(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    assert fault(tmp_path / "none").startswith(f"{tmp_path / 'none'}: folder not found; give the folder")


@pytest.mark.parametrize("name", FILES)
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert fault(folder) == f"{folder / name}: file not found; copy it from the paper's published prompts"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("text", "expected"), [("{", "not valid JSON"), ("5", "Input should be"), ('[{"a": 1}]', "")])
def test_malformed_file(folder: Path, name: str, text: str, expected: str) -> None:
    (folder / name).write_text(text)
    message = fault(folder)
    assert message.startswith(f"{folder / name}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (FILES[0], {"a": {"prompt": ["x"]}}, "a.edit_request: missing; add this key"),
        (FILES[0], {"a": {"prompt": [], "edit_request": "x"}}, "a.prompt: List should have at least 1 item"),
        (FILES[1], ["x", 2], "1: Input should be a valid string"),
        (FILES[3], [{"prompt": "p", "corrects": ["x"], "incorrects": []}], "0.incorrects: List should have at least"),
        (FILES[4], [{}], "0.prompt: missing"),
        (FILES[4], [{"prompt": "Human: no options"}], "0.prompt: not a worked comparison as published"),
    ],
)
def test_wrong_shape_names_file_and_key(folder: Path, name: str, value: Any, expected: str) -> None:
    (folder / name).write_text(json.dumps(value))
    assert fault(folder).startswith(f"{folder / name}: {expected}")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (FILES[0], {}, "critique_revision: List should have at least 1 item"),
        (FILES[1], ["\n Options:"], "comparison.0.question: String should have at least 1 character"),
    ],
)
def test_content_that_makes_no_constitution(folder: Path, name: str, value: Any, expected: str) -> None:
    (folder / name).write_text(json.dumps(value))
    message = fault(folder)
    assert message.startswith(f"{folder / name}: ")
    assert expected in message


# The shipped text is this project's own


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


# What the pipeline itself puts around a comparison, and worked examples must repeat word for word: not prose.
FRAME = "Below is a conversation between a human and an assistant."
FIXED = re.compile(re.escape(FRAME) + r"|So the answer is: \([AB]\)")


def sentences(text: str) -> list[str]:
    parts = re.split(r"(?<=[.?!])\s+|\n+|\b(?:Human|Assistant|H|A|\w*Request|Critique|Revision):", FIXED.sub("", text))
    return [words(part) for part in parts if len(words(part).split()) >= 3]


def shared_with_paper(text: str, source: str) -> list[str]:
    """Sentences of `text`, and runs of seven words, that stand in `source`."""
    tokens = words(FIXED.sub("", text)).split()
    runs = [" ".join(tokens[i : i + 7]) for i in range(len(tokens) - 6)]
    return [piece for piece in sentences(text) + runs if f" {piece} " in f" {source} "]


def test_worked_comparisons_ask_as_the_pipeline_does(prompts: Path) -> None:
    """Examples have the form of the question that follows them, the paper's own ones too."""
    rule = load("default").comparison[0].question
    shape = re.sub("<.>", ".+", re.escape(compare.text("<s>", rule, "<a>", "<b>")))
    imported = import_paper(prompts).model_copy(update={"comparison": load("default").comparison})
    for constitution in (load("default"), imported):
        for cot in (False, True):
            turns = few_shot(constitution, cot=cot, only=0)
            assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
            for asked, answer in zip(turns[::2], turns[1::2], strict=True):
                assert re.fullmatch(shape, asked["content"], re.DOTALL), asked
                assert re.search(r"[Tt]he answer is: \([AB]\)$", answer["content"])
                assert answer["content"].startswith("Let's think step by step:") == cot


@pytest.mark.parametrize("name", shipped())
def test_no_sentence_of_a_shipped_constitution_is_the_papers(reference_data: Path, name: str) -> None:
    published = reference_data / "paper" / "prompts"
    source = " | ".join(words(text) for file in FILES for text in strings(read(published / file)))
    texts = list(strings(load(name).model_dump()))
    assert not [piece for text in texts for piece in shared_with_paper(text, source)]
    # The check can fail: the paper's own texts are found.
    paper = list(strings([p.model_dump() for p in import_paper(published).comparison]))
    assert all(shared_with_paper(text, source) for text in paper if len(text.split()) > 6)
