"""Who is trained how: the paper's method section as a graph of stages.

Every arm starts from the same pretrained model; they share their code and differ only in data.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import constitutions
from constitutions import Excerpt
from harness import data, scoring
from harness.errors import UserError, own_code
from harness.experiment import Experiment
from harness.graph import Stage
from pipelines import (
    ai_feedback,
    best_of,
    critique_revise,
    dpo,
    preference_model,
    respond,
    rl,
    scored_feedback,
    sft,
    written_prompts,
)

ARM = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")  # an arm's name, which is that of its stage's folder


SINGLE_PRINCIPLES = 3  # that a variant of pm.rl_cai learns from alone, for claim 16: one could be lucky


@dataclass(frozen=True)
class Training:
    """The stages that make the arms. arms: an arm's stage, or None for the pretrained model as given."""

    data: Stage
    arms: Mapping[str, Stage | None]
    pms: Mapping[str, Stage]  # proxy PMs by name, and the gold PMs "gold.helpful", "gold.harmless"
    chains: Mapping[str, Stage] = field(default_factory=dict)  # by mode: critiqued, direct
    labels: Mapping[str, Stage] = field(default_factory=dict)  # by mode: plain, cot
    written: Stage | None = None  # prompts that the base model wrote, where any are asked for
    build: Builder = field(kw_only=True)  # makes further stages of the same kinds, for a user's own arms


def plan(experiment: Experiment) -> Training:
    """All stages of the experiment's arms (and of what they need), none of them carried out."""
    _check_tracker(experiment.report_to)
    line = Builder(experiment)
    wanted = set(experiment.arms)

    # Gold PMs judge; no arm is trained on their labels.
    pms = {f"gold.{kind}": line.pm(f"gold.{kind}", human=[kind], split="gold") for kind in ("helpful", "harmless")}
    arms: dict[str, Stage | None] = {"pretrained": None}

    # Helpful-only RLHF: human labels for helpfulness alone. The paper's starting point, so always there.
    pms["pm.helpful_only"] = line.pm("pm.helpful_only", human=["helpful"])
    helpful_only = line.rl("helpful_only", pms["pm.helpful_only"], human=["helpful"], prompts=["helpful"])
    arms["helpful_only"] = helpful_only

    # HH-RLHF: the same with human labels for harm as well.
    if "hh_rlhf" in wanted:
        pms["pm.hh_rlhf"] = line.pm("pm.hh_rlhf", human=["helpful", "harmless"])
        arms["hh_rlhf"] = line.rl(
            "hh_rlhf", pms["pm.hh_rlhf"], human=["helpful", "harmless"], prompts=["helpful", "harmless"]
        )

    # SL-CAI: the helpful-only model answers red-team prompts, critiques and revises itself; the pretrained model
    # is fine-tuned on the revisions, helpful-only answers to helpfulness prompts mixed in.
    first = line.respond("first_answers", helpful_only, kind="harmless", samples=1)
    chains = {"critiqued": line.chains("critiqued", helpful_only, first)}
    if experiment.revise.also_direct or not experiment.revise.critique:
        chains["direct"] = line.chains("direct", helpful_only, first)
    trained_on = chains["critiqued" if experiment.revise.critique else "direct"]
    if not experiment.revise.critique and not experiment.revise.also_direct:
        del chains["critiqued"]
    for n in experiment.revise.also_principles:  # only measured (Figure 6)
        chains[f"{n}_principles"] = line.chains("critiqued", helpful_only, first, principles=n)
    helpful = line.respond("helpful_responses", helpful_only, kind="helpful", samples=experiment.sft.helpful_per_prompt)
    sl_cai = line.finetune("sl_cai", trained_on, helpful)
    arms["sl_cai"] = sl_cai

    # RL-CAI: SL-CAI answers each red-team prompt twice, the feedback model labels the pairs, a PM learns from those
    # for harmlessness and from people for helpfulness, and SL-CAI is trained against it. The pretrained model labels;
    # with chain of thought the helpful-only one, which reasons first.
    pairs = line.respond("response_pairs", sl_cai, kind="harmless", samples=2)
    labels = {}
    for arm, mode in (("rl_cai", "plain"), ("rl_cai_cot", "cot")):
        if arm in wanted or (arm == "rl_cai" and "best_of_n" in wanted):
            labels[mode] = line.label(f"feedback.{mode}", pairs, arms, cot=mode == "cot")
            pm = line.pm(f"pm.{arm}", human=["helpful"], labels=labels[mode])
            pms[f"pm.{arm}"] = pm
            arms[arm] = line.rl(
                arm, pm, human=["helpful"], prompts=["helpful", "harmless"], policy=sl_cai, labels=labels[mode]
            )
    # Best of n: what SL-CAI and the same PM give without any RL, the baseline that RL must beat.
    if "best_of_n" in wanted:
        arms["best_of_n"] = line.best_of("best_of_n", sl_cai, pms["pm.rl_cai"])
    variants = experiment.pm.variants if "rl_cai" in wanted else ()  # only measured (section 4.3)
    if "hard" in variants:
        pms["pm.rl_cai.hard"] = line.pm("pm.rl_cai.hard", human=["helpful"], labels=labels["plain"], hard=True)
    if "one_principle" in variants:
        for name, place in line.single_principles().items():
            own = line.label(f"feedback.{name}", pairs, arms, only=place)
            pms[f"pm.rl_cai.{name}"] = line.pm(f"pm.rl_cai.{name}", human=["helpful"], labels=own)
    training = Training(line.data, arms, pms, chains, labels, line.written, build=line)
    for file in experiment.methods:
        arms |= own_arms(Path(file), experiment, training)
    unknown = [arm for arm in experiment.arms if arm not in arms]
    if unknown:
        known = ", ".join(arms)
        raise UserError(f"arms: unknown arm {unknown[0]!r}, which no file under methods makes either; known: {known}")
    return replace(training, arms={arm: arms[arm] for arm in experiment.arms})


