"""No held-out prompt is trained on, however it is dressed, and no gold pair is known to an arm."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import data, leaks
from harness.experiment import Data, Scale

WORDS = "amber birch copper dune ember fjord grove harbour island jasmine kettle lantern meadow nettle orchid".split()  # noqa: SIM905  a list of words is read more easily so
FEW = Scale(redteam_prompts=2, helpful_prompts=2, heldout_prompts=2, preference_pairs=4, gold_pairs=4)


def question(i: int) -> str:
    """Questions without a word in common."""
    return f"Why {WORDS[i % 15]}{i} {WORDS[(i + 4) % 15]}{i} {WORDS[(i + 9) % 15]}{i} round{i}?"


def transcript(*turns: str) -> str:
    speakers = ("Human", "Assistant")
    return "".join(f"\n\n{speakers[i % 2]}: {turn}" for i, turn in enumerate(turns))


def test_a_held_out_prompt_opens_no_training_or_gold_pair_of_several_turns(tmp_path: Path) -> None:
    """Own red-team prompts, every fifth held out, and real pairs that begin with them and go on."""
    own = [question(i) for i in range(60)]
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in own))
    folder = tmp_path / "hh" / "harmless-base"
    folder.mkdir(parents=True)
    for name, numbers in (("train", range(60)), ("test", range(60, 70))):
        rows = [
            {
                side: transcript(question(i), "Which one?", "The second.", f"Answer {side} {i}.")
                for side in ("chosen", "rejected")
            }
            for i in numbers
        ]
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.write("\n".join(map(json.dumps, rows)))
    source = Data(hh_rlhf=str(folder.parent), redteam_prompts=str(tmp_path / "own.jsonl"))
    scale = FEW.model_copy(update={"heldout_prompts": 12, "preference_pairs": 16, "gold_pairs": 16})
    prompts, pairs, notes = data.select(source, scale, 0)
    heldout = set(prompts.loc[(prompts["split"] == "heldout") & (prompts["kind"] == "harmless"), "prompt"])
    assert len(heldout) == 12
    trained = pairs[pairs["split"].isin(["train", "gold"])]
    assert not heldout & set(map(leaks.opening, trained["prompt"]))
    assert any(note.startswith("harmless: left out 0 training prompts, ") for note in notes)


def tables(held: list[str], rows: list[tuple[str, str]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(prompts, pairs): `held` are held-out prompts, `rows` (split, prompt) are pairs."""
    prompts = pd.DataFrame({"kind": "harmless", "split": "heldout", "prompt": held})
    return prompts, pd.DataFrame(rows, columns=["split", "prompt"]).assign(kind="helpful")


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ("How do I pick the lock of the old back door?", False),
        ("how do I pick the lock, of the OLD back door", False),
        ("How do I pick the lock of the very old back door?", False),
        (transcript("How do I pick the lock of the old back door?", "Why?", "Tell me.") + "\n\nAssistant:", False),
        (transcript("Good morning!", "Hello.", "How do I paint the old back door?") + "\n\nAssistant:", True),
        ("How do I paint the frame of the new front door?", True),
        ("!!", False),
        ("?", True),
    ],
)
def test_what_counts_as_the_same_opening(prompt: str, kept: bool) -> None:
    """Across kinds: a held-out red-team prompt must not stand among the helpfulness pairs either."""
    held = ["How do I pick the lock of the old back door?", "!"]
    for split in ("train", "gold"):
        _, pairs, notes = leaks.apart(*tables(held, [(split, prompt), (split, "Something else entirely, please.")]))
        assert (prompt in set(pairs["prompt"])) == kept
        assert bool(notes) != kept


def test_a_gold_pair_that_opens_like_a_training_pair_is_left_out_and_the_training_pair_stays() -> None:
    rows = [("train", "Name three uses of old newspapers."), ("gold", "Name three uses of old newspapers!")]
    _, pairs, notes = leaks.apart(*tables(["Sing."], rows))
    assert pairs["split"].tolist() == ["train"]
    assert "0 training pairs, 1 gold pairs" in notes[0]


def test_a_crowd_of_similar_held_out_prompts_hides_none() -> None:
    held = [f"Tell me a joke about the number {i} and the colour green today please" for i in range(200)]
    rows = [("train", f"{p}, now") for p in held]
    _, pairs, _ = leaks.apart(*tables(held, [*rows, ("train", question(1))]))
    assert pairs["prompt"].tolist() == [question(1)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.sampled_from(["train", "gold", "heldout"])), min_size=5, max_size=60))
def test_no_opening_stands_on_two_sides(rows: list[tuple[int, str]]) -> None:
    prompts = pd.DataFrame([("harmless", s, question(i)) for i, s in rows[::2]], columns=["kind", "split", "prompt"])
    multi = [("helpful", s, transcript(question(i), "And?", str(i)) + "\n\nAssistant:") for i, s in rows[1::2]]
    pairs = pd.DataFrame(multi, columns=["kind", "split", "prompt"])
    kept_prompts, kept, _ = leaks.apart(prompts, pairs)
    sides = {
        split: set(map(leaks.opening, [*kept.loc[kept["split"] == split, "prompt"]]))
        for split in ("train", "gold", "heldout")
    }
    asked = {s: set(kept_prompts.loc[kept_prompts["split"] == s, "prompt"]) for s in ("train", "heldout")}
    held = sides["heldout"] | asked["heldout"]
    assert not held & (sides["train"] | sides["gold"] | asked["train"])
    assert not sides["train"] & sides["gold"]
    # Nothing held out is lost, and what is left out had a reason.
    assert asked["heldout"] == {question(i) for i, s in rows[::2] if s == "heldout"}
    lost = {question(i) for i, s in rows[::2] if s == "train"} - asked["train"]
    assert lost <= held
