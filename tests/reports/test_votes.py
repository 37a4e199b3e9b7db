"""Votes: many writers at once, exported in the form the Elo suite's human judge reads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.errors import UserError
from reports.votes import Pair, Votes, next_pair
from suites import judges


def pair(number: int = 0, order: str = "ab") -> Pair:
    return Pair(f"Prompt {number}", "harmless", 0, "hh_rlhf", None, "one", "rl_cai", 4, "two", order)


def test_export_is_read_by_the_human_judge(tmp_path: Path) -> None:
    votes = Votes(tmp_path / "votes.sqlite")
    votes.add(pair(0, "ab"), "left", "ann")
    votes.add(pair(1, "ba"), "left", "ann")  # b was at the left
    votes.add(pair(2), "tie", "bob")
    file = tmp_path / "votes.csv"
    file.write_text(votes.csv("harmless"), encoding="utf-8")
    table = judges.from_votes(file).set_index("prompt").sort_index()
    assert table["outcome"].tolist() == [1.0, 0.0, 0.5]
    assert table["order"].tolist() == ["ab", "ba", "ab"]
    assert table["judge"].tolist() == ["ann", "ann", "bob"]
    assert table["step_b"].tolist() == [4, 4, 4]
    assert table["step_a"].isna().all()


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    def vote(number: int) -> None:
        Votes(tmp_path / "votes.sqlite").add(pair(number), "right", f"voter {number % 5}", f"vote-{number}")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(vote, [*range(200), *range(200)]))
    table = Votes(tmp_path / "votes.sqlite").table()
    assert len(table) == 200
    assert (table["winner"] == "b").all()


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "votes.sqlite").write_text("this is no database, by any means")
    with pytest.raises(UserError, match=r"votes\.sqlite"):
        Votes(tmp_path / "votes.sqlite").table()


def test_pairs_are_balanced_final_and_not_asked_twice(run_folder: Path, tmp_path: Path) -> None:
    import pandas as pd

    table = pd.read_parquet(run_folder / "results" / "responses.parquet")
    pairs = [next_pair(table, seed, kind="harmless") for seed in range(200)]
    assert all(p is not None and p.step_a is None and p.step_b is None and p.arm_a != p.arm_b for p in pairs)
    assert {p.kind for p in pairs if p} == {"harmless"}
    share = sum(p.order == "ab" for p in pairs if p) / 200
    assert 0.4 < share < 0.6
    small = table[table["prompt"] == table["prompt"][0]]
    votes = Votes(tmp_path / "votes.sqlite")
    for number in range(15):  # six arms make fifteen pairs
        asked = next_pair(small, number, done=votes.table())
        assert asked is not None
        votes.add(asked, "left", "ann")
    assert next_pair(small, 99, done=votes.table()) is None
