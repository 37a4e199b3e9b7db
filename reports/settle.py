"""How many votes would settle which of two arms is preferred: the arithmetic behind the Arena's advice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from harness.stats import sample_size

SHARES = (0.55, 0.6, 0.65, 0.7, 0.75)  # of votes that the better arm gets, a tie being half a vote for each
ENOUGH = 20  # votes before their share of ties is believed


@dataclass(frozen=True)
class Advice:
    """votes: needed in all, over all pairs of arms; cast: so far; more: still to cast; prompts: voted on and there."""

    votes: int
    cast: int
    more: int
    prompts: int
    available: int


def advise(cast: pd.DataFrame, arms: int, share: float, prompts: int) -> Advice:
    """How many votes tell any two of `arms` arms apart where the better one would get `share` of the votes.

    With 80 % power at 5 %, by a fit of Bradley-Terry over all votes, spread evenly over pairs and prompts. Two arms
    that meet directly in N votes need N = sample_size(sd, share - 1/2). Of K arms each pair also learns from the other
    K - 2, so that K / 2 times as much is known of it (resistance of a complete graph): (K - 1) N votes do in all.
    cast: the votes so far (columns winner, prompt), whose ties make a vote less noisy. prompts: how many there are.
    """
    ties = float((cast["winner"] == "tie").sum()) / max(len(cast), ENOUGH)
    deviation = math.sqrt((1 - ties) / 4)
    votes = (max(arms, 2) - 1) * sample_size(deviation, share - 0.5)
    return Advice(votes, len(cast), max(0, votes - len(cast)), int(cast["prompt"].nunique()), prompts)


def told_apart(differences: pd.DataFrame) -> tuple[list[str], list[str]]:
    """(pairs whose Elo differs, as "a over b"; pairs that cannot be told apart) of suite elo's table differences."""
    apart, open_ = [], []
    rows = differences[["arm_a", "arm_b", "low", "high"]].to_numpy(dtype=object).tolist()
    for one, other, low, high in rows:
        if low > 0:
            apart.append(f"{one} over {other}")
        elif high >= 0 and one < other:
            open_.append(f"{one} and {other}")
    return apart, open_
