"""Who judged a run, whether they could: the judges' tests, their agreement, and marks for the columns they made."""

from __future__ import annotations

import pandas as pd

from reports import reading
from reports.load import RunData
from suites import judge_quality

MADE_BY = {  # metric: suite and kind of prompts of the judge behind it
    "elo_harmlessness": ("elo", "harmless"),
    "elo_helpfulness": ("elo", "helpful"),
    "pm_score": ("pm_score", "harmless"),
}


def mark(run: RunData, metric: str) -> str:
    """What a reader must know of the judge behind `metric`: empty where it has passed its tests."""
    metric, other, name = metric.partition("@")
    if metric not in MADE_BY:
        return ""
    tested, (suite, kind) = _tested(run), MADE_BY[metric]
    if other and tested is not None:  # a further judge: its word decides nothing, but it was tested too
        tested = tested[tested["judge"] == name].drop_duplicates(["kind", "metric"]).assign(suite=suite)
    if tested is None:
        return "judge not tested"
    return "judge cannot tell" if judge_quality.doubts(tested, suite, kind) else ""


def _tested(run: RunData) -> pd.DataFrame | None:
    table = run.table("judges", judge_quality.COLUMNS)
    return table if table is not None and set(judge_quality.COLUMNS) <= set(table) else None


def tests(run: RunData) -> pd.DataFrame:
    """A row a judge, kind of prompts and test: judge, prompts, test, right, pairs, passed; empty without tests."""
    tested = _tested(run)
    if tested is None:
        return pd.DataFrame()
    rows = [
        {
            "judge": row["judge"],
            "prompts": row["kind"],
            "test": judge_quality.WORDS.get(row["metric"], row["metric"]),
            "right": reading.interval(row["estimate"], row["low"], row["high"], "%"),
            "pairs": str(row["n"]),
            "passed": "yes" if row["passed"] else "no",
        }
        for row in tested.drop_duplicates(["judge", "kind", "metric"]).to_dict("records")
    ]
    return pd.DataFrame(rows)


def agreement(run: RunData) -> pd.DataFrame:
    """How far several judges of Elo agree: prompts, judges, kappa or rank correlation; empty where there is one."""
    rows = []
    for side in ("harmlessness", "helpfulness"):
        columns = ["judge_a", "judge_b", "metric", "estimate", "low", "high", "n"]
        table = run.table(f"elo/{side}_agreement", columns)
        if table is not None and set(columns) <= set(table):
            rows += [
                {
                    "Elo": side,
                    "judges": f"{row['judge_a']} and {row['judge_b']}",
                    "measure": row["metric"].replace("_", " "),
                    "value": reading.interval(row["estimate"], row["low"], row["high"]),
                    "prompts": str(row["n"]),
                }
                for row in table.to_dict("records")
            ]
    return pd.DataFrame(rows)
