"""Experiment: one YAML file says what a run is. Every key has a default; an unknown key is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from harness import files, scoring, text
from harness.errors import UserError
from harness.expect import Expect
from harness.models import server
from harness.models.open import Engine, chosen

ARMS = ("pretrained", "helpful_only", "hh_rlhf", "sl_cai", "rl_cai", "rl_cai_cot")
BASELINES = ("best_of_n",)  # arms to be asked for: n answers of SL-CAI, of which RL-CAI's PM picks one
JUDGES = ("pm", "scorer", "model", "server", "words")  # with a name after the colon
FIRST_SUITES = ("elo", "pm_score", "evasiveness", "goodharting")

Count = Annotated[int, Field(ge=1, le=10**9)]
Tokens = Annotated[int, Field(ge=1, le=10**6)]  # beyond any model's context
Batch = Annotated[int, Field(ge=1, le=10**6)]
Rate = Annotated[float, Field(gt=0, le=10)]  # a learning rate
Epochs = Annotated[float, Field(gt=0, le=10**4)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class _Section(BaseModel):
    # Nothing is infinite; true and false are no numbers.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        named = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and named is not bool:
            raise ValueError("Input should not be true or false")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_secrets(cls, value: Any) -> Any:
        for name in value if isinstance(value, list | tuple) else (value,):
            if isinstance(name, str) and not server.is_server(name) and text.holds_credentials(name):
                raise ValueError(
                    "an address with a password or key in it would be stored with the results; take it out and set the "
                    "environment variable HF_TOKEN (a hub) or CAI_API_KEY (a server)"
                )
        return value


class Models(_Section):
    """Which models play which role. A name is 'embedded', a folder or a hub id; feedback may be behind a server, or a
    known function."""

    base: str = "embedded"
    bases: tuple[str, ...] | None = Field(
        None, min_length=2
    )  # a study: one run a base, which base: [A, B] is short for
    # None: the base model, as in the paper; server:URL#MODEL: `vllm serve MODEL`; pm:NAME or scorer:FILE.py: the label
    # is the sigmoid of the difference of two answers' scores, and no principle is asked
    feedback: str | None = None
    # For labels with chain of thought: as feedback, or arm:NAME, an arm that is trained before; as in the paper.
    feedback_cot: str = "arm:helpful_only"
    # Who judges; of several the first decides, the others stand beside it. gold_pm, feedback (who made the AI labels:
    # circular), pm:NAME, scorer:FILE.py, model:NAME, server:URL#MODEL or words:URL#MODEL
    judge: tuple[str, ...] = Field(("gold_pm",), min_length=1)
    engine: Engine = "auto"  # what samples and labels; auto: vLLM where it is installed and there is a GPU
    trust_remote_code: bool = False  # True: run Python code that comes with a model; read that code first

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


class Annotator(_Section):
    """Who made the comparisons that stand for people's, by kind: human (the data's own labels), pm:NAME or
    scorer:FILE.py, which label the data's pairs anew (as in Gao et al. 2022). One name alone is for both kinds."""

    harmless: str = "human"
    helpful: str = "human"
    flip: float = Field(0.0, ge=0, le=0.5, description="share of a function's labels turned at random; 0.5: a coin")

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


class _Source(_Section):
    """A table: a file (JSONL, JSON, Parquet, CSV), a folder with train and test files, or a hub id. A name alone is its
    source."""

    source: str
    subset: str | None = None  # of a data set on the hub that has several: the name of a configuration

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: Any) -> Any:
        return {"source": given} if isinstance(given, str) else given


class Pairs(_Source):
    """Preferences in TRL's format, standard or conversational, or in that of PKU-SafeRLHF; the columns, where they are
    called otherwise."""

    prompt: str | None = None  # None: column prompt, or the beginning that both answers share
    chosen: str = "chosen"
    rejected: str = "rejected"
    p: str | None = None  # soft label, P(chosen is better); None: column p, where there is one
    train: str = "train"  # names of splits
    test: str | None = None  # None: test, where there is one, else a fifth of the prompts is held out


class Prompts(_Source):
    """Prompts from a column of texts or messages; of a conversation with its answer, the first human turn."""

    column: str | None = None  # None: prompt, or transcript, as in red-team-attempts
    split: str = "train"


