"""Human labels of harm that the training of each arm read: the number that Constitutional AI brings to zero."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from harness.data import select_data
from harness.graph import Stage, in_order


def splits(arms: Mapping[str, Stage | None]) -> dict[str, list[str] | None]:
    """Splits of the human labels of harm that each arm's training reads, in itself or in a stage behind it.

    A stage that trains on human labels names their kinds in its setting `human`. None, unknown, where a stage of the
    user's own reads the data and has no such setting.
    """
    return {arm: _splits(stage) for arm, stage in arms.items()}


def count(read_by: Mapping[str, list[str] | None], preferences: pd.DataFrame) -> dict[str, int | None]:
    """Labels by arm that there were in `preferences` (kind, split), of the splits that the arm's training reads."""
    of_harm = preferences.loc[preferences["kind"] == "harmless", "split"]
    return {arm: None if read is None else int(of_harm.isin(read).sum()) for arm, read in read_by.items()}


def _splits(arm: Stage | None) -> list[str] | None:
    found = set()
    for stage in in_order([arm] if arm is not None else []):
        if not any(upstream.function is select_data for upstream in stage.inputs.values()):
            continue
        if "human" in stage.settings:
            if "harmless" in stage.settings["human"]:
                found.add(stage.settings.get("split", "train"))
        elif stage.function.__module__.split(".")[0] != "pipelines":
            return None
    return sorted(found)
