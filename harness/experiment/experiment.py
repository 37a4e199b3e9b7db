"""The whole of an experiment file, and how it is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from harness import files, scoring
from harness.errors import UserError
from harness.expect import Expect
from harness.experiment.compute import Compute
from harness.experiment.inputs import Annotator, Data, Models, Source
from harness.experiment.section import Section, Seed
from harness.experiment.training import Feedback, Lora, Pm, Revise, Rl, Scale, Sft
from harness.models.open import chosen

ARMS = ("pretrained", "helpful_only", "hh_rlhf", "sl_cai", "rl_cai", "rl_cai_cot")
BASELINES = ("best_of_n",)  # arms to be asked for: n answers of SL-CAI, of which RL-CAI's PM picks one
FIRST_SUITES = ("elo", "pm_score", "evasiveness", "goodharting")


class Experiment(Section):
    """A whole run."""

    name: str
    """The run's name, and that of its folder in `runs/`."""
    seed: Seed = 0
    """Decides every random draw of the run."""
    seeds: tuple[Seed, ...] | None = Field(None, min_length=2)
    """A study in place of `seed`: one run for each of these seeds."""
    models: Models = Models()
    """Which models play which role."""
    data: Data = Data()
    """Where prompts and human comparisons come from."""
    annotator: Annotator = Annotator()
    """Who labels the comparisons that stand for people's."""
    constitution: str = "default"
    """`default`, or a constitution file of yours."""
    arms: tuple[str, ...] = ARMS
    """The models to train and compare: `pretrained`, `helpful_only`, `hh_rlhf`, `sl_cai`, `rl_cai`, `rl_cai_cot`,
    `best_of_n`, and those that `methods` add."""
    suites: tuple[str, ...] = FIRST_SUITES
    """What to measure: `elo`, `pm_score`, `evasiveness`, `goodharting`, `harmfulness`, `hhh`, or Python files ([a
    suite of your own](add-a-suite.md))."""
    scale: Scale = Scale()
    """How much of everything."""
    lora: Lora | None = Lora()
    """Low-rank adapters for every training; `null` trains all weights."""
    revise: Revise = Revise()
    """The critique-revision chains."""
    sft: Sft = Sft()
    """SL-CAI's fine-tuning."""
    feedback: Feedback = Feedback()
    """The AI labels."""
    pm: Pm = Pm()
    """The preference models."""
    rl: Rl = Rl()
    """RL against a preference model."""
    methods: tuple[str, ...] = ()
    """Python files that add arms ([test your own method](add-a-method.md))."""
    report_to: Literal["tensorboard", "wandb", "trackio", "mlflow", "none"] = "tensorboard"
    """Where training curves go while a run trains; the tracker must be installed."""
    expect: Expect | None = None
    """What must come out, for `cai control`; `null` for an experiment that is no control."""
    compute: Compute = Compute()
    """What stages need of a machine, for runners that carry out several at once; no result depends on it."""

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
        own = isinstance(value, Source)
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
