"""Labels by a function in place of people: which way they point, how often they turn, what is said of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import annotators, experiment, graph
from harness.errors import UserError
from harness.experiment import Experiment
from pipelines import arms, scored_feedback
from reports import tables
from reports.load import RunData
from suites import judge_stage

LONGER = "def score(prompts, responses):\n    return [len(r) for r in responses]\n"


def length(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    return np.array([len(r) for r in responses], dtype=float)


def pairs(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    sizes = [rng.choice(40, 2, replace=False) for _ in range(n)]
    answers = [["a" * (int(k) + 1) for k in two] for two in sizes]
    return pd.DataFrame([(f"p{i}", *two) for i, two in enumerate(answers)], columns=["prompt", "chosen", "rejected"])


def test_without_noise_the_higher_score_is_chosen_and_no_answer_is_lost() -> None:
    table = pairs(200)
    found = annotators.relabel(table, length, flip=0, seed=0)
    assert (found["chosen"].str.len() > found["rejected"].str.len()).all()
    both = [table[["chosen", "rejected"]].apply(sorted, axis=1), found[["chosen", "rejected"]].apply(sorted, axis=1)]
    assert both[0].equals(both[1])
    assert found["prompt"].equals(table["prompt"])


@pytest.mark.parametrize("flip", [0.1, 0.5])
def test_a_share_of_the_labels_is_turned(flip: float) -> None:
    found = annotators.relabel(pairs(4000), length, flip=flip, seed=3)
    turned = (found["chosen"].str.len() < found["rejected"].str.len()).mean()
    assert turned == pytest.approx(flip, abs=4 * np.sqrt(flip * (1 - flip) / 4000))


@given(st.permutations(list(range(40))), st.lists(st.booleans(), min_size=40, max_size=40))
def test_a_label_depends_on_its_pair_alone(order: list[int], turned: list[bool]) -> None:
    """Not on the order of the pairs, nor on which answer was listed first; ties and turned labels too."""
    table = pairs(40)

    def tied(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        return np.zeros(len(responses))

    sides = [(r, c) if t else (c, r) for c, r, t in zip(table["chosen"], table["rejected"], turned, strict=True)]
    other = table.assign(chosen=[c for c, _ in sides], rejected=[r for _, r in sides]).iloc[order]
    for score in (length, tied):
        one = annotators.relabel(table, score, flip=0.3, seed=1)
        two = annotators.relabel(other, score, flip=0.3, seed=1).sort_index()
        pd.testing.assert_frame_equal(one, two)


@pytest.fixture
def by_length(tmp_path: Path) -> Path:
    (tmp_path / "longer.py").write_text(LONGER)
    file = tmp_path / "x.yaml"
    file.write_text("name: x\nannotator: {harmless: 'scorer:longer.py'}\nmodels: {feedback: 'scorer:longer.py'}\n")
    return file


def test_a_run_labels_the_kind_that_it_says_and_tells_so(by_length: Path, tmp_path: Path) -> None:
    plain, own = Experiment(name="x"), experiment.load(by_length)
    found = []
    for name, of in (("plain", plain), ("own", own)):
        stage = arms.plan(of).data
        (tmp_path / name).mkdir()
        stage.function(stage.work(tmp_path / name, {}))
        table = pd.read_parquet(tmp_path / name / "preferences.parquet")
        found.append(table.assign(longer=table["chosen"].str.len() >= table["rejected"].str.len()))
    before, after = found
    assert after.loc[after["kind"] == "harmless", "longer"].all()
    assert not before.loc[before["kind"] == "harmless", "longer"].all()
    helpful = [table[table["kind"] == "helpful"].reset_index(drop=True) for table in found]
    pd.testing.assert_frame_equal(*helpful)
    notes = json.loads((tmp_path / "own" / "notes.json").read_text())
    assert notes[0].startswith("harmless labels: by scorer:longer.py, a function in place of people, on pairs of the")
    assert notes[1].startswith("helpful labels: the shipped pairs")


def test_the_files_of_annotator_and_feedback_are_declared(by_length: Path, tmp_path: Path) -> None:
    training = arms.plan(experiment.load(by_length))
    file = str(tmp_path / "longer.py")
    assert training.data.files["annotator.harmless"] == file
    labels = training.labels["plain"]
    assert (labels.function, labels.files, labels.models) == (scored_feedback.label_pairs, {"feedback": file}, {})
    keys = {item.stage.name: item.key for item in graph.plan([training.pms["pm.rl_cai"]], tmp_path / "run")}
    (tmp_path / "longer.py").write_text(LONGER.replace("len(r)", "-len(r)"))
    other = {item.stage.name: item.key for item in graph.plan([training.pms["pm.rl_cai"]], tmp_path / "run")}
    assert keys["data"] != other["data"]
    assert keys["feedback.plain"] != other["feedback.plain"]


def test_feedback_by_a_scorer_is_the_sigmoid_of_the_difference() -> None:
    table = pd.DataFrame({"prompt": ["p", "q"], "response_a": ["aa", "a"], "response_b": ["a", "a"]})
    labels = scored_feedback.label(length, table)
    assert labels["p_a"].tolist() == pytest.approx([1 / (1 + np.exp(-1)), 0.5])
    assert labels["p_a_forward"].equals(labels["p_a_swapped"])


def test_a_judge_that_labelled_in_place_of_people_is_circular(by_length: Path) -> None:
    own = experiment.load(by_length)
    name = own.annotator.harmless
    (said,) = judge_stage._circular(own.model_copy(update={"models": own.models.model_copy(update={"judge": (name,)})}))
    assert said == "circular: scorer:longer.py judges, and made the labels of hh_rlhf and rl_cai"
    assert judge_stage._circular(own) == []


def test_the_report_counts_no_labels_of_a_function_as_peoples(tmp_path: Path) -> None:
    about = {
        "kind": "run",
        "arms": ["hh_rlhf", "rl_cai"],
        "human_harm_labels": {"hh_rlhf": 32, "rl_cai": 0},
        "annotator": {"harmless": "scorer:evasive.py", "helpful": "human", "flip": 0.1},
        "data": ["harmless labels: by scorer:evasive.py, on pairs of the shipped pairs, a stand-in for human labels"],
    }
    (tmp_path / "run.json").write_text(json.dumps(about))
    row = tables.five_rows(RunData(tmp_path)).set_index("what").loc["Human harm labels used"]
    assert row.tolist() == ["0; 32 by scorer:evasive.py, a function in place of people", "0"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"annotator": "people"}, "unknown annotator 'people'; choose human, pm:NAME or scorer:FILE.py"),
        ({"annotator": "scorer:"}, "scorer: names nothing"),
        ({"annotator": {"flip": 0.1}}, "people made all"),
        ({"annotator": {"harmless": "pm:a/b", "flip": 0.6}}, "less than or equal to 0.5"),
        ({"models": {"feedback": "pm:"}}, "pm: names nothing"),
        ({"models": {"feedback_cot": "scorer:x.py"}}, "only a language model can reason"),
        ({"models": {"feedback": "scorer:x.py"}, "pm": {"variants": ["one_principle"]}}, "one_principle asks the feed"),
        ({"models": {"feedback": "pm:a/b"}, "suites": ["hhh"], "data": {"hhh": "x"}}, "suite hhh asks the feedback"),
    ],
)
def test_what_cannot_be_is_an_error_of_the_plan(raw: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Experiment.model_validate({"name": "x"} | raw)


def test_a_missing_scorer_is_an_error_of_the_plan(tmp_path: Path) -> None:
    training = arms.plan(Experiment(name="x", annotator="scorer:none.py"))
    with pytest.raises(UserError, match=r"none.py: not found"):
        graph.plan([training.data], tmp_path)
