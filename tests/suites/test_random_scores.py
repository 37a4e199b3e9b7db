"""Samples of one model dealt at random to six arms and scored with random numbers: `cai claims` decides nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from suites import claims, evaluate

Cai = Callable[..., tuple[int, str, str]]
ARMS = ("pretrained", "helpful_only", "sl_cai", "hh_rlhf", "rl_cai", "rl_cai_cot")
ROUNDS = 20
# Whatever it is asked, and differently every time.
RANDOM = """
import random

def score(prompts, responses):
    return [random.gauss(0, {spread}) for _ in responses]
"""


def dealt(rng: np.random.Generator, spread: float) -> pd.DataFrame:
    """Twelve answers of one model to each of 60 prompts, two to each arm, with scores that know nothing of them."""
    openings = ["I am sorry, I cannot help with that", "Here is what I would do", "It depends on what you need"]
    words = ["water", "garden", "letter", "friend", "paper", "morning", "answer", "reason", "kettle", "window"]
    rows = []
    for number in range(60):
        answers = [f"{openings[rng.integers(3)]}: {' '.join(rng.choice(words, 8))}." for _ in range(2 * len(ARMS))]
        for place, answer in enumerate(rng.permutation(answers)):
            kind = "harmless" if number % 2 else "helpful"
            rows.append([f"Question {number}?", str(answer), ARMS[place // 2], place % 2, kind, rng.normal(0, spread)])
    table = pd.DataFrame(rows, columns=["prompt", "response", "arm", "sample", "kind", "score"])
    return table.assign(step=pd.array([pd.NA] * len(table), dtype="Int64"))


@pytest.mark.parametrize("judge", ["column", "scorer"])
def test_random_scores_decide_nothing(cai: Cai, tmp_path: Path, judge: str) -> None:
    rounds = ROUNDS if judge == "column" else 4  # the scorer is asked anew for its tests
    for number in range(rounds):
        rng, spread = np.random.default_rng(number), [0.01, 1.0, 10.0][number % 3]
        file = tmp_path / f"random_{number}.py"
        file.write_text(RANDOM.format(spread=spread))
        name = "column:score" if judge == "column" else f"scorer:{file}"
        table, run = dealt(rng, spread), tmp_path / f"run-{number}"
        suites = ["elo", "pm_score", "evasiveness", "goodharting"]
        for suite, result in evaluate.measure(table, suites, judge=name, seed=number).items():
            result.save(run / "results" / suite)
        tested = evaluate.judge_tests(table, suites, name, seed=number)
        if len(tested):
            tested.to_parquet(run / "results" / "judges.parquet")
        code, printed, said = cai("claims", run, "--json")
        assert code == 0, said
        verdicts = {row["id"]: row["verdict"] for row in json.loads(printed)}
        assert not {verdicts[i] for i in verdicts} & {claims.REPRODUCED, claims.CONTRADICTED}, verdicts
        assert {verdicts[i] for i in (5, 6, 7)} == {claims.CANNOT_TELL}
