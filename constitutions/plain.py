"""Constitutions out of other projects' files: plain principles, and the JSON of Hugging Face's llm-swarm.

What such a file lacks is written by a template, a YAML file of one sentence each that the user can print, edit and hand
in (`templates/`): of a plain principle all three requests, of an llm-swarm pair the comparison question.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from constitutions.schema import Constitution, Text
from harness import files
from harness.errors import UserError, explain
from harness.models import chat, inert

TEMPLATES = Path(__file__).parent / "templates"
_HEADINGS = ("CritiqueRequest", "Critique", "RevisionRequest", "Revision")
_FORGED = re.compile(rf"\n\n(?:Human|Assistant|{'|'.join(_HEADINGS)}):")


class PrincipleTemplate(BaseModel):
    """What is asked about a plain principle, which stands at {principle}."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    critique: Text
    revision: Text
    comparison: Text

    @field_validator("*")
    @classmethod
    def _holds_it(cls, text: str) -> str:
        return _with(text, "{principle}")


class CritiqueTemplate(BaseModel):
    """The comparison question for a critique request, which stands at {critique}."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    comparison: Text

    @field_validator("*")
    @classmethod
    def _holds_it(cls, text: str) -> str:
        return _with(text, "{critique}")


def _with(text: str, mark: str) -> str:
    if mark not in text:
        raise ValueError(f"{mark} is missing; write it where the text is to stand")
    return text


def import_principles(file: Path, template: Path | None = None) -> Constitution:
    """A text file with a principle a line (`#` begins a comment), or a CSV file with a column `principle`.

    Raises UserError naming file and line, or the template and its key.
    """
    asks = files.read_model(template or TEMPLATES / "principles.yaml", PrincipleTemplate, "a template")
    principles = _rows_of_csv(file) if file.suffix == ".csv" else _lines(file)
    seen: dict[str, str] = {}
    for where, principle in principles:
        if principle.lower() in seen:
            raise UserError(f"{file}: {where} says the same as {seen[principle.lower()]}; delete one")
        seen[principle.lower()] = where
    if not principles:
        raise UserError(f"{file}: no principle in it; write one a line")
    made = [
        {part: text.replace("{principle}", principle) for part, text in asks.model_dump().items()}
        for _, principle in principles
    ]
    return _constitution(
        file,
        f"{len(made)} principles of {file.name}, made into requests by a template.",
        critique_revision=[
            {"id": f"sl-{n}", "critique": one["critique"], "revision": one["revision"]} for n, one in enumerate(made, 1)
        ],
        comparison=[{"id": f"rl-{n}", "question": one["comparison"]} for n, one in enumerate(made, 1)],
    )


def _lines(file: Path) -> list[tuple[str, str]]:
    lines = [(f"line {n}", line.strip()) for n, line in enumerate(files.read_text(file).splitlines(), start=1)]
    return [(where, line) for where, line in lines if line and not line.startswith("#")]


def _rows_of_csv(file: Path) -> list[tuple[str, str]]:
    table = files.read_csv(file)
    if "principle" not in table:
        there = ", ".join(map(str, table.columns)) or "none"
        raise UserError(f"{file}: no column 'principle', its columns are {there}; name the one with the principles so")
    found = [(f"row {n}", " ".join(text.split())) for n, text in enumerate(table["principle"], start=1)]
    empty = next((where for where, text in found if not text), None)
    if empty is not None:
        raise UserError(f"{file}: {empty} has no principle; write it or delete the row")
    return found


# ---------------------------------------------------------------- llm-swarm


class _Pair(BaseModel):
    critic: Text
    revision: Text


class _Message(BaseModel):
    role: Literal["user", "assistant"]
    content: Text


class _Swarm(BaseModel):
    constitutions: list[_Pair] = Field(min_length=1)
    system_chat: list[list[_Message]] = []


def import_llm_swarm(file: Path, template: Path | None = None) -> Constitution:
    """The JSON of llm-swarm: pairs {critic, revision}; under `system_chat` worked chains of six messages or more.

    It has no comparison questions: each critique request becomes one by a template. Raises UserError naming file and
    key.
    """
    asks = files.read_model(template or TEMPLATES / "critiques.yaml", CritiqueTemplate, "a template")
    try:
        found = _Swarm.model_validate(files.read_json(file))
    except ValidationError as error:
        raise UserError(f"{file}: {explain(error)}") from error
    return _constitution(
        file,
        f"{len(found.constitutions)} critique-revision pairs of {file.name}; comparison questions by a template.",
        critique_revision=[
            {"id": f"sl-{n}", "critique": pair.critic, "revision": pair.revision}
            for n, pair in enumerate(found.constitutions, start=1)
        ],
        comparison=[
            {"id": f"rl-{n}", "question": asks.comparison.replace("{critique}", pair.critic)}
            for n, pair in enumerate(found.constitutions, start=1)
        ],
        few_shot={"critique_revision": [_chain(file, place, turns) for place, turns in enumerate(found.system_chat)]},
    )


def _chain(file: Path, place: int, messages: list[_Message]) -> str:
    """A worked chain in the schema's words: the last four messages are critique and revision, each with its request."""
    roles = [message.role for message in messages]
    if len(messages) < 6 or roles != ["user", "assistant"] * (len(messages) // 2):
        raise UserError(
            f"{file}: system_chat.{place}: {len(messages)} messages that are no worked chain; write question, answer, "
            "critique request, critique, revision request, revision, by user and assistant in turn"
        )
    asked = chat.to_hh([{"role": m.role, "content": m.content} for m in messages[:-4]])
    steps = zip(_HEADINGS, messages[-4:], strict=True)
    return (asked + "".join(f"\n\n{name}: {inert.break_up(m.content, _FORGED)}" for name, m in steps)).strip()


def _constitution(file: Path, description: str, **parts: Any) -> Constitution:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-") or "imported"
    about = {
        "name": name,
        "description": description,
        "license": f"that of {file.name}; check it before you pass it on",
    }
    try:
        return Constitution.model_validate(about | parts)
    except ValidationError as error:
        raise UserError(f"{file}: {explain(error)}") from error
