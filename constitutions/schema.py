"""What a constitution is: principles for critique and revision, questions for AI feedback, worked examples.

The paper has 16 of each and draws one at random for every step or comparison (sections 3.1 and 4.1).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from harness.models import chat

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$")]


def _prompt(text: str) -> str:
    """`text` as `chat.normalise` gives it: plain for one human turn, HH layout for a conversation."""
    text = text.strip()
    normal = chat.normalise("\n\n" + text if text.startswith("Human:") else text)
    if not normal.removesuffix("\n\nAssistant:").strip() or chat.parse(normal)[-1]["role"] != "user":
        raise ValueError("a prompt must end with the human's turn; end it there")
    return normal


Prompt = Annotated[str, AfterValidator(_prompt)]


def _dialogue(text: str) -> str:
    """`text` in HH layout, "\\n\\nHuman: ..." first; human and assistant turns alternate and the assistant ends."""
    text = "\n\n" + text.strip()
    if not text.startswith("\n\nHuman:"):
        raise ValueError("a worked example must begin with 'Human:'; put the human's turn first")
    messages = chat.parse(text, chain=True)
    if not all(message["content"] for message in messages):
        raise ValueError("a turn is empty; write it or delete its heading")
    if [m["role"] for m in messages] != ["user", "assistant"] * (len(messages) // 2):
        raise ValueError("turns must alternate and end with the assistant's; check the order of the headings")
    return text


def _chain(text: str) -> str:
    """A worked chain: a conversation, then at least one critique and revision, each asked for."""
    text = _dialogue(text)
    for heading in ("CritiqueRequest", "Critique", "RevisionRequest", "Revision"):
        if f"\n\n{heading}:" not in text:
            raise ValueError(f"a worked chain needs a paragraph '{heading}:'; add it")
    return text


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CritiquePrinciple(_Part):
    """One request for a critique of the last answer, and the request for the revision that follows it."""

    id: Id
    tags: list[Text] = []
    critique: Text
    revision: Text


class ComparisonPrinciple(_Part):
    """One question that asks which of two answers is better."""

    id: Id
    tags: list[Text] = []
    question: Text


class ComparisonExample(_Part):
    """A worked comparison. `prompt` is plain text, or HH layout for several turns."""

    prompt: Prompt
    chosen: Text
    rejected: Text


class CotExample(_Part):
    """A worked comparison with the reasoning that leads to its answer and names the options as (A) and (B)."""

    prompt: Prompt
    a: Text
    b: Text
    reasoning: Text
    answer: Literal["A", "B"]


class FewShot(_Part):
    """Worked examples that precede a request; a small or untuned model needs them."""

    critique_revision: list[Annotated[str, AfterValidator(_chain)]] = []
    comparison: list[ComparisonExample] = []
    cot: list[CotExample] = []


class Constitution(_Part):
    """Principles by which a model criticises, revises and compares answers."""

    name: Id
    description: Text
    license: Text
    critique_revision: list[CritiquePrinciple] = Field(min_length=1)
    comparison: list[ComparisonPrinciple] = Field(min_length=1)
    few_shot: FewShot | None = None

    @model_validator(mode="after")
    def _ids_unique(self) -> Constitution:
        seen: set[str] = set()
        for name in [p.id for p in self.critique_revision] + [p.id for p in self.comparison]:
            if name in seen:
                raise ValueError(f"duplicate id {name!r}; give each principle an id of its own")
            seen.add(name)
        return self


class Excerpt(Constitution):
    """What one kind of stage reads of a constitution, so that its results do not depend on the rest."""

    description: str = ""
    license: str = ""
    critique_revision: list[CritiquePrinciple] = []
    comparison: list[ComparisonPrinciple] = []

    @classmethod
    def of(cls, constitution: Constitution, principles: str, examples: str) -> dict[str, Any]:
        """The principles of one kind ("critique_revision", "comparison") and worked examples of one kind, as JSON."""
        raw = constitution.model_dump(mode="json")
        shots = raw["few_shot"] and {examples: raw["few_shot"][examples]}
        kept = [{k: v for k, v in principle.items() if k != "tags"} for principle in raw[principles]]
        return {"name": raw["name"], principles: kept, "few_shot": shots}
