"""Tables of a report: what is not known is said to be so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reports import tables
from reports.load import RunData


def run_of(folder: Path, **about: Any) -> RunData:
    (folder / "run.json").write_text(json.dumps({"kind": "run", "arms": ["hh_rlhf", "rl_cai"]} | about))
    return RunData(folder)


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"tokens": 1200, "tokens_not_counted": []}, "1,200 tokens"),
        ({"tokens": 1200, "tokens_not_counted": ["elo", "data"]}, "1,200 tokens and those of 2 stages not counted"),
        ({"wall_seconds": 90}, "1.5 minutes"),
    ],
)
def test_tokens_that_nobody_counted_are_told(tmp_path: Path, about: dict[str, Any], expected: str) -> None:
    assert dict(tables.provenance(run_of(tmp_path, **about)))["Cost"] == expected


def test_an_unknown_number_of_harm_labels_is_no_zero(tmp_path: Path) -> None:
    rows = tables.five_rows(run_of(tmp_path, human_harm_labels={"hh_rlhf": None, "rl_cai": 0})).set_index("what")
    assert rows.loc["Human harm labels used"].tolist() == ["unknown", "0"]