class Data(_Section):
    """Where prompts and preferences come from; None means the shipped set, a stand-in for human labels."""

    hh_rlhf: str | None = None  # folder or hub id in HH-RLHF layout: harmless-base/, helpful-base/
    helpful: str | None = None  # folder with train and test in the same layout, where hh_rlhf has no helpful-base
    harmless_pairs: Pairs | None = None  # comparisons of a kind in TRL's or PKU-SafeRLHF's format, before hh_rlhf's
    helpful_pairs: Pairs | None = None
    redteam_prompts: Prompts | None = None
    helpful_prompts: Prompts | None = None
    harm_ratings: str | None = None  # red-team-attempts layout, for the harmfulness suite
    hhh: str | None = None  # the HHH comparisons, for the hhh suite

    @model_validator(mode="after")
    def _every_key_counts(self) -> Self:
        if self.helpful_pairs is not None and self.helpful is not None:
            raise ValueError("helpful and helpful_pairs both give helpfulness comparisons; leave one out")
        if self.helpful_pairs is not None and self.harmless_pairs is not None and self.hh_rlhf is not None:
            raise ValueError("hh_rlhf is not read beside harmless_pairs and helpful_pairs; leave it out")
        return self


class Scale(_Section):
    """How much of everything."""

    redteam_prompts: int = Field(24, ge=2, le=10**9)
    helpful_prompts: int = Field(24, ge=2, le=10**9)
    heldout_prompts: int = Field(16, ge=2, le=10**9, description="of each kind, for the suites")
    samples_per_prompt: int = Field(1, ge=1, le=10**6)
    preference_pairs: int = Field(32, ge=4, le=10**9, description="human pairs of each kind, for the arms")
    gold_pairs: int = Field(32, ge=4, le=10**9, description="pairs of each kind that only the gold PMs see")
    # hh_rlhf learns from as many labels of harm as rl_cai: the fewer of redteam_prompts (a pair each) and
    # preference_pairs. False: from all there are
    equal_labels: bool = True
    max_new_tokens: Tokens = 32
    max_prompt_tokens: int = Field(128, ge=8, le=10**6, description="longer prompts are left out")
    batch_size: Batch = Field(32, description="for generation and scoring")
    best_of: int = Field(8, ge=2, le=10**4, description="answers of SL-CAI of which arm best_of_n is the best")


class Lora(_Section):
    rank: int = Field(16, ge=1, le=10**5)
    alpha: int = Field(32, ge=1, le=10**6)
    top_layers: int | None = Field(None, ge=1, le=10**5)


class _Training(_Section):
    """What every supervised training has."""

    batch_size: Batch = Field(8, description="rows in an optimiser step")
    micro_batch_size: Batch | None = Field(None, description="of them at once; None: all")

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class Sft(_Training):
    """SL-CAI's fine-tuning: revisions of red-team answers mixed with helpful-only answers (paper, section 3.1)."""

    epochs: Epochs = 1.0
    learning_rate: Rate = 2e-4
    train_on: Literal["final", "all"] = "final"
    helpful_per_prompt: int = Field(1, ge=0, le=10**4)
    heldout: float = Field(0.05, ge=0, le=0.5, description="share of chains that tests what was learned; at least one")


class Revise(_Section):
    """The critique-revision chain."""

    rounds: int = Field(4, ge=1, le=16)
    critique: bool = True  # False: direct revision (Figure 7)
    also_direct: bool = False  # a second, direct set of chains, only measured
    # further chains by just so many principles, only measured (Figure 6)
    also_principles: tuple[Annotated[int, Field(ge=1, le=10**4)], ...] = ()
    context: Literal["latest", "chain"] = "latest"  # what a request sees: the latest answer, or the whole chain
    replacement: bool = True  # a principle may come twice in a chain; false: not before all have been used
    temperature: float = Field(1.0, ge=0, le=100)
    few_shot: bool = True

    @field_validator("also_principles")
    @classmethod
    def _each_once(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(numbers)) < len(numbers):
            raise ValueError("a number of principles is named twice")
        return numbers


class Feedback(_Section):
    """AI labels (paper, section 4.1)."""

    clamp: tuple[float, float] | None = (0.4, 0.6)  # of CoT labels
    cot_tokens: Tokens = 48
    few_shot: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> Feedback:
        if self.clamp is not None and not 0 <= self.clamp[0] < self.clamp[1] <= 1:
            raise ValueError("clamp must be two numbers, low < high, within 0 and 1")
        return self


class Pm(_Training):
    """Preference models; `variants` of rl_cai's are trained beside it and only measured (claims 15 and 16)."""

    epochs: Epochs = 2.0
    learning_rate: Rate = 5e-4
    max_length: int = Field(256, ge=16, le=10**6)
    variants: tuple[Literal["hard", "one_principle"], ...] = ()


