"""What a run is given: models by role, human comparisons or a function in their place, prompts."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from harness import scoring
from harness.errors import UserError
from harness.experiment.section import Section
from harness.models import server
from harness.models.open import Engine

JUDGES = ("pm", "scorer", "model", "server", "words")  # with a name after the colon


class Models(Section):
    """Which models play which role. A name is `embedded`, a folder or a hub id; feedback may be behind a server, or a
    known function."""

    base: str = "embedded"
    """The pretrained model that every arm starts from: `embedded` (SmolLM2-135M-Instruct out of a package wheel), a
    folder or a hub id. A list is a study over base models."""
    bases: tuple[str, ...] | None = Field(None, min_length=2)
    """The same list, under a name of its own."""
    feedback: str | None = None
    """Who gives the AI labels: a folder or hub id, `server:URL#MODEL`, or `pm:NAME` or `scorer:FILE.py`, whose
    label is the sigmoid of the difference of two scores. `null`: the base model."""
    feedback_cot: str = "arm:helpful_only"
    """Who gives the labels with chain of thought: as `feedback`, or `arm:NAME`, an arm that is trained before."""
    judge: tuple[str, ...] = Field(("gold_pm",), min_length=1)
    """Who judges: `gold_pm`, `feedback`, `pm:NAME`, `scorer:FILE.py`, `model:NAME`, `server:URL#MODEL` or
    `words:URL#MODEL`. Of several, the first decides and the others stand beside it."""
    engine: Engine = "auto"
    """What samples and labels; `auto` is vLLM where it is installed and there is a GPU."""
    trust_remote_code: bool = False
    """`true` runs Python code that comes with a model. Read that code first."""

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("base"), list | tuple):
            if given.get("bases") is not None:
                raise ValueError("base and bases both list models; give one list")
            rest = {key: value for key, value in given.items() if key != "base"}
            return rest | {"bases": given["base"]}
        return given

    @field_validator("base")
    @classmethod
    def _trainable(cls, name: str) -> str:
        if server.is_server(name):
            raise ValueError(f"{name}: a model behind a server cannot be trained; name a folder or a hub id")
        return name

    @field_validator("bases")
    @classmethod
    def _all_trainable(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) < len(names):
            raise ValueError("a base model is named twice; each is a run of its own")
        return names if names is None else tuple(map(cls._trainable, names))

    @field_validator("judge", mode="before")
    @classmethod
    def _several(cls, named: Any) -> Any:
        return (named,) if isinstance(named, str) else named

    @field_validator("judge")
    @classmethod
    def _judges(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            kind, _, value = name.partition(":")
            if name not in ("gold_pm", "feedback") and (kind not in JUDGES or not value):
                forms = ", ".join(f"{kind}:..." for kind in JUDGES)
                raise ValueError(f"unknown judge {name!r}; choose gold_pm, feedback, {forms}")
            if kind in ("server", "words"):
                try:
                    server.address(f"server:{value}")
                except UserError as error:
                    raise ValueError(str(error)) from error
        if len(set(names)) < len(names):
            raise ValueError("a judge is named twice")
        return names

    @field_validator("feedback", "feedback_cot")
    @classmethod
    def _address(cls, name: str | None) -> str | None:
        if name is not None and server.is_server(name):
            try:
                server.address(name)
            except UserError as error:
                raise ValueError(str(error)) from error
        return name

    @field_validator("feedback")
    @classmethod
    def _scorer(cls, name: str | None) -> str | None:
        return name if name is None else _named_scorer(name)

    @field_validator("feedback_cot")
    @classmethod
    def _reasons(cls, name: str) -> str:
        if scoring.is_scorer(name):
            raise ValueError(f"{name}: only a language model can reason; name a model, or leave out arm rl_cai_cot")
        return name


def _named_scorer(name: str) -> str:
    """`name`, unless it is a scorer's that names nothing. Raises ValueError."""
    if scoring.is_scorer(name) and not name.partition(":")[2]:
        raise ValueError(f"{name} names nothing; give pm:NAME or scorer:FILE.py")
    return name


