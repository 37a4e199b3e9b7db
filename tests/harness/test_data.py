"""Data: the three sources, their splits, and every malformed file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from harness import data
from harness.errors import UserError
from harness.experiment import Data, Scale

SCALE = Scale(redteam_prompts=20, helpful_prompts=20, heldout_prompts=10, preference_pairs=24, gold_pairs=12)


def splits_are_apart(prompts: pd.DataFrame, pairs: pd.DataFrame) -> None:
    for kind in data.KINDS:
        asked = prompts[prompts["kind"] == kind]
        train, heldout = (set(asked.loc[asked["split"] == s, "prompt"]) for s in ("train", "heldout"))
        assert train
        assert heldout
        assert not train & heldout
        of_kind = pairs[pairs["kind"] == kind]
        by_split = {s: set(of_kind.loc[of_kind["split"] == s, "prompt"]) for s in ("train", "gold", "heldout")}
        assert all(by_split.values())
        assert not by_split["train"] & by_split["gold"]
        assert not (by_split["train"] | by_split["gold"]) & (by_split["heldout"] | heldout)


def test_shipped_data_is_said_to_be_a_stand_in() -> None:
    prompts, pairs, notes = data.select(Data(), SCALE, 0)
    splits_are_apart(prompts, pairs)
    assert all("stand-in" in note for note in notes)
    assert prompts.groupby(["kind", "split"]).size()["harmless", "train"] == 20


@pytest.mark.parametrize(("equal", "expected"), [(True, 20), (False, 24)])
def test_hh_rlhf_learns_from_as_many_labels_of_harm_as_rl_cai(equal: bool, expected: int) -> None:
    """Of 24 human pairs and the pairs of 20 red-team prompts; the other splits and kinds are left alone."""
    _, pairs, _ = data.select(Data(), SCALE.model_copy(update={"equal_labels": equal}), 0)
    sizes = pairs.groupby(["kind", "split"]).size()
    assert sizes["harmless", "train"] == expected
    assert sizes["helpful", "train"] == 24
    assert sizes["harmless", "gold"] == 12


def test_a_folder_in_hh_layout(outside_data: Path, own_data: Path) -> None:
    source = Data(hh_rlhf=str(outside_data / "hh-rlhf"), helpful=str(outside_data / "helpful-alpacaeval"))
    few = Scale(redteam_prompts=4, helpful_prompts=4, heldout_prompts=4, preference_pairs=4, gold_pairs=4)
    scale = few if outside_data == own_data else SCALE
    prompts, pairs, notes = data.select(source, scale, 0)
    splits_are_apart(prompts, pairs)
    assert pairs.groupby(["kind", "split"]).size()["harmless", "gold"] == scale.gold_pairs
    assert "harmless-base" in notes[0]
    assert "alpacaeval" in notes[1]
    again, _, _ = data.select(source, scale, 0)
    pd.testing.assert_frame_equal(prompts, again)


def test_without_helpful_base_the_stand_in_is_named(own_data: Path) -> None:
    few = Scale(redteam_prompts=4, helpful_prompts=4, heldout_prompts=4, preference_pairs=4, gold_pairs=4)
    _, _, notes = data.select(Data(hh_rlhf=str(own_data / "hh-rlhf")), few, 0)
    assert "stand-in" in notes[1]


@pytest.mark.parametrize(
    ("key", "asked", "expected"),
    [
        ("preference_pairs", 69, "there are 68 helpful preference pairs in split 'train'"),
        (
            "gold_pairs",
            5000,
            "there are 48 harmless preference pairs in split 'gold'",
        ),
        ("helpful_prompts", 69, "there are 68 helpful prompts in split 'train'"),
        (
            "heldout_prompts",
            37,
            "there are 36 harmless prompts in split 'heldout'",
        ),
    ],
)
def test_a_shortage_names_the_key_and_what_there_is(key: str, asked: int, expected: str) -> None:
    there = int(expected.split()[2])
    data.select(Data(), SCALE.model_copy(update={key: there}), 0)
    with pytest.raises(UserError, match=f"scale.{key}: {asked:,} asked, and {expected}; ask for {there} or fewer"):
        data.select(Data(), SCALE.model_copy(update={key: asked}), 0)


def hh_folder(tmp_path: Path, train: str) -> str:
    folder = tmp_path / "hh" / "harmless-base"
    folder.mkdir(parents=True)
    good = json.dumps({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"})
    (folder / "test.jsonl").write_text(good)
    with gzip.open(folder / "train.jsonl.gz", "wt") as file:
        file.write(train)
    return str(folder.parent)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ('{"chosen": "x", "rejected": "y"}\nnot json', "line 2: not valid JSON"),
        ('{"chosen": "x"}', "row 1 lacks text under 'chosen' or 'rejected'"),
        ('{"chosen": "x", "rejected": "y"}', "no usable preference pair"),
    ],
)
def test_a_malformed_preference_file_names_the_row(tmp_path: Path, train: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        data.select(Data(hh_rlhf=hh_folder(tmp_path, train)), SCALE, 0)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Data(hh_rlhf="/no/such/place"), "not found"),
        (Data(helpful="/no/such/place"), "not found"),
        (Data(redteam_prompts="/no/such/file.jsonl"), "data.redteam_prompts: /no/such/file.jsonl not found"),
        (Data(hh_rlhf="nobody/no-such-set"), "the hub did not give it"),
    ],
)
def test_missing_sources_are_named(source: Data, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        data.select(source, SCALE, 0)


def test_an_empty_prompt_set_and_a_broken_line(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": ""}\n')
    with pytest.raises(UserError, match="prompt set is empty"):
        data.read_prompts(file)
    file.write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        data.read_prompts(file)
