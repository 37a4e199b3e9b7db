"""The shipped prompts and labels are what harness/shipped/README.md says they are."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections import Counter
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "harness" / "shipped"
Row = dict[str, str | int]

PROMPTS = ("redteam", "helpful")
PAIRS = ("preferences_harmless", "preferences_helpful")
RATINGS = "harmfulness_ratings"
FILES = (*PROMPTS, *PAIRS, RATINGS)
FIELDS = {
    **{name: {"id", "prompt", "topic", "split"} for name in PROMPTS},
    **{name: {"id", "prompt", "chosen", "rejected", "topic", "split"} for name in PAIRS},
    RATINGS: {"id", "prompt", "response", "rating", "split"},
}
RESPONSES = ("chosen", "rejected", "response")


@cache
def rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (SHIPPED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def key(text: str | int) -> str:
    """Text without case, punctuation and spacing, so that a trivial edit still counts as the same."""
    return " ".join(re.findall(r"[a-z0-9]+", str(text).lower()))


def prompts(name: str, split: str | None = None) -> set[str]:
    return {key(row["prompt"]) for row in rows(name) if split in (None, row["split"])}


@pytest.mark.parametrize("name", FILES)
def test_rows_have_exactly_the_documented_fields(name: str) -> None:
    for row in rows(name):
        assert set(row) == FIELDS[name], row["id"]
        for field, value in row.items():
            if field == "rating":
                assert type(value) is int, row["id"]
            else:
                assert isinstance(value, str), (row["id"], field)
                assert value == value.strip() != "", (row["id"], field)


@pytest.mark.parametrize("name", FILES)
def test_ids_are_unique(name: str) -> None:
    ids = [row["id"] for row in rows(name)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", [*PROMPTS, *PAIRS])
def test_prompts_are_unique(name: str) -> None:
    assert len(prompts(name)) == len(rows(name))


@pytest.mark.parametrize("name", [*PAIRS, RATINGS])
def test_no_response_is_used_twice(name: str) -> None:
    texts = [key(row[field]) for row in rows(name) for field in RESPONSES if field in row]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_counts(name: str) -> None:
    counts = Counter(row["split"] for row in rows(name))
    assert set(counts) == {"train", "heldout"}
    assert counts.total() >= 96
    assert counts["train"] >= 64
    assert counts["heldout"] >= 32


@pytest.mark.parametrize("name", PAIRS)
def test_pair_counts(name: str) -> None:
    counts = Counter(row["split"] for row in rows(name))
    assert set(counts) == {"train", "heldout", "gold"}
    assert counts["train"] >= 64
    assert counts["heldout"] >= 16
    assert counts["gold"] >= 48


def test_ratings_cover_the_scale_in_both_splits() -> None:
    assert {row["split"] for row in rows(RATINGS)} == {"train", "heldout"}
    for split in ("train", "heldout"):
        assert {row["rating"] for row in rows(RATINGS) if row["split"] == split} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("name", FILES)
def test_splits_share_no_prompt(name: str) -> None:
    splits = {str(row["split"]) for row in rows(name)}
    for one, other in combinations(sorted(splits), 2):
        assert not prompts(name, one) & prompts(name, other), (one, other)


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("labels", [*PAIRS, RATINGS])
def test_heldout_prompts_are_in_no_label(name: str, labels: str) -> None:
    assert not prompts(name, "heldout") & prompts(labels)


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("labels", PAIRS)
def test_training_prompts_are_in_no_judging_label(name: str, labels: str) -> None:
    assert not prompts(name, "train") & (prompts(labels, "gold") | prompts(labels, "heldout"))


def test_kinds_share_no_prompt() -> None:
    harmless = prompts("redteam") | prompts("preferences_harmless") | prompts(RATINGS)
    assert not harmless & (prompts("helpful") | prompts("preferences_helpful"))


@pytest.mark.parametrize("name", FILES)
def test_text_is_printable_ascii_within_the_word_limits(name: str) -> None:
    for row in rows(name):
        for field, value in row.items():
            assert re.fullmatch(r"[ -~]+", str(value)), (row["id"], field)
        assert 5 <= len(str(row["prompt"]).split()) <= 20, row["id"]
        for field in RESPONSES:
            if field in row:
                assert 12 <= len(str(row[field]).split()) <= 30, (row["id"], field)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("split", ["train", "heldout", "gold"])
def test_length_alone_does_not_decide(name: str, split: str) -> None:
    pairs = [row for row in rows(name) if row["split"] == split]
    longer = sum(len(str(row["chosen"])) > len(str(row["rejected"])) for row in pairs)
    assert 0.25 <= longer / len(pairs) <= 0.75


def test_readme_states_the_counts_of_the_files() -> None:
    text = (SHIPPED / "README.md").read_text(encoding="utf-8")
    for name in FILES:
        counts = Counter(str(row["split"]) for row in rows(name))
        line = next(line for line in text.splitlines() if line.startswith(f"| `{name}.jsonl`"))
        assert f"| {len(rows(name))} " in line
        for split, count in counts.items():
            assert f"{count} {split}" in line, (name, split)


def test_no_text_comes_from_the_reference_data(reference_data: Path) -> None:
    known = set()
    for path in [*reference_data.glob("hh-rlhf/*/*.jsonl.gz"), *reference_data.glob("helpful-alpacaeval/*.jsonl.gz")]:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                for side in ("chosen", "rejected"):
                    known |= {key(turn) for turn in re.split(r"\n\n(?:Human|Assistant):", row[side])}
    with (reference_data / "xstest" / "prompts.csv").open(encoding="utf-8", newline="") as file:
        known |= {key(row["prompt"]) for row in csv.DictReader(file)}
    assert len(known) > 5000  # else the layout changed and the test below would pass on nothing
    own = {key(row[field]) for name in FILES for row in rows(name) for field in ("prompt", *RESPONSES) if field in row}
    assert not own & known
