"""Human labels of harm that the training of each arm read: the number that Constitutional AI brings to zero."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from harness.data import select_data
from harness.graph import Stage, in_order


def human_harm_labels(arms: Mapping[str, Stage | None], preferences: pd.DataFrame) -> dict[str, int | None]:
    """Labels by arm, counted in `preferences` (kind, split): those of harm that a stage behind the arm was trained on.

    A stage that trains on human labels names their kinds in its setting `human`. None, unknown, where a stage of the
    user's own reads the data and has no such setting.
    """
    return {arm: _labels(stage, preferences) for arm, stage in arms.items()}


def _labels(arm: Stage | None, preferences: pd.DataFrame) -> int | None:
    splits = set()
    for stage in in_order([arm] if arm is not None else []):
        if not any(upstream.function is select_data for upstream in stage.inputs.values()):
            continue
        if "human" in stage.settings:
            if "harmless" in stage.settings["human"]:
                splits.add(stage.settings.get("split", "train"))
        elif stage.function.__module__.split(".")[0] != "pipelines":
            return None
    return int(((preferences["kind"] == "harmless") & preferences["split"].isin(splits)).sum())
