"""The paper's published prompts (five JSON files in one folder) as a constitution.

The files are the authors' and are not shipped: the user points at a copy. Markers such as "CritiqueRequest:" and
"Options:" are stripped, and reasoned comparisons are taken apart, since the pipelines ask in words of their own and
worked examples must have the form of the question that follows them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from constitutions.schema import Constitution
from harness import files
from harness.errors import UserError, explain
from harness.models import chat

T = TypeVar("T")

_PAIRS = "CritiqueRevisionInstructions.json"
_QUESTIONS = "RLMadisonInstructions.json"
_CHAINS = "CritiqueRevisionFewShotPrompts.json"
_COMPARISONS = "RLMadisonFewShotPrompts.json"
_REASONED = "RLMadisonPrecogFewShotPrompts.json"
_SOURCE = {  # the file behind each part of a constitution
    ("critique_revision",): _PAIRS,
    ("comparison",): _QUESTIONS,
    ("few_shot", "critique_revision"): _CHAINS,
    ("few_shot", "comparison"): _COMPARISONS,
    ("few_shot", "cot"): _REASONED,
}


class _Pair(BaseModel):
    prompt: list[str] = Field(min_length=1, max_length=1)
    edit_request: str


class _Comparison(BaseModel):
    prompt: str
    corrects: list[str] = Field(min_length=1)
    incorrects: list[str] = Field(min_length=1)


class _Reasoned(BaseModel):
    prompt: str


def import_paper(folder: Path) -> Constitution:
    """The paper's 16 critique-revision pairs, 16 comparison questions and few-shot prompts.

    Raises UserError naming the file that is missing or malformed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: folder not found; give the folder that holds the paper's prompts as JSON")
    pairs = _read(folder / _PAIRS, TypeAdapter(dict[str, _Pair]))
    questions = _read(folder / _QUESTIONS, TypeAdapter(list[str]))
    chains = _read(folder / _CHAINS, TypeAdapter(list[str]))
    comparisons = _read(folder / _COMPARISONS, TypeAdapter(list[_Comparison]))
    reasoned = _read(folder / _REASONED, TypeAdapter(list[_Reasoned]))
    raw = {
        "name": "paper",
        "description": "The principles and few-shot prompts published with Constitutional AI (arXiv:2212.08073).",
        "license": "that of the published files; check it before you pass them on",
        "critique_revision": [
            {
                "id": name,
                "critique": _strip(pair.prompt[0], "CritiqueRequest:", "Critique:"),
                "revision": _strip(pair.edit_request, "RevisionRequest:", "Revision:"),
            }
            for name, pair in pairs.items()
        ],
        "comparison": [
            {"id": f"comparison{place}", "question": _strip(text, "", "Options:")}
            for place, text in enumerate(questions)
        ],
        "few_shot": {
            "critique_revision": [_strip(text, "", "\n\nHuman:") for text in chains],
            "comparison": [
                {"prompt": chat.normalise(example.prompt), "chosen": chosen, "rejected": rejected}
                for example in comparisons
                for chosen in example.corrects
                for rejected in example.incorrects
            ],
            "cot": [_worked(example.prompt, folder / _REASONED, row) for row, example in enumerate(reasoned)],
        },
    }
    try:
        return Constitution.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{_culprit(folder, error)}: {explain(error)}") from error


def _culprit(folder: Path, error: ValidationError) -> Path:
    """The file whose content the first fault is about; the folder where it is about several (an id used twice)."""
    place = error.errors()[0]["loc"]
    return next((folder / name for part, name in _SOURCE.items() if place[: len(part)] == part), folder)


def _read(path: Path, shape: TypeAdapter[T]) -> T:
    """The content of one JSON file, checked against its shape."""
    if not path.is_file():
        raise UserError(f"{path}: file not found; copy it from the paper's published prompts")
    try:
        return shape.validate_python(files.read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}") from error


def _strip(text: str, before: str, after: str) -> str:
    return text.strip().removeprefix(before).removesuffix(after).strip()


_EXAMPLE = re.compile(  # a reasoned comparison; the last human turn states its answer
    r"\s*Human: .*?\n\n(?P<prompt>H: .*?)\n\n\{\}\s*?\n ?\(A\) (?P<a>.*?)\n ?\(B\) (?P<b>.*?)"
    r"\n\nAssistant: (?P<reasoning>.*?)\n\nHuman:\s*So the answer is: \((?P<answer>[AB])\)\.?\s*",
    re.DOTALL,
)
_SPEAKER = re.compile(r"(?:^|\n\n)(H|A):\s*")


def _worked(text: str, file: Path, row: int) -> dict[str, str]:
    """The parts of a reasoned comparison, without the words that the pipeline puts around them itself."""
    found = _EXAMPLE.fullmatch(text)
    if found is None:
        raise UserError(f"{file}: {row}.prompt: not a worked comparison as published; fetch the file again")
    prompt = _SPEAKER.sub(lambda m: f"\n\n{'Human' if m[1] == 'H' else 'Assistant'}: ", found["prompt"])
    return {
        "prompt": f"{prompt}\n\nAssistant:",
        "a": _unwrapped(found["a"]),
        "b": _unwrapped(found["b"]),
        "reasoning": found["reasoning"].removeprefix("Let's think step by step:").strip(),
        "answer": found["answer"],
    }


def _unwrapped(option: str) -> str:
    return option.strip().removeprefix("[[[").removesuffix("]]]").strip()
