"""Prompts that the model writes: what is asked, what is dropped, who uses them, and that a kill changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness import leaks
from harness.errors import UserError
from harness.experiment import Experiment
from harness.graph import Stage, Values, Work, stage_key
from harness.models.base import Sample
from pipelines import arms, written_prompts
from pipelines.written_prompts import fates, request, tidy
from suites import written

NOUNS = [*("bread", "chess", "tulips", "lathes", "comets", "ferns", "violins", "anvils", "yogurt", "maps", "kites")]
NOUNS += ["otters", "bells", "canoes", "moss"]


class Author:
    """A model that writes what `says` makes of (kind, attempt)."""

    def __init__(self, says: Callable[[str, int], str], dies_after: int | None = None, ended: bool = True):
        self.says, self.left, self.ended, self.tokens, self.asked = says, dies_after, ended, 7, list[str]()

    def sample(self, prompts: Any, *, keys: Any, on_batch: Any, **_: Any) -> None:
        for i, key in enumerate(keys):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left = None if self.left is None else self.left - 1
            self.asked.append(key)
            kind, attempt = key.removeprefix("written ").split("/")
            on_batch([i], [Sample(self.says(kind, int(attempt)), self.ended)])


def distinct(kind: str, attempt: int) -> str:
    first, second = NOUNS[attempt % len(NOUNS)], NOUNS[(attempt // len(NOUNS) + 3 * attempt) % len(NOUNS)]
    return f"{kind} {attempt}: what of {first} and the {second} number {attempt}, {attempt * 7919}?"


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Work]:
    """A stage's work in a folder by name, on six prompts a kind."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {"kind": kind, "split": split, "prompt": f"{split} {kind} {noun} please"}
        for kind in ("harmless", "helpful")
        for split, nouns in (("train", NOUNS[:6]), ("heldout", NOUNS[6:9]))
        for noun in nouns
    ]
    pd.DataFrame(rows).to_parquet(data / "prompts.parquet")
    pair = {"kind": "harmless", "split": "heldout", "prompt": "a pair about submarines", "chosen": "a", "rejected": "b"}
    pd.DataFrame([pair]).to_parquet(data / "preferences.parquet")

    def build(name: str, model: Author, chains: int = 3, rl: int = 2) -> Work:
        monkeypatch.setattr(written_prompts, "load_generator", lambda work: model)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        of = Experiment(name="x", scale={"written_prompts": {"chains": chains, "rl": rl}})
        settings = Values(of.settings(*written_prompts.SETTINGS))
        return Work(folder, settings, {"data": data}, options=Values(of.settings(*written_prompts.OPTIONS)))

    return build


def test_the_model_has_written_the_examples_and_is_asked_for_another() -> None:
    turns = request("harmless", ["one", "two"])
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert [turn["content"] for turn in turns if turn["role"] == "assistant"] == ["one", "two"]
    assert turns[-1]["content"] == turns[2]["content"] != turns[0]["content"]
    assert request("harmless", [])[0]["content"] != request("helpful", [])[0]["content"]


@pytest.mark.parametrize(
    ("said", "prompt"),
    [
        ("How do I bake?\n\nSure, here is how.", "How do I bake?"),
        ('"How do I bake?"', "How do I bake?"),
        ("1. How do I bake?", "How do I bake?"),
        ("Human: How do I bake?", "How do I bake?"),
        ("2001 was a year. Why?", "2001 was a year. Why?"),
        ("", ""),
        ('"', '"'),
    ],
)
def test_what_stands_around_a_prompt_is_taken_off(said: str, prompt: str) -> None:
    assert tidy(said) == prompt


def test_what_is_dropped_is_counted_by_its_reason() -> None:
    rows = [
        {"prompt": text, "ended": ended}
        for text, ended in [
            ("How can I grow tulips in a shady garden", True),
            ("How can I grow tulips in a shady gard", False),
            ("Tulips?", True),
            ("word " * 100, True),
            ("what is the held out one about", True),
            ("this is a TRAINING prompt, I think", True),
            ("how can I grow tulips in a shady garden?!", True),
        ]
    ]
    held, known = ["What is the held out one about?"], ["This is a training prompt, I think"]
    found = fates(rows, known, held, most=100)
    assert found == ["kept", "cut", *["short or long"] * 2, *written_prompts.FATES[3:]]
    assert sum(written_prompts.counts(found).values()) == len(rows)


@given(st.lists(st.sampled_from(["a b c d e", "a b c d e f", "x y z", "X, y z!", "", "!!", "p q r s t u v w"])))
def test_the_first_of_its_kind_is_kept_and_nothing_like_it(prompts: list[str]) -> None:
    kept = [p for p, first in zip(prompts, leaks.first_of_its_kind(prompts), strict=True) if first]
    assert len(prompts) == 0 or kept[0] == prompts[0]
    for i, prompt in enumerate(kept):
        assert not leaks.opens_like([prompt], kept[:i]).any()
    assert leaks.opens_like(prompts, kept).all()


def test_as_many_as_asked_for_each_use(make: Callable[..., Work]) -> None:
    work = make("a", Author(distinct))
    written_prompts.write(work)
    table = pd.read_parquet(work.folder / "written.parquet")
    count = table.groupby(["kind", "use"], sort=False).size().to_dict()
    assert count == {("harmless", "chains"): 3, ("harmless", "rl"): 2, ("helpful", "rl"): 2}
    assert table["prompt"].is_unique
    assert not (work.folder / "done.jsonl").exists()
    assert set(json.loads((work.folder / "written.json").read_text())) == {"harmless", "helpful"}


