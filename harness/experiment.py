"""Experiment: one YAML file says what a run is. Every key has a default; an unknown key is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from harness import files
from harness.errors import UserError
from harness.models import server

ARMS = ("pretrained", "helpful_only", "hh_rlhf", "sl_cai", "rl_cai", "rl_cai_cot")
FIRST_SUITES = ("elo", "pm_score", "evasiveness", "goodharting")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Models(_Section):
    """Which models play which role. A name is 'embedded', a folder or a hub id; feedback may be behind a server."""

    base: str = "embedded"
    feedback: str | None = None  # None: the base model, as in the paper; server:URL#MODEL: `vllm serve MODEL`
    # For labels with chain of thought: as feedback, or arm:NAME, an arm that is trained before; as in the paper.
    feedback_cot: str = "arm:helpful_only"
    judge: Literal["gold_pm", "feedback"] = "gold_pm"
    trust_remote_code: bool = False  # True: run Python code that comes with a model; read that code first

    @field_validator("base")
    @classmethod
    def _trainable(cls, name: str) -> str:
        if server.is_server(name):
            raise ValueError(f"{name}: a model behind a server cannot be trained; name a folder or a hub id")
        return name

    @field_validator("feedback", "feedback_cot")
    @classmethod
    def _address(cls, name: str | None) -> str | None:
        if name is not None and server.is_server(name):
            try:
                server.address(name)
            except UserError as error:
                raise ValueError(str(error)) from error
        return name


class Data(_Section):
    """Where prompts and preferences come from; None means the shipped set, a stand-in for human labels."""

    hh_rlhf: str | None = None  # folder or hub id in HH-RLHF layout: harmless-base/, helpful-base/
    helpful: str | None = None  # folder with train and test in the same layout, where hh_rlhf has no helpful-base
    redteam_prompts: str | None = None  # JSONL or Parquet with a column prompt
    helpful_prompts: str | None = None
    harm_ratings: str | None = None  # red-team-attempts layout, for the harmfulness suite
    hhh: str | None = None  # the HHH comparisons, for the hhh suite


class Scale(_Section):
    """How much of everything."""

    redteam_prompts: int = Field(24, ge=2)
    helpful_prompts: int = Field(24, ge=2)
    heldout_prompts: int = Field(16, ge=2, description="of each kind, for the suites")
    samples_per_prompt: int = Field(1, ge=1)
    preference_pairs: int = Field(32, ge=4, description="human pairs of each kind, for the arms")
    gold_pairs: int = Field(32, ge=4, description="pairs of each kind that only the gold PMs see")
    max_new_tokens: int = Field(32, ge=1)
    max_prompt_tokens: int = Field(128, ge=8, description="longer prompts are left out")
    batch_size: int = Field(32, ge=1, description="for generation and scoring")


class Lora(_Section):
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    top_layers: int | None = Field(None, ge=1)


class Sft(_Section):
    """SL-CAI's fine-tuning: revisions of red-team answers mixed with helpful-only answers (paper, section 3.1)."""

    epochs: float = Field(1.0, gt=0)
    learning_rate: float = Field(2e-4, gt=0)
    batch_size: int = Field(8, ge=1, description="sequences in an optimiser step")
    micro_batch_size: int | None = Field(None, ge=1, description="of them at once; None: all")
    train_on: Literal["final", "all"] = "final"
    helpful_per_prompt: int = Field(1, ge=0)


class Revise(_Section):
    """The critique-revision chain."""

    rounds: int = Field(4, ge=1, le=16)
    critique: bool = True  # False: direct revision (Figure 7)
    also_direct: bool = False  # a second, direct set of chains, only measured
    also_principles: tuple[int, ...] = ()  # further chains by just so many principles, only measured (Figure 6)
    context: Literal["latest", "chain"] = "latest"  # what a request sees: the latest answer, or the whole chain
    replacement: bool = True  # a principle may come twice in a chain; false: not before all have been used
    temperature: float = Field(1.0, ge=0)
    few_shot: bool = True


class Feedback(_Section):
    """AI labels (paper, section 4.1)."""

    clamp: tuple[float, float] | None = (0.4, 0.6)  # of CoT labels
    cot_tokens: int = Field(48, ge=1)
    few_shot: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> Feedback:
        if self.clamp is not None and not 0 <= self.clamp[0] < self.clamp[1] <= 1:
            raise ValueError("clamp must be two numbers, low < high, within 0 and 1")
        return self


