"""The experiment file: every mistake is one line with file, key and how to fix it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from harness import data, experiment
from harness.errors import UserError
from harness.experiment import Experiment, Feedback, Pm, Revise, Rl, Sft
from pipelines import arms

ROOT = Path(__file__).resolve().parents[2]


def fault(tmp_path: Path, text: str) -> str:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        experiment.load(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_experiments_load(file: Path) -> None:
    assert experiment.load(file).name == file.stem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [unclosed", "not valid YAML"),
        ("- a\n- b", "mapping of keys"),
        ("seed: 1", "name: missing"),
        ("name: x\ncolour: red", "colour: unknown key"),
        ("name: x\nscale: {batch: 3}", "scale.batch: unknown key"),
        ("name: x\nscale: {batch_size: many}", "scale.batch_size: Input should be a valid integer"),
        ("name: x\nscale: {batch_size: 0}", "scale.batch_size: Input should be greater than or equal to 1, got '0'"),
        ("name: x\narms: [rl_cay]", "unknown arm 'rl_cay'"),
        ("name: x\narms: []", "arms is empty"),
        ("name: x\narms: [sl_cai, sl_cai]", "named twice"),
        ("name: x\nfeedback: {clamp: [0.6, 0.4]}", "feedback: clamp must be two numbers"),
        ("name: x\nsuites: [elo, hhh]", "suite hhh needs the HHH comparisons; name their file under data.hhh"),
        ("name: x\nsft: {batch_size: 9, micro_batch_size: 2}", "sft: micro_batch_size 2 does not divide batch_size 9"),
        ("name: x\npm: {batch_size: 9, micro_batch_size: 2}", "pm: micro_batch_size 2 does not divide batch_size 9"),
        ("name: x\nrevise: {also_principles: [-3]}", "revise.also_principles.0: Input should be greater than or equal"),
        ("name: x\nrevise: {also_principles: [2, 2]}", "revise.also_principles: a number of principles is named twice"),
        ("name: x\nrl: {kl_target: -1}", "rl.kl_target: Input should be greater than 0, got '-1'"),
        ("name: x\nrl: {kl_coef: 1.0e9}", "rl.kl_coef: Input should be less than or equal to 1000"),
        ("name: x\nrl: {algorithm: dpo, epochs: 2}", "rl: epochs means nothing to rl.algorithm dpo; leave it out"),
        ("name: x\nrl: {algorithm: dpo, rollouts_per_update: 64}", "rl: rollouts_per_update means nothing to"),
        ("name: x\nrl: {algorithm: dpo, kl_target: 3}", "rl: kl_target means nothing to"),
        ("name: x\nrl: {algorithm: dpo, missing_eos_penalty: 1}", "rl: missing_eos_penalty means nothing to"),
        ("name: x\nrl: {algorithm: dpo, kl_coef: 0}", "rl: kl_coef is DPO's beta, which cannot be 0"),
        ("name: x\nrl: {algorithm: rloo, kl_target: 3}", "rl: kl_target means nothing to rl.algorithm rloo"),
        ("name: x\nrl: {algorithm: rloo, minibatch_size: 3}", "rl: rloo samples 2 answers a prompt, so it needs"),
        (
            "name: x\nrl: {algorithm: rloo, rollouts_per_update: 1, minibatch_size: 1}",
            "rl: rloo samples 2 answers a prompt",
        ),
        ("name: x\nrl: {algorithm: grpo, rollouts_per_update: 6, minibatch_size: 6}", "rl: grpo samples 4 answers"),
        ("name: x\nrl: {algorithm: dpo, engine: vllm}", "rl: engine means nothing to rl.algorithm dpo; leave it out"),
        ("name: x\nrl: {algorithm: grpo, value_pretraining: 2}", "rl: value_pretraining means nothing to rl.algorithm"),
        ("name: x\nrl: {algorithm: dpo, reward_normalisation: running}", "rl: reward_normalisation means nothing to"),
        ("name: .", "name: a name is 1 to 100 letters"),
        ("name: ..", "name: a name is 1 to 100 letters"),
        ("name: -x", "name: a name is 1 to 100 letters"),
        ("name: a/b", "name: a name is 1 to 100 letters"),
        ("name: ''", "name: a name is 1 to 100 letters"),
        ("name: x\nseed: -1", "seed: Input should be greater than or equal to 0, got '-1'"),
        ("name: x\nseed: 99999999999999999999", "seed: Input should be less than 2147483648"),
        ("name: x\nseed: true", "seed: Input should not be true or false"),
        ("name: x\nrevise: {rounds: yes}", "revise.rounds: Input should not be true or false"),
        ("name: x\nrl: {algorithm: a2c}", "rl.algorithm: Input should be 'ppo', 'rloo', 'grpo' or 'dpo'"),
    ],
)
def test_mistakes_name_the_key_and_how_to_fix_it(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in fault(tmp_path, text)


def numbers(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of the experiment file that takes a number."""
    for name, field in model.model_fields.items():
        kinds = [part for part in [field.annotation, *get_args(field.annotation)] if isinstance(part, type)]
        sections = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if sections:
            yield from numbers(sections[0], (*path, name))
        elif any(kind in (int, float) for kind in kinds):
            yield (*path, name)


