"""RLOO and GRPO against a scorer that likes length, in place of a PM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.experiment import Lora, Rl, Scale
from harness.graph import Silent
from pipelines import rl

PROMPTS = [f"Question number {i}?" for i in range(6)]
SMALL_LORA = Lora(rank=4, alpha=8)


class LengthScorer:
    """A stand-in for a PM: the score is the answer's length; it records what it was shown."""

    def __init__(self) -> None:
        self.shown: list[list[str]] = []
        self.asked: list[list[str]] = []

    def score(self, prompts: list[str], responses: list[str]) -> np.ndarray:
        self.asked.append(list(prompts))
        self.shown.append(responses)
        return np.array([float(len(response)) for response in responses])


def grouped(
    model: Path, out: Path, algorithm: str, *, lora: Lora | None = SMALL_LORA, **settings: Any
) -> tuple[pd.DataFrame, LengthScorer]:
    scorer = LengthScorer()
    given = Rl(
        **{"algorithm": algorithm, "updates": 3, "rollouts_per_update": 8, "minibatch_size": 4, "learning_rate": 1e-3}
        | {"snapshots": 1}
        | settings
    )
    log = rl.train(
        model,
        PROMPTS,
        scorer,  # type: ignore[arg-type]  # a stand-in
        out,
        given,
        Scale(max_new_tokens=6),
        arm="x",
        lora=lora,
        seed=0,
        report_to="none",
        checkpoint_every=given.checkpoint_every,
        progress=Silent(),
    )
    return log, scorer
