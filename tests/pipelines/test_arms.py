"""Who is trained how: the paper's method as facts about the graph, and a user's own arm."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness import graph
from harness.errors import UserError
from harness.experiment import Experiment
from harness.runner import local
from pipelines import arms, dpo, preference_model

ROOT = Path(__file__).resolve().parents[2]


def upstream(stage: graph.Stage | None) -> set[str]:
    assert stage is not None
    return {s.name for s in graph.in_order([stage])}


@pytest.fixture(scope="module")
def training() -> arms.Training:
    return arms.plan(Experiment(name="x"))


def test_six_arms_in_order(training: arms.Training) -> None:
    assert list(training.arms) == ["pretrained", "helpful_only", "hh_rlhf", "sl_cai", "rl_cai", "rl_cai_cot"]
    assert training.arms["pretrained"] is None


def test_rl_cai_sees_no_human_label_of_harm(training: arms.Training) -> None:
    for arm in ("rl_cai", "rl_cai_cot", "sl_cai", "helpful_only"):
        for stage in graph.in_order([s for s in [training.arms[arm]] if s is not None]):
            assert "harmless" not in stage.settings.get("human", [])
    assert "harmless" in training.pms["pm.hh_rlhf"].settings["human"]


def test_rl_cai_starts_from_sl_cai_and_hh_rlhf_from_the_pretrained_model(training: arms.Training) -> None:
    for arm in ("rl_cai", "rl_cai_cot"):
        assert training.arms[arm].inputs["policy"] is training.arms["sl_cai"]
    assert "policy" not in training.arms["hh_rlhf"].inputs


def test_sl_cai_is_the_pretrained_model_on_helpful_onlys_revisions(training: arms.Training) -> None:
    assert "policy" not in training.arms["sl_cai"].inputs
    assert training.chains["critiqued"].inputs["policy"] is training.arms["helpful_only"]


def test_all_chains_revise_the_same_first_answers() -> None:
    """Figures 6 and 7 compare ways of revising, so nothing but the revisions may differ."""
    chains = arms.plan(Experiment(name="x", revise={"also_direct": True, "also_principles": [1, 4]})).chains
    assert len(chains) == 4
    assert len({id(stage.inputs["first"]) for stage in chains.values()}) == 1


@pytest.mark.parametrize(
    ("revise", "expected"),
    [
        ({"rounds": 9, "replacement": False}, "revise.rounds: 9 rounds without replacement need"),
        ({"also_principles": [99]}, "revise.also_principles: 99 asked for"),
    ],
)
def test_too_few_principles_are_an_error_of_the_plan(tmp_path: Path, revise: dict[str, object], expected: str) -> None:
    raw = yaml.safe_load((ROOT / "constitutions" / "default.yaml").read_text())
    raw["critique_revision"] = raw["critique_revision"][:5]
    (tmp_path / "five.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=expected):
        arms.plan(Experiment(name="x", constitution=str(tmp_path / "five.yaml"), revise=revise))


def test_a_tracker_that_is_not_installed_is_an_error_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    missing = ("wandb", "tensorboard", "tensorboardX", "trackio", "mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    for tracker in ("wandb", "tensorboard", "trackio", "mlflow"):
        with pytest.raises(UserError, match=f"report_to: {tracker} is not installed; `pip install {tracker}`"):
            arms.plan(Experiment(name="x", report_to=tracker))
    arms.plan(Experiment(name="x", report_to="none"))


def test_no_arm_sees_a_gold_pm(training: arms.Training) -> None:
    for arm, stage in training.arms.items():
        if arm != "pretrained":
            assert not any(name.startswith("gold.") for name in upstream(stage))
    assert all(training.pms[f"gold.{kind}"].settings["split"] == "gold" for kind in ("helpful", "harmless"))


def test_what_is_only_measured_changes_nothing_that_is_trained(training: arms.Training, tmp_path: Path) -> None:
    more = arms.plan(
        Experiment.model_validate(
            {
                "name": "x",
                "revise": {"also_direct": True, "also_principles": [1, 4]},
                "pm": {"variants": ["hard", "one_principle"]},
            }
        )
    )
    assert set(more.chains) == {"critiqued", "direct", "1_principles", "4_principles"}
    assert {name for name in more.pms if name not in training.pms} == {
        "pm.rl_cai.hard",
        *(f"pm.rl_cai.one_principle_{number}" for number in (1, 2, 3)),
    }
    keys = [
        {item.stage.name: item.key for item in graph.plan([s for s in of.arms.values() if s], tmp_path)}
        for of in (training, more)
    ]
    assert keys[0] == keys[1]


def test_cot_differs_in_its_labels_alone(training: arms.Training) -> None:
    plain, cot = training.labels["plain"], training.labels["cot"]
    differ = {k for k in plain.settings | cot.settings if plain.settings.get(k) != cot.settings.get(k)}
    assert differ == {"cot", "constitution", "feedback.clamp", "feedback.cot_tokens"}
    questions = [stage.settings["constitution"]["comparison"] for stage in (plain, cot)]
    assert questions[0] == questions[1]
    assert plain.inputs["responses"] is cot.inputs["responses"]


def test_the_pretrained_model_labels_and_with_cot_the_helpful_only_one(training: arms.Training) -> None:
    assert "policy" not in training.labels["plain"].inputs
    assert training.labels["cot"].inputs["policy"] is training.arms["helpful_only"]
    other = arms.plan(Experiment(name="x", models={"feedback": "a/plain", "feedback_cot": "a/reasoner"})).labels
    assert (other["plain"].models["feedback"], other["cot"].models["feedback"]) == ("a/plain", "a/reasoner")
    assert "policy" not in other["cot"].inputs
    with pytest.raises(UserError, match=r"models\.feedback_cot: no arm 'rl_cay' is trained before the labels are made"):
        arms.plan(Experiment(name="x", models={"feedback_cot": "arm:rl_cay"}))


def test_dpo_learns_from_the_labels_without_a_pm() -> None:
    training = arms.plan(Experiment(name="x", rl={"algorithm": "dpo"}))
    stage = training.arms["rl_cai"]
    assert stage is not None
    assert stage.function is dpo.train_dpo
    assert set(stage.inputs) == {"data", "policy", "labels"}


def test_ai_pairs_leave_equal_answers_out_and_round_on_demand() -> None:
    labels = pd.DataFrame(
        {"prompt": list("abc"), "response_a": ["x", "y", "z"], "response_b": ["u", "y", "w"], "p_a": [0.7, 0.5, 0.2]}
        | {"ended_a": [True, True, False], "ended_b": [False, True, True]}
    )
    pairs = preference_model.ai_pairs(labels, hard=False)
    assert pairs[["chosen_ended", "rejected_ended"]].to_numpy().tolist() == [[True, False], [False, True]]
    assert preference_model.ai_pairs(labels, hard=False)["p"].tolist() == [0.7, 0.2]
    assert preference_model.ai_pairs(labels, hard=True)["p"].tolist() == [1.0, 0.0]


def test_the_documented_method_runs(tiny_model: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "add-a-method.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code is not None
    assert len(code.group(1).splitlines()) <= 60
    (tmp_path / "chosen_sft.py").write_text(code.group(1))
    experiment = Experiment(
        name="mine",
        models={"base": str(tiny_model)},
        arms=("pretrained", "chosen_sft"),
        methods=(str(tmp_path / "chosen_sft.py"),),
        scale={"preference_pairs": 4, "gold_pairs": 4},
    )
    stage = arms.plan(experiment).arms["chosen_sft"]
    assert stage is not None
    folder = local.execute([stage], tmp_path / "run", seed=0)["chosen_sft"]
    assert (folder / "model" / "config.json").is_file()


def test_an_arm_is_built_from_the_papers_parts(tmp_path: Path, training: arms.Training) -> None:
    """The documented example: RL-CAI's PM and settings, without SL-CAI."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "add-a-method.md").read_text(), re.S)[1]
    (tmp_path / "rl_from_base.py").write_text(code)
    mine = arms.plan(
        Experiment(name="x", arms=("rl_cai", "rl_from_base"), methods=(str(tmp_path / "rl_from_base.py"),))
    ).arms
    built, paper = mine["rl_from_base"], mine["rl_cai"]
    assert built is not None
    assert paper is not None
    assert built.inputs["pm"] is paper.inputs["pm"]
    assert "policy" not in built.inputs
    assert built.models == {"base": "embedded"}
    assert built.settings == paper.settings | {"arm": "rl_from_base"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def arms(experiment, training):\n    return {}", "with at least one arm"),
        ("x = 1", "AttributeError"),
        ("def arms(", "SyntaxError"),
        (None, "not found"),
    ],
)
def test_a_method_file_that_fails_is_one_clear_line(tmp_path: Path, code: str | None, expected: str) -> None:
    file = tmp_path / "method.py"
    if code is not None:
        file.write_text(code)
    with pytest.raises(UserError, match=expected):
        arms.plan(Experiment(name="x", arms=("mine",), methods=(str(file),)))


@pytest.mark.parametrize(
    ("scale", "labels"),
    [
        ({"redteam_prompts": 60, "preference_pairs": 24}, 24),
        ({"redteam_prompts": 24, "preference_pairs": 60}, None),  # all there are, and hh_rlhf has no more
        ({"redteam_prompts": 60, "preference_pairs": 24, "equal_labels": False}, None),
    ],
)
def test_rl_cai_learns_from_as_many_labels_of_harm_as_hh_rlhf(scale: dict[str, int], labels: int | None) -> None:
    for feedback in (None, "pm:some/pm"):
        made = arms.plan(Experiment(name="x", scale=scale, models={"feedback": feedback})).labels
        assert [stage.settings["most"] for stage in made.values()] == [labels, labels]
