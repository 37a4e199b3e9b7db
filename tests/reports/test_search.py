"""Search over all runs: by text, arm, snapshot, and what a suite said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from reports import search
from reports.search import FINAL, Query


@pytest.fixture(scope="module")
def folders(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("search")
    (root / "empty" / "stages").mkdir(parents=True)
    copy = shutil.copytree(run_folder, root / "second", ignore=shutil.ignore_patterns("report"))
    return {"first": run_folder, "second": Path(copy), "empty": root / "empty"}


def test_all_responses_of_all_runs_are_there(folders: dict[str, Path]) -> None:
    table, without = search.load(folders)
    alone = pd.read_parquet(folders["first"] / "results" / "responses.parquet")
    assert len(table) == 2 * len(alone)
    assert without == ["empty: results/responses.parquet is missing"]
    assert set(table["snapshot"]) == {FINAL, "step 2", "step 4"}


def test_every_filter_narrows_as_reading_all_rows_does(folders: dict[str, Path]) -> None:
    table, _ = search.load(folders)
    query = Query("GARDEN", ("second",), ("rl_cai",), ("step 2",))
    plain = table.astype({"prompt": str, "response": str})
    expected = (
        plain["response"].str.lower().str.contains("garden")
        & (plain["run"] == "second") & (plain["arm"] == "rl_cai") & (plain["step"] == 2).fillna(False)
    )  # fmt: skip
    found = search.match(table, query)
    assert found.tolist() == expected.tolist()
    assert 0 < found.sum() < (plain["run"] == "second").sum()
    assert search.match(table, Query()).all()
    assert not search.match(table, Query("no such words")).any()
    assert search.match(table, Query("<script>alert(")).sum() == (table["arm"] == "rl_cai").sum()  # text, no pattern


def test_what_a_suite_said_stands_beside_its_response(folders: dict[str, Path]) -> None:
    table, _ = search.load(folders)
    by_suite = search.said(folders, "evasiveness")
    assert search.labels(by_suite) == ["complies", "engages", "evades"]
    every = search.judged(table, by_suite, "")
    assert len(every) == len(table)
    evades = search.judged(table, by_suite, "evades")
    own = pd.read_parquet(folders["first"] / "results" / "evasiveness" / "responses.parquet")
    assert len(evades) == 2 * (own["label"] == "evades").sum()
    scores = search.said(folders, "pm_score")
    assert search.labels(scores) == []
    assert len(search.judged(table, scores, "")) == len(table)
    assert search.said(folders, "harmfulness").empty


@settings(max_examples=40)
@given(some.text(max_size=900), some.text(min_size=1, max_size=5))
def test_an_excerpt_is_short_and_holds_the_words(text: str, words: str) -> None:
    whole = f"{text}{words}{text}"
    part = search.around(whole, words)
    assert len(part) <= 302
    if len(whole.lower()) == len(whole):  # some letters are longer in lower case
        assert words.lower() in part.lower()