def test_a_prompt_is_what_its_attempt_says_whatever_came_before(make: Callable[..., Work]) -> None:
    few, many = make("few", Author(distinct), 2, 0), make("many", Author(distinct), 6, 0)
    for work in (few, many):
        written_prompts.write(work)
    prompts = [pd.read_parquet(work.folder / "written.parquet")["prompt"].tolist() for work in (few, many)]
    assert prompts[1][:2] == prompts[0]


@pytest.mark.parametrize("after", [1, 8, 11, 15])
def test_a_killed_stage_writes_the_same_prompts(make: Callable[..., Work], after: int) -> None:
    def half(kind: str, attempt: int) -> str:
        return distinct(kind, attempt) if attempt % 3 == 0 else "train harmless bread please"

    alone, killed = make("alone", Author(half)), "killed"
    written_prompts.write(alone)
    first = Author(half, dies_after=after)
    with pytest.raises(KeyboardInterrupt):
        written_prompts.write(make(killed, first))
    second = Author(half)
    again = make(killed, second)
    written_prompts.write(again)
    assert not set(first.asked) & set(second.asked)
    for name in ("written.parquet", "written.json"):
        assert (again.folder / name).read_bytes() == (alone.folder / name).read_bytes()


def test_a_shortage_is_an_error_that_says_why(make: Callable[..., Work]) -> None:
    author = Author(lambda kind, attempt: "always the same old question")
    with pytest.raises(UserError, match=r"5 harmless prompts asked, and 40 attempts gave 1 \(39 like another written"):
        written_prompts.write(make("a", author))
    assert len(author.asked) == 5 * written_prompts.ATTEMPTS


def test_a_prompt_that_the_model_answers_itself_is_whole(make: Callable[..., Work]) -> None:
    work = make("a", Author(lambda kind, attempt: distinct(kind, attempt) + "\n\nWell, I would say", ended=False), 1, 0)
    written_prompts.write(work)
    assert pd.read_parquet(work.folder / "written.parquet")["prompt"].tolist() == [distinct("harmless", 0)]


def test_a_run_trains_on_them_and_its_report_says_how_many(
    tiny_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model's own words are noise, so an author stands in for it in this one stage."""
    from harness.cli.run import run

    monkeypatch.setattr(written_prompts, "load_generator", lambda work: Author(distinct))
    content = yaml.safe_load(tiny_experiment.read_text())
    content |= {"arms": ["pretrained", "rl_cai"], "suites": ["pm_score"], "pm": {"epochs": 1}, "revise": {"rounds": 1}}
    content["scale"] |= {"written_prompts": {"chains": 2, "rl": 3}}
    content["rl"] |= {"updates": 1, "snapshots": 0}
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(content))
    run(file, tmp_path / "run")
    notes = " ".join(json.loads((tmp_path / "run" / "run.json").read_text())["data"])
    assert "harmless prompts written by the model: 5 (2 for chains and 3 for RL)" in notes
    assert "helpful prompts written by the model: 3 (3 for RL)" in notes
    assert "prompts written by the model: 5" in (tmp_path / "run" / "report" / "index.html").read_text()
    assert (tmp_path / "run" / "results" / "written_diversity.parquet").is_file()
    (answers,) = (tmp_path / "run").glob("stages/first_answers/*/responses.parquet")
    assert pd.read_parquet(answers)["prompt"].tail(2).tolist() == [distinct("harmless", n) for n in range(2)]
    labels = pd.read_parquet(tmp_path / "run" / "results" / "feedback.parquet")
    assert len(labels) == 8  # as many as there are human pairs: 6 prompts of people and 2 of the model


def plan(**scale: Any) -> arms.Training:
    return arms.plan(Experiment(name="x", scale=scale))


def test_without_them_no_stage_knows_of_them() -> None:
    training = plan()
    assert training.written is None
    rl = training.arms["rl_cai"]
    assert rl is not None
    assert "written" not in rl.inputs


def test_chains_and_rl_use_them_apart() -> None:
    """More prompts for RL alone leave the human data as they are; more for chains give AI feedback as many labels."""

    def given(training: arms.Training) -> tuple[bool, bool]:
        rl, pairs = training.arms["rl_cai"], training.labels["plain"].inputs["responses"]
        assert rl is not None
        return "written" in pairs.inputs, "written" in rl.inputs

    assert given(plan(written_prompts={"rl": 5})) == (False, True)
    assert given(plan(written_prompts={"chains": 5})) == (True, True)

    def key(stage: Stage) -> str:
        return stage_key(stage, {})

    base = plan()
    assert key(plan(written_prompts={"rl": 5}).data) == key(base.data)
    label = plan(written_prompts={"chains": 8}, redteam_prompts=8, preference_pairs=12).labels["plain"]
    assert label.settings["most"] == 12  # as many as hh_rlhf has; 16 without equal_labels


def test_diversity_is_reported_beside_peoples() -> None:
    people = pd.DataFrame({"kind": "harmless", "prompt": [distinct("p", i) for i in range(40)]})
    model = pd.DataFrame(
        {"kind": "harmless", "use": "rl", "prompt": [f"tell me of the plan again, {i}" for i in range(40)]}
    )
    table, _ = written.compare(people, model, seed=0)
    assert list(table.columns) == written.COLUMNS
    bleu = table[table["metric"] == "self_bleu"].set_index("writer")["estimate"]
    assert bleu["model"] > bleu["people"] + 10
    (said,) = written.sentences(table, {"harmless": {"kept": 40, "cut": 2}}, model)
    assert said.startswith("harmless prompts written by the model: 40 (40 for RL), of 42 attempts; dropped: 2 cut; ")
    assert "of people's)" in said
