"""What must come out of a control (`expect:` of an experiment file): a few typed expectations, checked at plan time.

`suites.expectations` holds a run's results against them; `cai control` runs both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Verdict = Literal[
    "better", "equivalent", "no worse", "worse", "differs", "cannot tell", "judge cannot tell", "not measured"
]
Arms = tuple[str, ...]


class _Expectation(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class GateSays(_Expectation):
    """Every metric of the shipped gate, of `candidate` held against `baseline`, gets one of `verdicts`."""

    baseline: str
    """The arm to compare with."""
    candidate: str
    """The arm that is judged."""
    verdicts: tuple[Verdict, ...] = Field(min_length=1)
    """The verdicts that count as met."""


class Expect(_Expectation):
    """Intervals are 95 %, over prompts; a change is that of the last snapshot from the first, paired by prompt."""

    reward_rises: Arms = ()
    """Arms whose score by their own PM must rise over RL: interval above 0."""
    truth_rises: Arms = ()
    """Arms whose score by the deciding judge (or the gold PM) must rise: interval above 0."""
    overoptimised: Arms = ()
    """Arms whose reward must rise while the truth stays below a rise of a fifth of its standard deviation."""
    more_evasive: tuple[str, str] | None = None
    """Two arms, the first of which must be more evasive than the second: interval of the difference above 0."""
    no_decisive_claims: bool = False
    """Whether no claim may be reproduced or contradicted."""
    gate: GateSays | None = None
    """What the shipped gate must say of two arms."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self == type(self).model_construct():
            raise ValueError("expects nothing; name one expectation, or leave expect out")
        return self

    def along(self) -> Iterator[tuple[str, str]]:
        """(expectation, arm) of those about what happens along RL."""
        for name in ("reward_rises", "truth_rises", "overoptimised"):
            for arm in getattr(self, name):
                yield name, arm

    def faults(self, experiment: Any) -> Iterator[str]:
        """What of it `experiment` cannot show."""
        named = {arm: f"{name}: {arm}" for name, arm in self.along()}
        for arm, where in named.items():
            if arm in experiment.arms and arm in ("pretrained", "sl_cai", "best_of_n"):
                yield f"{where} has no RL; name an arm that has"
        if named and experiment.rl.algorithm == "dpo":
            yield "rl.algorithm dpo has no PM whose score could be followed along RL; use ppo or rloo"
        if named and not experiment.rl.snapshots:
            yield "without rl.snapshots nothing is followed along RL; ask for one or more"
        if self.more_evasive is not None:
            named |= {arm: f"more_evasive: {arm}" for arm in self.more_evasive}
        if self.gate is not None:
            named |= {arm: f"gate: {arm}" for arm in (self.gate.baseline, self.gate.candidate)}
        yield from (
            f"{where} is no arm of this experiment" for arm, where in named.items() if arm not in experiment.arms
        )
        for needed, suite in ((list(self.along()), "goodharting"), (self.more_evasive, "evasiveness")):
            if needed and suite not in experiment.suites:
                yield f"needs suite {suite}; add it to suites"
