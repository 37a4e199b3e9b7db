"""Comparisons labelled by a function in place of people, as in Gao, Schulman and Hilton (2022).

The function scores both answers of a pair and the higher is chosen. Labels may be noisy: a share of them is turned at
random. Such labels are useful where there are none by people, and make a control possible: a run whose true answer is
known.
"""

from __future__ import annotations

import pandas as pd

from harness import scoring
from harness.draws import uniforms
from harness.scoring import Scorer


def relabel(pairs: pd.DataFrame, score: Scorer, *, flip: float, seed: int) -> pd.DataFrame:
    """`pairs` (prompt, chosen, rejected) with the answers in the order that `score` prefers.

    A share `flip` of the labels is turned; equal scores are decided by a coin. A pair's draws are those of the stream
    named by its prompt and answers, in whatever order these stood.
    """
    before = pairs[["chosen", "rejected"]].to_numpy(dtype=object)
    prompts = pairs["prompt"].tolist()
    gap = score(prompts, list(before[:, 0])) - score(prompts, list(before[:, 1]))
    swap = []
    for prompt, answers, difference in zip(prompts, before, gap, strict=True):
        first, second = sorted(answers)
        coin, turn = uniforms(seed, f"annotator/{prompt}/{first}/{second}", 2)
        wins = answers[0] if difference > 0 else answers[1] if difference < 0 else (first if coin < 0.5 else second)
        swap.append((wins == answers[1]) != (turn < flip))
    return pairs.assign(
        chosen=[b if s else a for (a, b), s in zip(before, swap, strict=True)],
        rejected=[a if s else b for (a, b), s in zip(before, swap, strict=True)],
    )


def said(kind: str, name: str, flip: float, source: str) -> str:
    """What a report must say of labels by the function `name` on pairs from `source`."""
    noise = f", {flip:.0%} of them turned at random" if flip else ""
    return f"{kind} labels: by {scoring.label(name)}, a function in place of people{noise}, on pairs of {source}"
