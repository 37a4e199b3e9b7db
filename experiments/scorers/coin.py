"""A number that has nothing to do with the answer: the "people" and the feedback of control_null."""

import numpy as np

from harness.draws import uniforms


def score(prompts: list[str], responses: list[str]) -> np.ndarray:
    """(n,) uniform draws between -2 and 2, each a function of its prompt and response alone."""
    drawn = [uniforms(0, f"{p}/{r}", 1)[0] for p, r in zip(prompts, responses, strict=True)]
    return 4 * np.array(drawn) - 2
