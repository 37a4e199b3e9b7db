"""Two runs, or two arms: the gate's verdicts on tables that are already there, nothing sampled or measured anew."""

from __future__ import annotations

import pandas as pd

from reports.load import Missing, RunData, final_rows
from suites import gate
from suites.result import SuiteResult

TABLES = {  # suite: columns of its per-response table; those in the second list may be missing
    "evasiveness": (["prompt", "arm", "step", "label"], ["benign", "refuses"]),
    "goodharting": (["prompt", "arm", "step", "label", "response"], []),
    "pm_score": (["prompt", "arm", "step", "score"], []),
    "harmfulness": (["prompt", "arm", "step", "score"], []),
}


def judge(
    base: RunData, base_arm: str, other: RunData, other_arm: str, seed: int = 0
) -> tuple[pd.DataFrame, list[str]]:
    """(verdicts, notes): `suites.gate` on both arms' final models; a difference is `other` minus `base`."""
    rules = gate.load(None)
    results, notes = {}, []
    for suite, (needed, optional) in TABLES.items():
        try:
            sides = [_rows(base, base_arm, suite, needed, optional), _rows(other, other_arm, suite, needed, optional)]
        except Missing as missing:
            notes.append(f"{suite}: {missing}")
            continue
        if suite == "goodharting" and len({(len(s), s["prompt"].nunique()) for s in sides}) > 1:
            notes.append(
                "boilerplate_rate: the sides differ in size and more text shows more recurrence; `cai compare` mines "
                "them at equal size"
            )
        shared = set(sides[0]["prompt"]) & set(sides[1]["prompt"])
        if len(shared) < min(rules.min_prompts, *(side["prompt"].nunique() for side in sides)):
            notes.append(f"{suite}: not compared; the sides share {len(shared)} prompts, and others have other answers")
            continue
        named = [side.assign(arm=name) for side, name in zip(sides, ("baseline", "candidate"), strict=True)]
        table = pd.concat(named, ignore_index=True)
        results[suite] = SuiteResult(suite, pd.DataFrame(), {"responses": table})
    if base.folder != other.folder:
        notes.append("Elo is relative to each run's own anchor, so it is not compared between runs")
    verdicts = gate.judge(results, rules, tested=base.table("judges"), seed=seed)
    judged = [row for row in verdicts if row.verdict != "not measured"]
    table = gate.frame(judged) if judged else pd.DataFrame()
    return table, notes


def _rows(run: RunData, arm: str, suite: str, needed: list[str], optional: list[str]) -> pd.DataFrame:
    name = f"{suite}/responses"
    rows = run.need(name, needed)
    extra = run.table(name, optional)
    if extra is not None and len(extra.columns):
        rows = rows.join(extra)
    rows = rows[rows["arm"] == arm]
    if rows.empty:
        raise Missing(f"results/{name}.parquet has no responses of {arm}", run.command(name))
    return final_rows(rows)


def elo_differences(run: RunData, base_arm: str, other_arm: str) -> pd.DataFrame:
    """Elo of `other_arm` minus `base_arm` in one run, from its paired bootstrap: metric, estimate, low, high, n."""
    rows = []
    for side in ("harmlessness", "helpfulness"):
        columns = ["arm_a", "step_a", "arm_b", "step_b", "estimate", "low", "high", "n"]
        try:
            table = run.need(f"elo/{side}_differences", columns)
        except Missing:
            continue
        found = table[(table["arm_a"] == other_arm) & (table["arm_b"] == base_arm)]
        found = found[found["step_a"].isna() & found["step_b"].isna()]
        rows += [{"metric": f"elo_{side}", **row} for row in found[["estimate", "low", "high", "n"]].to_dict("records")]
    return pd.DataFrame(rows, columns=["metric", "estimate", "low", "high", "n"])