def _check_tracker(name: str) -> None:
    """Raise UserError where the experiment tracker is not installed: before hours of training, not in the middle."""
    packages = {"none": (), "tensorboard": ("tensorboard", "tensorboardX")}.get(name, (name,))
    if packages and not any(importlib.util.find_spec(package) for package in packages):
        raise UserError(f"report_to: {name} is not installed; `pip install {name}`, or set report_to: none")


def own_arms(file: Path, experiment: Experiment, training: Training) -> Mapping[str, Stage]:
    """Arms of a user's own file: what its function `arms(experiment, training)` returns (docs/add-a-method.md).

    Raises UserError when the file is missing, fails to load or has no such function.
    """
    if not file.is_file():
        raise UserError(f"methods: {file} not found; name a Python file with a function arms(experiment, training)")
    name = f"cai_method_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"methods: {file} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that a stage's source is found, which is part of its key
    with own_code(f"methods: {file} failed"):
        spec.loader.exec_module(module)
        arms = module.arms(experiment, training)
    stages = isinstance(arms, Mapping) and all(isinstance(stage, Stage) for stage in arms.values())
    if not stages or not arms or not all(isinstance(arm, str) and ARM.fullmatch(arm) for arm in arms):
        raise UserError(
            f"methods: {file}: arms() must return {{name: Stage}} with at least one arm; its names are of letters, "
            "digits, '.', '_' and '-'"
        )
    return arms