class Pm(_Section):
    """Preference models; `variants` of rl_cai's are trained beside it and only measured (claims 15 and 16)."""

    epochs: float = Field(2.0, gt=0)
    learning_rate: float = Field(5e-4, gt=0)
    batch_size: int = Field(8, ge=1, description="pairs in an optimiser step")
    micro_batch_size: int | None = Field(None, ge=1, description="of them at once; None: all")
    max_length: int = Field(256, ge=16)
    variants: tuple[Literal["hard", "one_principle"], ...] = ()


class Rl(_Section):
    """RL against a PM. `ppo` is the paper's; `rloo` and `dpo` are TRL's trainers on the same data."""

    algorithm: Literal["ppo", "rloo", "dpo"] = "ppo"
    updates: int = Field(6, ge=1)
    rollouts_per_update: int = Field(8, ge=1)
    minibatch_size: int = Field(8, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    epochs: int = Field(1, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    kl_coef: float = Field(0.05, ge=0)
    kl_target: float | None = Field(None, gt=0)
    missing_eos_penalty: float = Field(0.0, ge=0)
    snapshots: int = Field(2, ge=0, description="saved along the run, the last step not counted")
    checkpoint_every: int = Field(1, ge=1)


class Experiment(_Section):
    """A whole run."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = 0
    models: Models = Models()
    data: Data = Data()
    constitution: str = "default"
    arms: tuple[str, ...] = ARMS
    suites: tuple[str, ...] = FIRST_SUITES  # names of suites.registry, or Python files (docs/add-a-suite.md)
    scale: Scale = Scale()
    lora: Lora | None = Lora()
    revise: Revise = Revise()
    sft: Sft = Sft()
    feedback: Feedback = Feedback()
    pm: Pm = Pm()
    rl: Rl = Rl()
    methods: tuple[str, ...] = ()  # Python files that add arms (docs/add-a-method.md)
    report_to: Literal["tensorboard", "wandb", "none"] = "tensorboard"

    @model_validator(mode="after")
    def _arms_known(self) -> Experiment:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown and not self.methods:
            raise ValueError(
                f"unknown arm {unknown[0]!r}; choose from {', '.join(ARMS)}, or name its file under methods"
            )
        if not self.arms:
            raise ValueError("arms is empty; name at least one")
        alone = len(self.arms) == 1 and (self.rl.snapshots == 0 or self.arms[0] in ("pretrained", "sl_cai"))
        if "elo" in self.suites and alone:
            raise ValueError("suite elo compares models and there is one; name another arm, or suites without elo")
        for what, names in (("an arm", self.arms), ("a suite", self.suites)):
            if len(set(names)) < len(names):
                raise ValueError(f"{what} is named twice")
        return self

    def settings(self, *names: str) -> dict[str, Any]:
        """Values by dotted name, as a stage declares them: of a key, "rl.epochs", or of a whole section, "sft"."""
        dump, found = self.model_dump(mode="json"), dict[str, Any]()
        for name in names:
            value: Any = dump
            for part in name.split("."):
                value = value[part]
            found |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        return found


def load(path: Path) -> Experiment:
    """Read an experiment file; paths in it are relative to it. Raises UserError that names the file and the key."""
    if not path.is_file():
        raise UserError(f"{path}: experiment file not found; shipped ones are in experiments/")
    experiment = files.read_model(path, Experiment, "an experiment")
    return experiment.model_copy(update=_absolute_paths(experiment, path.resolve().parent))


def _absolute_paths(experiment: Experiment, base: Path) -> dict[str, Any]:
    """Existing paths given relative to the experiment file (or the working folder) as absolute ones.

    A value that is no existing path stays as it is: it may be a hub id, and its reader says so if not.
    """

    def settle(value: str | None) -> str | None:
        if value is None:
            return None
        candidates = [Path(value).expanduser(), base / Path(value).expanduser()]
        return next((str(p.resolve()) for p in candidates if p.exists()), value)

    data = experiment.data.model_copy(update={k: settle(v) for k, v in experiment.data.model_dump().items()})
    models = experiment.models.model_dump()
    names = {k: settle(v) for k, v in models.items() if k not in ("judge", "trust_remote_code")}
    named = experiment.models.model_copy(update=names)
    constitution = settle(experiment.constitution) if experiment.constitution.endswith((".yaml", ".yml")) else None
    return {
        "data": data,
        "models": named,
        "constitution": constitution or experiment.constitution,
        "methods": tuple(settle(m) or m for m in experiment.methods),
        "suites": tuple((settle(s) or s) if s.endswith(".py") else s for s in experiment.suites),
    }
