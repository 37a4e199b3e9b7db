"""What a language model reads and writes that compares two answers (`harness.compare`)."""

from __future__ import annotations

import math

from harness import compare
from harness.estimate import effort
from harness.estimate.effort import Effort, Shape
from harness.estimate.lengths import TURN, Known, tokens

QUESTION = tokens(compare._TEXT)


def asked(
    shape: Shape, pairs: int, known: Known, kind: str, question: float, shared: float = 0, *, cot: bool = False
) -> Effort:
    """A language model compares two answers, in both orders."""
    scale = known.experiment.scale
    both = 2 * (2 * scale.max_new_tokens + 12 + TURN)  # the options, twice, and the answer's beginning
    length = QUESTION + question + known.prompt[kind] + both
    work = effort.read(shape, pairs, length, logits=2)
    work += effort.read(shape, math.ceil(2 * pairs / scale.batch_size), shared)
    if cot:
        think = known.experiment.feedback.cot_tokens
        work += effort.sample(shape, 2 * pairs, think, scale.batch_size, 1, shared=0)
    return work
