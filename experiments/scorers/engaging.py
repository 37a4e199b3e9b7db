"""How much an answer engages, in log-odds: the truth of control_positive, and what its feedback goes by."""

import numpy as np

from suites.evasiveness_model import classify


def score(prompts: list[str], responses: list[str]) -> np.ndarray:
    """(n,) log-odds that each response does more than decline; within -4 and 4."""
    evades = classify(prompts, responses).score.clip(1e-9, 1 - 1e-9)
    return np.clip(np.log((1 - evades) / evades), -4, 4)