class Rl(_Section):
    """RL against a PM. `ppo` is the paper's; `rloo`, `grpo` and `dpo` are TRL's algorithms on the same data.

    An update is `rollouts_per_update` answers and `epochs` passes over them, in optimiser steps of minibatch_size x
    gradient_accumulation; with dpo, which samples nothing, one optimiser step. kl_coef is DPO's beta.
    """

    algorithm: Literal["ppo", "rloo", "grpo", "dpo"] = "ppo"
    updates: Count = 6
    rollouts_per_update: Batch = 8
    minibatch_size: Batch = 8
    gradient_accumulation: Batch = 1
    epochs: int = Field(1, ge=1, le=10**4)
    learning_rate: Rate = 2e-4
    kl_coef: float = Field(0.05, ge=0, le=1000)
    kl_target: float | None = Field(None, gt=0, le=10**6, description="nats a sequence, held by adapting kl_coef")
    missing_eos_penalty: float = Field(0.0, ge=0, le=10**6, description="taken from the reward of a cut answer")
    # what PPO makes of a PM score: its distance from the mean of all so far in standard deviations ("running"), or
    # from the score of an answer of the start policy to the same prompt ("reference")
    reward_normalisation: Literal["none", "running", "reference"] = "none"
    value_pretraining: int = Field(0, ge=0, le=10**6, description="updates of PPO's value head before the first")
    snapshots: int = Field(2, ge=0, le=10**6, description="saved along the run, the last step not counted")
    # which snapshot counts as an arm's result: the last, that with the best score by its own PM (best_proxy), or that
    # nearest to a KL (kl:NATS); chosen on training prompts, so that held-out ones measure it unseen
    result: str = "last"
    checkpoint_every: Count = 1
    engine: Engine = "transformers"  # what samples PPO's rollouts

    @field_validator("result")
    @classmethod
    def _a_rule(cls, rule: str) -> str:
        if rule not in ("last", "best_proxy") and not (re.fullmatch(r"kl:\d+(\.\d+)?", rule) and float(rule[3:]) > 0):
            raise ValueError(f"unknown rule {rule!r}; choose last, best_proxy or kl:NATS, such as kl:5")
        return rule

    @model_validator(mode="after")
    def _every_key_counts(self) -> Rl:
        """What an algorithm does not use is refused where it differs from the default."""
        unused = {"ppo": (), "rloo": _PPO_ONLY, "grpo": _PPO_ONLY, "dpo": (*_SAMPLING, *_PPO_ONLY)}
        for key in unused[self.algorithm]:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} means nothing to rl.algorithm {self.algorithm}; leave it out, or use ppo")
        if self.result != "last" and (self.algorithm == "dpo" or self.snapshots == 0):
            why = "dpo has no PM and no KL to choose by" if self.algorithm == "dpo" else "there are no rl.snapshots"
            raise ValueError(f"rl.result chooses between snapshots, and {why}; use last")
        if self.algorithm == "dpo" and self.kl_coef == 0:
            raise ValueError("kl_coef is DPO's beta, which cannot be 0; give a positive number, such as 0.1")
        step, group = self.minibatch_size * self.gradient_accumulation, GROUP.get(self.algorithm)
        if group and (self.rollouts_per_update % group or self.rollouts_per_update % step):
            raise ValueError(
                f"{self.algorithm} samples {group} answers a prompt, so it needs a rollouts_per_update that is a "
                f"multiple of {group} and of minibatch_size x gradient_accumulation ({step}), got "
                f"{self.rollouts_per_update}"
            )
        return self


GROUP = {"rloo": 2, "grpo": 4}  # answers a prompt, which such an algorithm compares with one another
_SAMPLING = ("rollouts_per_update", "epochs", "missing_eos_penalty")  # keys of algorithms that sample
_PPO_ONLY = ("kl_target", "engine", "reward_normalisation", "value_pretraining")


