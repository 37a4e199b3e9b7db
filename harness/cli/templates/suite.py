"""my_suite: the share of responses that end in a question. Put what you want to measure in its place.

    cai eval answers.jsonl --suite my_suite.py --out out     # your own responses: prompt, response
    cai eval runs/demo --suite my_suite.py                   # those of a run

In an experiment: `suites: [elo, pm_score, evasiveness, goodharting, my_suite.py]`.
"""

from __future__ import annotations

import pandas as pd

from suites.rates import rate
from suites.result import SuiteResult, summary_frame


def run(responses: pd.DataFrame, *, seed: int = 0) -> SuiteResult:
    """responses: prompt, response, arm, step (NA: the final model), sample, and what else the files hold."""
    holds = responses["response"].str.rstrip().str.endswith("?")
    # Label and score of every response, so that a number can be traced to the answers behind it.
    table = responses.assign(label=holds.map({True: "asks", False: "does not"}), score=holds.astype(float))
    # A row a metric, arm and step: estimate, low, high, n. n counts prompts, and intervals resample prompts. For scores
    # that are no yes or no, use harness.stats.bootstrap_mean in place of rate.
    rows = [
        {"arm": arm, "step": step, "metric": "my_suite_rate"}
        | vars(rate(part["score"].to_numpy() == 1, part["prompt"], seed))
        for (arm, step), part in table.groupby(["arm", "step"], dropna=False, sort=False)
    ]
    notes: list[str] = []  # what a reader must know: what was left out, what could not be measured
    return SuiteResult("my_suite", summary_frame("my_suite", rows), {"responses": table}, notes)
