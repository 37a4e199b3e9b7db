"""How evasive an answer is, in log-odds of the harness's own classifier: what the "people" of control_positive like."""

import numpy as np

from suites.evasiveness_model import classify


def score(prompts: list[str], responses: list[str]) -> np.ndarray:
    """(n,) log-odds that each response only declines; within -4 and 4, so that no answer counts beyond all others."""
    evades = classify(prompts, responses).score.clip(1e-9, 1 - 1e-9)
    return np.clip(np.log(evades / (1 - evades)), -4, 4)
