"""The paper's 16 claims (`claims.yaml`) judged from a run's tables.

Every test is an intersection-union test over bounds: a difference must lie above (or below) 0, a non-inferior one
above -margin, an equivalent one between both margins (Schuirmann's two one-sided tests), an ordering every step above
0. A claim is reproduced when the weakest of its bounds holds, contradicted when one of k fails (Bonferroni over k).
Both are tested at alpha / 2, so a wrong verdict of either kind has probability alpha at most; Holm's correction runs
over the measured claims. What is neither is underpowered. p-values carry an allowance for the bootstrap's own error.
A one-sided p is the larger of the bootstrap's and the t statistic's: with few prompts percentiles alone are too narrow,
which is why draws are expanded as well (Hesterberg 2015, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import special

from harness.errors import UserError
from harness.stats import Bootstrap, Interval, holm, minimum_detectable_effect
from suites.claims_contrasts import Contrast, NotMeasured
from suites.claims_measures import MEASURES, Tables

PATH = Path(__file__).with_name("claims.yaml")
COLUMNS = ["id", "statement", "source", "verdict", "effect", "low", "high", "n", "mde", "test", "p", "p_holm", "note"]
# A bootstrap test at 5 % is wrong in 4.5 to 6 % of simulated studies of 20 to 120 prompts: p is raised by a quarter, so
# that false verdicts stay under 5 %.
ALLOWANCE = 1.25
TESTS = ("difference", "trend", "equivalence", "non_inferiority", "ordering")
REPRODUCED, CONTRADICTED, UNDERPOWERED, NOT_MEASURED = "reproduced", "contradicted", "underpowered", "not measured"


@dataclass(frozen=True)
class Claim:
    """A row of claims.yaml, whose head explains the fields."""

    id: int
    statement: str
    source: str
    measure: str
    unit: str
    test: str
    direction: str
    min_n: int
    margin: float | None = None
    margin_reason: str | None = None
    caveat: str | None = None

    def bounds(self, contrast: Contrast) -> tuple[float, float]:
        """(above, below): what `contrast` must lie between for the claim to hold."""
        test, direction = contrast.test or self.test, contrast.direction or self.direction
        margin = 0.0
        if test in ("equivalence", "non_inferiority"):
            if self.margin is None or self.margin <= 0:
                raise UserError(f"claims.yaml: claim {self.id} needs a margin above 0 for its {test} test; state it")
            margin = self.margin
        if test == "equivalence":
            return -margin, margin
        return (-margin, np.inf) if direction == "increase" else (-np.inf, margin)


@dataclass(frozen=True)
class Evidence:
    """What contrasts say of a claim: `points` to reproduced or contradicted, with two-sided p; n is the fewest
    prompts behind any. interval and mde are those of the contrast that decides: the weakest, or the one that fails."""

    points: str
    p: float
    interval: Interval
    mde: float
    n: int


def load_claims(path: Path = PATH) -> list[Claim]:
    """The claims. Raises UserError where the file does not hold what `Claim` needs."""
    known = {f.name for f in fields(Claim)}
    claims = []
    for row in yaml.safe_load(path.read_text(encoding="utf-8")):
        if unknown := set(row) - known:
            raise UserError(f"{path}: claim {row.get('id')} has unknown field {sorted(unknown)[0]}; remove it")
        try:
            claim = Claim(**row)
        except TypeError as error:
            raise UserError(f"{path}: claim {row.get('id')}: {error}; fill it in") from None
        if claim.test not in TESTS or claim.measure not in MEASURES:
            raise UserError(f"{path}: claim {claim.id} has an unknown test or measure; choose one that exists")
        claims.append(claim)
    return claims


def weigh(claim: Claim, contrasts: Sequence[Contrast], alpha: float = 0.05) -> Evidence:
    """The evidence of `contrasts` for and against `claim`, before any correction for other claims."""
    holds, fails, whose = [], [], []
    for number, contrast in enumerate(contrasts):
        above, below = claim.bounds(contrast)
        for bound, sign in ((above, 1), (below, -1)):
            if np.isfinite(bound):
                holds.append(one_sided(contrast.value, bound, sign))
                fails.append(one_sided(contrast.value, bound, -sign))
                whose.append(number)
    p_holds, p_fails = max(holds), min(1.0, len(fails) * min(fails))
    points = REPRODUCED if p_holds <= p_fails else CONTRADICTED
    decides = contrasts[whose[int(np.argmax(holds) if points == REPRODUCED else np.argmin(fails))]].value
    return Evidence(
        points,
        min(1.0, 2 * ALLOWANCE * min(p_holds, p_fails)),
        expanded(decides).interval(1 - alpha),
        minimum_detectable_effect(expanded(decides).se, alpha=alpha),
        min(contrast.value.n for contrast in contrasts),
    )


def verdict(evidence: Evidence, p_adjusted: float, min_n: int, alpha: float = 0.05) -> str:
    """reproduced, contradicted or underpowered."""
    return evidence.points if evidence.n >= min_n and p_adjusted <= alpha else UNDERPOWERED


def expanded(value: Bootstrap) -> Bootstrap:
    """`value` with draws as wide as a t interval on n - 1 degrees of freedom asks for."""
    if value.n < 2:
        return value
    t, z = special.stdtrit(value.n - 1, 0.975), special.ndtri(0.975)
    factor = np.sqrt(value.n / (value.n - 1)) * t / z
    return Bootstrap(value.estimate, value.estimate + factor * (value.draws - value.estimate), value.n)


def one_sided(value: Bootstrap, bound: float, sign: int) -> float:
    """p-value of the hypothesis that the statistic is not above (sign 1) or not below (sign -1) `bound`."""
    if value.n < 2 or len(value.draws) < 2:
        return 1.0
    beyond = sign * (expanded(value).draws - bound)
    share = float((beyond <= 0).mean())
    se = value.se * np.sqrt(value.n / (value.n - 1))
    if se == 0:  # nothing varies: the resolution of the bootstrap is all there is
        return max(share, 1 / (1 + len(beyond)))
    return max(share, float(special.stdtr(value.n - 1, sign * (bound - value.estimate) / se)))


def judge(results: Path, *, seed: int = 0, alpha: float = 0.05) -> pd.DataFrame:
    """A verdict for each claim from the tables in `results` (RUN/results): columns `COLUMNS`.

    effect, low and high (1 - alpha interval, uncorrected) and mde are in the claim's unit, of the contrast that
    decides; n: prompts; p: two-sided, p_holm: Holm's among the claims with at least min_n prompts; a claim not measured
    says in note what would measure it. Raises UserError when `results` is no folder or a score is not finite.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no results folder; give RUN/results of `cai run` or `cai eval --out`")
    tables, claims = Tables(results, seed), load_claims()
    rows: list[dict[str, Any]] = []
    found: dict[int, Evidence] = {}
    for claim in claims:
        row = {"id": claim.id, "statement": claim.statement, "source": claim.source, "test": claim.test}
        try:
            contrasts = MEASURES[claim.measure](tables)
        except NotMeasured as missing:
            rows.append(row | {"verdict": NOT_MEASURED, "n": 0, "note": str(missing)})
            continue
        evidence = found[claim.id] = weigh(claim, contrasts, alpha)
        interval = evidence.interval
        row |= {"effect": interval.estimate, "low": interval.low, "high": interval.high, "mde": evidence.mde}
        rows.append(row | {"n": evidence.n, "p": evidence.p, "note": _note(claim, contrasts, evidence, alpha)})
    table = pd.DataFrame(rows, columns=COLUMNS)
    tested = [claim for claim in claims if claim.id in found and found[claim.id].n >= claim.min_n]
    adjusted = holm([found[c.id].p for c in tested]) if tested else np.array([])
    p_holm = {claim.id: float(p) for claim, p in zip(tested, adjusted, strict=True)}
    table["p_holm"] = table["id"].map(p_holm)
    for place, claim in enumerate(claims):
        if claim.id in found:
            table.loc[place, "verdict"] = verdict(found[claim.id], p_holm.get(claim.id, 1.0), claim.min_n, alpha)
    numbers = {column: "float64" for column in ("effect", "low", "high", "mde", "p", "p_holm")}
    return table.astype({**numbers, "n": "int64"})


def _note(claim: Claim, contrasts: Sequence[Contrast], evidence: Evidence, alpha: float) -> str:
    """Unit, margin, every contrast with its interval, and what a reader must know."""
    parts = [claim.unit]
    if claim.margin is not None:
        parts.append(f"margin {claim.margin:g}")
    intervals = [(c.name, expanded(c.value).interval(1 - alpha)) for c in contrasts]
    parts += [f"{name}: {i.estimate:.3g} [{i.low:.3g}, {i.high:.3g}]" for name, i in intervals]
    if evidence.n < claim.min_n:
        parts.append(f"{evidence.n} of the {claim.min_n} prompts that a verdict needs")
    return "; ".join([*parts, *([claim.caveat] if claim.caveat else [])])
