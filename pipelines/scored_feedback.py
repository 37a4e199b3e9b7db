"""Labels by a scorer in place of AI feedback (`models.feedback: pm:NAME` or `scorer:FILE.py`).

P(A is better) is the sigmoid of the difference of the answers' scores, which a PM gives in log-odds. No principle is
asked and no order of the answers is shown, so both columns of order hold the label itself.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from harness import scoring, store
from harness.graph import Work
from harness.scoring import Scorer
from pipelines.ai_feedback import COLUMNS, report, two_answers

SETTINGS = ("seed", "pm.max_length")  # and feedback, what the scorer is called, and most
OPTIONS = ("scale.batch_size",)


def label(score: Scorer, pairs: pd.DataFrame) -> pd.DataFrame:
    """Labels for `pairs` (prompt, response_a, response_b): columns `ai_feedback.COLUMNS`."""
    from scipy.special import expit

    prompts = pairs["prompt"].tolist()
    p = expit(score(prompts, pairs["response_a"].tolist()) - score(prompts, pairs["response_b"].tolist()))
    same: dict[str, Any] = {"p_a": p, "p_a_raw": p, "p_a_forward": p, "p_a_swapped": p}
    said: dict[str, Any] = {
        "principle": "none: scored",
        "mass": 1.0,
        "mode": "plain",
        "reasoning": "",
        "reasoning_swapped": "",
    }
    return pairs[["prompt", "response_a", "response_b"]].assign(**same, **said)[COLUMNS]


def label_pairs(work: Work) -> None:
    """Labels on the two SL-CAI answers to each red-team prompt: feedback.parquet, feedback.json."""
    place = work.files.get("feedback") or work.models["feedback"]
    kind = work.settings.feedback.partition(":")[0]
    length, batch = work.settings.pm.max_length, work.options.scale.batch_size
    score = scoring.open_scorer(f"{kind}:{place}", batch_size=batch, max_length=length)
    answers = pd.read_parquet(work.inputs["responses"] / "responses.parquet")
    pairs = two_answers(answers, work.settings.most, work.settings.seed)
    labels = label(score, pairs).assign(ended_a=pairs["ended_a"], ended_b=pairs["ended_b"])
    store.write_table(work.folder / "feedback.parquet", labels)
    store.write_json(work.folder / "feedback.json", report(labels))
    work.count(0)