NUMBERS = sorted(".".join(path) for path in numbers(Experiment))


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1.0e+25", "-1.0e+25", "true"])
def test_no_number_is_infinite_or_beyond_all_bounds(tmp_path: Path, key: str, value: str) -> None:
    *sections, name = key.split(".")
    nested = f"{name}: {value}"
    for section in reversed(sections):
        nested = f"{section}: {{{nested}}}"
    assert key in fault(tmp_path, f"name: x\n{nested}")


def test_the_keys_with_numbers_are_found() -> None:
    assert {"seed", "rl.learning_rate", "scale.heldout_prompts", "lora.top_layers", "rl.kl_target"} <= set(NUMBERS)
    assert len(NUMBERS) > 30


def test_keys_that_an_algorithm_ignores_may_stand_at_their_default(tmp_path: Path) -> None:
    """A finished run's own experiment.yaml names every key, and can be run again."""
    for algorithm in ("ppo", "rloo", "grpo", "dpo"):
        whole = Experiment(name="x", rl={"algorithm": algorithm}).model_dump(mode="json")
        (tmp_path / "whole.yaml").write_text(yaml.safe_dump(whole))
        assert experiment.load(tmp_path / "whole.yaml").rl.algorithm == algorithm


@pytest.mark.parametrize("name", ["demo", "small"])
def test_the_shipped_data_hold_what_the_experiments_on_them_ask_for(name: str) -> None:
    """And few enough prompts are held out for a CPU, but enough for a paired interval."""
    asked = experiment.load(ROOT / "experiments" / f"{name}.yaml")
    prompts, pairs, _ = data.select(asked.data, asked.scale, asked.seed)
    counted = prompts.groupby(["kind", "split"]).size()
    assert counted["helpful", "heldout"] == counted["harmless", "heldout"] == asked.scale.heldout_prompts >= 24
    labels = pairs[pairs["split"] == "train"].groupby("kind").size().to_dict()
    assert labels == {"harmless": data.labels_of_harm(asked.scale), "helpful": asked.scale.preference_pairs}
    arms.plan(asked)  # and the constitution has the principles


def test_every_number_of_the_papers_experiment_has_its_source() -> None:
    """A section of the paper or of HH, "not stated" with where it is taken from, or "ours"; none is left at default."""
    text = (ROOT / "experiments" / "paper.yaml").read_text()
    raw = yaml.safe_load(text)
    for section, model in (("revise", Revise), ("sft", Sft), ("feedback", Feedback), ("pm", Pm), ("rl", Rl)):
        numbers_of = {name for (name,) in numbers(model)} - {"kl_target", "gradient_accumulation"}
        assert numbers_of <= set(raw[section])
    source = re.compile(r"# .*(\b[1-4]\.\d\b|Figure \d|HH, |ours|not stated; |the PM's context|times that)")
    with_numbers = [line for line in text.splitlines() if re.match(r"\s*\w+: \[?\d", line)]
    assert len(with_numbers) > 30
    assert not [line for line in with_numbers if not source.search(line)]


def test_the_papers_updates_are_one_pass_over_its_prompts() -> None:
    rl = experiment.load(ROOT / "experiments" / "paper.yaml").rl
    prompts = 182_831 + 135_296 + 491_142 + 474_300  # sections 3.2 and 4.2
    assert rl.updates == round(prompts / rl.rollouts_per_update)


def test_a_missing_file_points_to_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="experiments/"):
        experiment.load(tmp_path / "none.yaml")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").touch()
    (tmp_path / "x.yaml").write_text("name: x\ndata: {redteam_prompts: prompts.jsonl, hh_rlhf: Anthropic/hh-rlhf}")
    loaded = experiment.load(tmp_path / "x.yaml")
    assert loaded.data.redteam_prompts is not None
    assert loaded.data.redteam_prompts.source == str((tmp_path / "prompts.jsonl").resolve())
    assert loaded.data.hh_rlhf == "Anthropic/hh-rlhf"


def test_elo_needs_something_to_compare(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("name: x\narms: [pretrained]\n")
    with pytest.raises(UserError, match="suite elo compares models and there is one"):
        experiment.load(file)
    file.write_text("name: x\narms: [helpful_only]\n")
    assert experiment.load(file).arms == ("helpful_only",)