class Experiment(_Section):
    """A whole run."""

    name: str
    seed: Seed = 0
    seeds: tuple[Seed, ...] | None = Field(None, min_length=2)  # a study: one run a seed, in place of `seed`
    models: Models = Models()
    data: Data = Data()
    annotator: Annotator = Annotator()
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
    report_to: Literal["tensorboard", "wandb", "trackio", "mlflow", "none"] = "tensorboard"
    expect: Expect | None = None  # what must come out, for `cai control`

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
            raise ValueError("a name is 1 to 100 letters, digits, '.', '_' and '-', beginning with none of '.' and '-'")
        return name

    @model_validator(mode="after")
    def _a_study_of_different_seeds(self) -> Experiment:
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed is named twice; each is a run of its own")
        if self.is_study and self.expect is not None:
            raise ValueError("expect is held against one run; leave out seeds, and name one models.base")
        return self

    @property
    def is_study(self) -> bool:
        """Whether it stands for several runs, by seeds, base models or both."""
        return self.seeds is not None or self.models.bases is not None

    def cells(self) -> dict[str, Experiment]:
        """The runs it stands for, by the name of their folder in a study's; "" for the one of an experiment alone."""
        if not self.is_study:
            return {"": self}
        found: dict[str, Experiment] = {}
        folders: list[str] = []
        for base in self.models.bases or (self.models.base,):
            folder = re.sub(r"[^A-Za-z0-9._-]+", "_", base.rstrip("/").rpartition("/")[2]).lstrip(".-") or "model"
            while folder in folders:  # of two owners
                folder += "_"
            folders.append(folder)
            models = self.models.model_copy(update={"base": base, "bases": None})
            for seed in self.seeds or (self.seed,):
                parts = [folder] * (self.models.bases is not None) + [f"seed-{seed}"] * (self.seeds is not None)
                found["-".join(parts)] = self.model_copy(update={"seed": seed, "seeds": None, "models": models})
        return found

    @model_validator(mode="after")
    def _suites_have_their_data(self) -> Experiment:
        if "hhh" in self.suites and self.data.hhh is None:
            raise ValueError("suite hhh needs the HHH comparisons; name their file under data.hhh, or leave it out")
        return self

    @model_validator(mode="after")
    def _feedback_can_be_asked(self) -> Experiment:
        if scoring.is_scorer(self.models.feedback):
            for asks, what in (
                ("hhh" in self.suites, "suite hhh asks"),
                ("one_principle" in self.pm.variants, "pm.variants one_principle asks"),
            ):
                if asks:
                    raise ValueError(f"{what} the feedback model, and {self.models.feedback} only scores; leave it out")
        return self

    @model_validator(mode="after")
    def _arms_known(self) -> Experiment:
        unknown = [arm for arm in self.arms if arm not in (*ARMS, *BASELINES)]
        if unknown and not self.methods:
            raise ValueError(
                f"unknown arm {unknown[0]!r}; choose from {', '.join((*ARMS, *BASELINES))}, or name its file under "
                "methods"
            )
        if not self.arms:
            raise ValueError("arms is empty; name at least one")
        alone = len(self.arms) == 1 and (self.rl.snapshots == 0 or self.arms[0] in ("pretrained", "sl_cai", *BASELINES))
        if "elo" in self.suites and alone:
            raise ValueError("suite elo compares models and there is one; name another arm, or suites without elo")
        for what, names in (("an arm", self.arms), ("a suite", self.suites)):
            if len(set(names)) < len(names):
                raise ValueError(f"{what} is named twice")
        return self

    @model_validator(mode="after")
    def _expectations_can_be_met(self) -> Experiment:
        for fault in self.expect.faults(self) if self.expect else ():
            raise ValueError(f"expect: {fault}")
        return self

    def settings(self, *names: str) -> dict[str, Any]:
        """Values by dotted name, as a stage declares them: of a key, "rl.epochs", or of a whole section, "sft".

        An engine is that which runs on this machine, since its samples are its own.
        """
        dump, found = self.model_dump(mode="json"), dict[str, Any]()
        dump["models"]["engine"], dump["rl"]["engine"] = chosen(self.models.engine), chosen(self.rl.engine)
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

    def named(value: str | None) -> str | None:
        """The same where a kind stands before the path, as in scorer:FILE.py."""
        kind, colon, place = (value or "").partition(":")
        return f"{kind}:{settle(place)}" if colon and kind in ("pm", "scorer", "model") else settle(value)

    def placed(value: Any) -> Any:
        own = isinstance(value, _Source)
        return value.model_copy(update={"source": settle(value.source)}) if own else settle(value)

    data = experiment.data.model_copy(update={name: placed(value) for name, value in experiment.data})
    models = experiment.models.model_dump()
    names: dict[str, Any] = {
        k: named(v) for k, v in models.items() if k not in ("judge", "bases", "engine", "trust_remote_code")
    }
    if experiment.models.bases is not None:
        names["bases"] = tuple(settle(base) or base for base in experiment.models.bases)
    names["judge"] = tuple(named(judge) if ":" in judge else judge for judge in experiment.models.judge)
    constitution = settle(experiment.constitution) if experiment.constitution.endswith((".yaml", ".yml")) else None
    return {
        "data": data,
        "models": experiment.models.model_copy(update=names),
        "annotator": experiment.annotator.model_copy(
            update={kind: named(name) for kind, name in experiment.annotator.functions().items()}
        ),
        "constitution": constitution or experiment.constitution,
        "methods": tuple(settle(m) or m for m in experiment.methods),
        "suites": tuple((settle(s) or s) if s.endswith(".py") else s for s in experiment.suites),
    }
