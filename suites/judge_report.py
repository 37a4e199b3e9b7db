"""`cai judge`: what judges can tell, on human pairs, damaged answers and evasive ones, and how far they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from harness.stats import finite, spearman_bootstrap
from suites import judge_agreement, judge_quality
from suites.judge_open import Judge

KINDS = ("harmless", "helpful")
NON_EVASIVE_HERE = "non_evasive_here"  # as judge_quality.NON_EVASIVE, on pairs found among the answers given
PUBLISHED = "paper_pm_score"
MOST_PAIRS = 2  # of one prompt


@dataclass
class Report:
    """tests: `judge_quality.COLUMNS` without suite, by judge, kind and metric. agreement: `judge_agreement.COLUMNS`.

    published: rank correlation of each judge's scores with the paper's own (judge, estimate, low, high, n).
    """

    tests: pd.DataFrame
    agreement: pd.DataFrame
    published: pd.DataFrame = field(default_factory=pd.DataFrame)


def report(
    judges: Sequence[Judge], human: Mapping[str, pd.DataFrame], responses: pd.DataFrame | None = None, seed: int = 0
) -> Report:
    """Test `judges` on `human` pairs by kind of prompts and on `responses` (prompt, response, arm; kind if known)."""
    tests: list[pd.DataFrame] = []
    answered: dict[str, list[pd.DataFrame]] = {judge.name: [] for judge in judges}
    for kind in KINDS:
        part = _of_kind(responses, kind)
        if kind not in human and part is None and kind != "harmless":
            continue
        pairs = judge_quality.trials(kind, human=human.get(kind), responses=part, seed=seed)
        if part is not None and kind == "harmless":
            found = evasive_pairs(part)
            pairs = pd.concat([pairs, found.assign(metric=NON_EVASIVE_HERE)], ignore_index=True)
        for judge in judges:
            known = judge_quality.answered(judge.compare, kind, pairs)
            tests.append(judge_quality.summary(known, kind, judge.name, seed))
            answered[judge.name].append(known.assign(sample=[f"{kind}/{n}" for n in known["sample"]]))
    compared = {name: _comparisons(pd.concat(parts, ignore_index=True)) for name, parts in answered.items()}
    agreed = judge_agreement.agreement(compared, seed)
    return Report(pd.concat(tests, ignore_index=True), agreed, _published(judges, responses, seed))


def _of_kind(responses: pd.DataFrame | None, kind: str) -> pd.DataFrame | None:
    """Answers to prompts of that kind; all are red-team prompts where no prompt says its kind."""
    if responses is None:
        return None
    known = "kind" in responses and responses["kind"].notna().any()
    part = responses[responses["kind"] == kind] if known else responses
    return part if len(part) and (known or kind == "harmless") else None


def evasive_pairs(responses: pd.DataFrame) -> pd.DataFrame:
    """Trials of an answer that engages (right) against one that evades (wrong), to the same prompt of `responses`.

    An answer that complies is left out: it need not be harmless, and the instruction is about two harmless ones.
    """
    from suites.evasiveness_model import classify

    table = responses.drop_duplicates(["prompt", "response"])
    labels = classify(table["prompt"].tolist(), table["response"].tolist()).label
    rows = []
    for prompt, part in table.assign(label=labels).groupby("prompt", sort=False):
        sides = (part.loc[part["label"] == label, "response"].head(MOST_PAIRS) for label in ("engages", "evades"))
        rows += [(prompt, right, wrong) for right, wrong in zip(*sides, strict=False)]
    return judge_quality.trial(*zip(*rows, strict=True)) if rows else judge_quality.trial([], [], [])


def _comparisons(answered: pd.DataFrame) -> pd.DataFrame:
    """Trials as comparisons of two players, for the agreement of judges."""
    none = pd.array([pd.NA] * len(answered), dtype="Int64")
    return answered.assign(arm_a="right", arm_b="wrong", step_a=none, step_b=none, outcome=answered["correct"])


def _published(judges: Sequence[Judge], responses: pd.DataFrame | None, seed: int) -> pd.DataFrame:
    """Spearman's correlation of scores with the paper's, over the answers that it scored."""
    rows = []
    part = pd.DataFrame() if responses is None or PUBLISHED not in responses else responses.dropna(subset=PUBLISHED)
    published = finite(part[PUBLISHED], PUBLISHED, list(part.index)) if len(part) else np.array([])
    if len(np.unique(published)) > 1:
        for judge in judges:
            if judge.score is None:
                continue
            scores = judge.score(part["prompt"].tolist(), part["response"].tolist())
            value = spearman_bootstrap(scores, published, part["prompt"], seed)
            rows.append({"judge": judge.name, **vars(value)})
    return pd.DataFrame(rows, columns=["judge", "estimate", "low", "high", "n"])


def words(found: Report) -> list[str]:
    """What the tests come to, a line each judge and kind of prompts."""
    lines = []
    for (judge, kind), rows in found.tests.groupby(["judge", "kind"], sort=False):
        tested = rows.assign(suite="elo")
        failed = judge_quality.doubts(tested, "elo", str(kind), unmeasured=False)
        missing = [name for name in judge_quality.REQUIRED if name not in set(rows["metric"])]
        if failed:
            lines.append(f"{judge} cannot tell on {kind} prompts: it judges nothing there")
            continue
        lines.append(f"{judge} passes on {kind} prompts" + (f", untested on {', '.join(missing)}" if missing else ""))
        instructed = rows[rows["metric"].isin([judge_quality.NON_EVASIVE, NON_EVASIVE_HERE])]
        if len(instructed) and not instructed["passed"].all():
            lines.append(
                f"{judge} does not prefer the non-evasive of two harmless answers: claims 5, 7, 8 and 9 refuse it"
            )
    return lines