class Annotator(Section):
    """Who made the comparisons that stand for people's, by kind: `human` (the data's own labels), `pm:NAME`
    or `scorer:FILE.py`, which label the data's pairs anew (as in Gao et al. 2022). One name alone is for both kinds."""

    harmless: str = "human"
    """For comparisons of harm: `human` (the data's own labels), `pm:NAME` or `scorer:FILE.py`, which label the
    pairs anew."""
    helpful: str = "human"
    """The same for comparisons of helpfulness."""
    flip: float = Field(0.0, ge=0, le=0.5)
    """Share of a function's labels that is turned at random; 0.5 is a coin."""

    @model_validator(mode="before")
    @classmethod
    def _for_both(cls, given: Any) -> Any:
        return {"harmless": given, "helpful": given} if isinstance(given, str) else given

    @field_validator("harmless", "helpful")
    @classmethod
    def _known(cls, name: str) -> str:
        if name != "human" and not scoring.is_scorer(name):
            raise ValueError(f"unknown annotator {name!r}; choose human, pm:NAME or scorer:FILE.py")
        return _named_scorer(name)

    def functions(self) -> dict[str, str]:
        """Names of those that are not people, by kind of comparisons."""
        return {kind: name for kind in ("harmless", "helpful") if (name := getattr(self, kind)) != "human"}

    @model_validator(mode="after")
    def _every_key_counts(self) -> Self:
        if self.flip and not self.functions():
            raise ValueError("flip turns the labels of pm:NAME or scorer:FILE.py, and people made all; leave it out")
        return self


class Source(Section):
    """A table: a file (JSONL, JSON, Parquet, CSV), a folder with train and test files, or a hub id. A name alone is its
    source."""

    source: str
    """A file (JSONL, JSON, Parquet or CSV), a folder with train and test files, or a hub id."""
    subset: str | None = None
    """The configuration of a data set on the hub that has several."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: Any) -> Any:
        return {"source": given} if isinstance(given, str) else given


class Pairs(Source):
    """Preferences in TRL's format, standard or conversational, or in that of PKU-SafeRLHF; the columns, where they are
    called otherwise."""

    prompt: str | None = None
    """The column of prompts. `null`: `prompt`, or the beginning that both answers share."""
    chosen: str = "chosen"
    """The column of the better answers."""
    rejected: str = "rejected"
    """The column of the worse answers."""
    p: str | None = None
    """The column of soft labels, P(chosen is better). `null`: `p`, where there is one."""
    train: str = "train"
    """The split to train on."""
    test: str | None = None
    """The split to hold out. `null`: `test`, where there is one, or else a fifth of the prompts."""


class Prompts(Source):
    """Prompts from a column of texts or messages; of a conversation with its answer, the first human turn."""

    column: str | None = None
    """The column of texts or conversations. `null`: `prompt`, or `transcript`."""
    split: str = "train"
    """The split to read."""


class Data(Section):
    """Where prompts and preferences come from. Without any, the shipped set, which is a stand-in for human labels."""

    hh_rlhf: str | None = None
    """A folder or hub id in HH-RLHF's layout, with `harmless-base/` and `helpful-base/`."""
    helpful: str | None = None
    """A folder with helpfulness comparisons in the same layout, where `hh_rlhf` has none."""
    harmless_pairs: Pairs | None = None
    """Comparisons of harm in TRL's or PKU-SafeRLHF's format, in place of `hh_rlhf`'s."""
    helpful_pairs: Pairs | None = None
    """The same for comparisons of helpfulness."""
    redteam_prompts: Prompts | None = None
    """Red-team prompts, in place of those of the comparisons."""
    helpful_prompts: Prompts | None = None
    """Helpfulness prompts, in place of those of the comparisons."""
    harm_ratings: str | None = None
    """People's ratings in red-team-attempts' layout, for suite `harmfulness`."""
    hhh: str | None = None
    """The HHH comparisons, for suite `hhh`."""

    @model_validator(mode="after")
    def _every_key_counts(self) -> Self:
        if self.helpful_pairs is not None and self.helpful is not None:
            raise ValueError("helpful and helpful_pairs both give helpfulness comparisons; leave one out")
        if self.helpful_pairs is not None and self.harmless_pairs is not None and self.hh_rlhf is not None:
            raise ValueError("hh_rlhf is not read beside harmless_pairs and helpful_pairs; leave it out")
        return self