class Builder:
    """Makes the stages that arms consist of, each declaring just what its function reads of the experiment.

    `plan` puts the paper's arms together from these; a user's method file finds one in `training.build`.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.constitution = constitutions.load(experiment.constitution)
        self.base = experiment.models.base
        self.feedback, self.feedback_cot = experiment.models.feedback or self.base, experiment.models.feedback_cot
        functions = experiment.annotator.functions()
        labelled: dict[str, Any] = {"annotators": {kind: scoring.label(name) for kind, name in functions.items()}}
        files, models = dict[str, str | Path](data.files_read(experiment.data)), dict[str, str]()
        for kind, name in functions.items():
            labelled |= experiment.settings("annotator.flip")
            own_files, own_models = scoring.declared(name, f"annotator.{kind}")
            files |= own_files
            models |= own_models
        self.data = Stage(
            "data",
            data.select_data,
            experiment.settings(*data.SETTINGS) | data.declared(experiment.data) | labelled,
            files=files,
            models=models,
            options=experiment.settings(*data.PLACES),
            kind="table",
        )
        written = experiment.scale.written_prompts
        self.written = (
            Stage(
                "written_prompts",
                written_prompts.write,
                experiment.settings(*written_prompts.SETTINGS),
                {"data": self.data},
                models={"base": self.base},
                options=experiment.settings(*written_prompts.OPTIONS),
                kind="sample",
            )
            if written.chains or written.rl
            else None
        )

    def _given(self, kind: str | None = None) -> dict[str, Stage]:
        """The stages that prompts come from: `written` too, where it has any for answers of this kind or, None, RL."""
        for_chains = kind == "harmless" and self.experiment.scale.written_prompts.chains > 0
        written = self.written if kind is None or for_chains else None
        return {"data": self.data} | ({"written": written} if written is not None else {})

    def pm(
        self, name: str, *, human: list[str], split: str = "train", labels: Stage | None = None, hard: bool = False
    ) -> Stage:
        """A PM on human labels of the kinds `human` (and a split of them) and on AI labels; `hard`: rounded."""
        settings: dict[str, Any] = {"human": human, "split": split}
        settings["measured_on"] = human if split == "gold" else ["helpful", "harmless"]
        inputs = {"data": self.data}
        if labels is not None:
            inputs["labels"] = labels
            settings["hard"] = hard
        return Stage(
            name,
            preference_model.train_pm,
            self.experiment.settings(*preference_model.SETTINGS) | settings,
            inputs,
            models={"base": self.base},
            options=self.experiment.settings(*preference_model.OPTIONS),
            kind="pm",
        )

    def rl(
        self,
        arm: str,
        pm: Stage,
        *,
        human: list[str],
        prompts: list[str],
        policy: Stage | None = None,
        labels: Stage | None = None,
    ) -> Stage:
        """An arm: RL against `pm` on train prompts of the kinds `prompts`, from `policy` or the pretrained model.

        With rl.algorithm dpo it learns from human labels of the kinds `human` and from `labels` instead.
        """
        algorithm = self.experiment.rl.algorithm
        inputs = {"data": self.data} if algorithm == "dpo" else self._given()
        inputs |= {"policy": policy} if policy is not None else {}
        if algorithm == "dpo":  # learns from the labels themselves, without a PM
            inputs |= {"labels": labels} if labels is not None else {}
        else:
            inputs |= {"pm": pm}
        return Stage(
            arm,
            dpo.train_dpo if algorithm == "dpo" else rl.train_rl,
            self.experiment.settings(*rl.SETTINGS[algorithm])
            | {"arm": arm}
            | ({"human": human} if algorithm == "dpo" else {"prompts": prompts}),
            inputs,
            models={} if policy is not None else {"base": self.base},
            options=self.experiment.settings(*rl.OPTIONS[algorithm]),
            kind="rl",
        )

    def chains(self, mode: str, policy: Stage, first: Stage, *, principles: int | None = None) -> Stage:
        """Chains ("critiqued" or "direct") by which `policy` revises the answers `first`, by so many principles."""
        replacement = self.experiment.revise.replacement
        critique_revise.check_principles(
            self.constitution, self.experiment.revise.rounds, principles, replacement=replacement
        )
        own: dict[str, Any] = {"critique": mode == "critiqued", "principles": principles, "arm": "helpful_only"}
        own["constitution"] = Excerpt.of(self.constitution, "critique_revision", "critique_revision")
        return Stage(
            f"chains.{mode}" if principles is None else f"chains.{principles}_principles",
            critique_revise.revise,
            self.experiment.settings(*critique_revise.SETTINGS) | own,
            {"first": first, "policy": policy},
            options=self.experiment.settings(*critique_revise.OPTIONS),
            kind="sample",
        )

    def respond(self, name: str, policy: Stage, *, kind: str, samples: int) -> Stage:
        """So many answers of `policy` to each train prompt of a kind ("harmless", "helpful")."""
        return Stage(
            name,
            respond.respond,
            self.experiment.settings(*respond.SETTINGS) | {"kind": kind, "samples": samples},
            self._given(kind) | {"policy": policy},
            options=self.experiment.settings(*respond.OPTIONS),
            kind="sample",
        )

    def finetune(self, arm: str, chains: Stage, helpful: Stage) -> Stage:
        """An arm: the pretrained model fine-tuned on the revisions of `chains` and the answers `helpful`."""
        return Stage(
            arm,
            sft.finetune,
            self.experiment.settings(*sft.SETTINGS),
            {"chains": chains, "helpful": helpful},
            models={"base": self.base},
            options=self.experiment.settings(*sft.OPTIONS),
            kind="sft",
        )

    def best_of(self, arm: str, policy: Stage, pm: Stage) -> Stage:
        """An arm: of so many answers of `policy` (scale.best_of) the one that `pm` scores highest."""
        inputs = {"policy": policy, "pm": pm}
        return Stage(arm, best_of.describe, self.experiment.settings(*best_of.SETTINGS), inputs, kind="table")

    def single_principles(self) -> dict[str, int]:
        """Places of comparison principles, evenly over the constitution, by the variant that asks one alone."""
        n = len(self.constitution.comparison)
        places = sorted({place * n // SINGLE_PRINCIPLES for place in range(SINGLE_PRINCIPLES)})
        return {f"one_principle_{number}": place for number, place in enumerate(places, start=1)}

    def label(
        self,
        name: str,
        pairs: Stage,
        arms: Mapping[str, Stage | None],
        *,
        cot: bool = False,
        only: int | None = None,
    ) -> Stage:
        """Labels by models.feedback, or with `cot` by models.feedback_cot, which may be one of `arms`.

        only: the place of the one comparison principle that is asked for all pairs; None: one is drawn for each.
        """
        model, inputs = self.feedback_cot if cot else self.feedback, {"responses": pairs}
        if cot and model.startswith("arm:"):
            arm = model.removeprefix("arm:")
            if arm not in arms:
                raise UserError(
                    f"models.feedback_cot: no arm {arm!r} is trained before the labels are made; name one of "
                    f"{', '.join(f'arm:{known}' for known in arms)}, or a model"
                )
            model, policy = self.base, arms[arm]
            inputs |= {"policy": policy} if policy is not None else {}
        scale = self.experiment.scale
        redteam = scale.redteam_prompts + scale.written_prompts.chains
        most = data.labels_of_harm(scale) if data.labels_of_harm(scale) < redteam else None
        if not cot and scoring.is_scorer(model):
            files, models = scoring.declared(model, "feedback")
            return Stage(
                name,
                scored_feedback.label_pairs,
                {"feedback": scoring.label(model), "most": most} | self.experiment.settings(*scored_feedback.SETTINGS),
                inputs,
                files,
                models,
                options=self.experiment.settings(*scored_feedback.OPTIONS),
                kind="label",
            )
        own: dict[str, Any] = {"cot": cot, "only": only, "most": most}
        own["constitution"] = Excerpt.of(self.constitution, "comparison", "cot" if cot else "comparison")
        extra = ai_feedback.COT_SETTINGS if cot else ()
        return Stage(
            name,
            ai_feedback.label_pairs,
            self.experiment.settings(*ai_feedback.SETTINGS, *extra) | own,
            inputs,
            models={} if "policy" in inputs else {"feedback": model},
            options=self.experiment.settings(*ai_feedback.OPTIONS),
            kind="label",
        )
