"""The paper's 16 claims (`claims.yaml`) judged from a run's tables.

Every test is an intersection-union test over bounds: a difference must lie above (or below) 0, a non-inferior one
above -margin, an equivalent one between both margins (Schuirmann's two one-sided tests), an ordering every step above
0. A claim is reproduced when the weakest of its bounds holds, contradicted when one of k fails (Bonferroni over k).
Both are tested at alpha / 2, so a wrong verdict of either kind has probability alpha at most; Holm's correction runs
over the measured claims. What is neither is underpowered. p-values carry an allowance for the bootstrap's own error.
A one-sided p is the larger of the bootstrap's and the t statistic's: with few prompts percentiles alone are too narrow,
which is why draws are expanded as well (Hesterberg 2015, section 3.3).

An interval over prompts says nothing of the next training run: verdicts from one run are of its checkpoints. Over
several seeds of an experiment, seeds and prompts vary together (`harness.stats.seeds`).

Two things come before the test. Things are found to be alike only where a difference could have shown itself (roles of
`Contrast`), and a judge that has not earned it (`judge_quality`) decides nothing: the judge cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import special

from harness.errors import UserError
from harness.stats import Bootstrap, expanded, holm
from harness.stats.seeds import over_seeds
from suites import judge_quality
from suites.claims_contrasts import Contrast, NotMeasured
from suites.claims_measures import MEASURES
from suites.claims_tables import Tables

PATH = Path(__file__).with_name("claims.yaml")
COLUMNS = [
    "id", "statement", "source", "verdict", "effect", "low", "high", "n", "mde", "test", "p", "p_holm", "note", "scope",
]  # fmt: skip
# A bootstrap test at 5 % is wrong in 4.5 to 6 % of simulated studies of 20 to 120 prompts: p is raised by a quarter, so
# that false verdicts stay under 5 %.
ALLOWANCE = 1.25
POWER = 0.85  # aimed at, so that 80 % of simulated studies find what they should, whatever the bootstrap's own error
TESTS = ("difference", "trend", "equivalence", "non_inferiority", "ordering")
REPRODUCED, CONTRADICTED, UNDERPOWERED = "reproduced", "contradicted", "underpowered"
CANNOT_TELL, NOT_MEASURED = "judge cannot tell", "not measured"
CHECKPOINTS, METHOD = "of these checkpoints", "of the method"
SEEDS = 3  # training runs, at least, of which a verdict on the method is drawn
WEIGHED = (REPRODUCED, CONTRADICTED, UNDERPOWERED)  # these verdicts come with numbers


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
    judged_by: tuple[str, ...] = ()
    non_evasive: bool = False
    trained: bool = False
    caveat: str | None = None

    def bounds(self, contrast: Contrast) -> tuple[float, float]:
        """(above, below): what `contrast` must lie between for the claim to hold."""
        test, direction = contrast.test or self.test, contrast.direction or self.direction
        margin = 0.0
        if test in ("equivalence", "non_inferiority", "exceeds"):
            if self.margin is None or self.margin <= 0:
                raise UserError(f"claims.yaml: claim {self.id} needs a margin above 0 for its {test} test; state it")
            margin = self.margin
        if test == "equivalence":
            return -margin, margin
        if test == "exceeds":
            return margin, np.inf
        return (-margin, np.inf) if direction == "increase" else (-np.inf, margin)


@dataclass(frozen=True)
class Evidence:
    """What contrasts say of a claim: `points` to reproduced or contradicted, with two-sided p; n is the fewest
    prompts behind any. `decides` is the claim's weakest contrast, or the one that fails; bounds is how many must hold.
    unshown: the assays and premises that do not hold at this alpha."""

    points: str
    p: float
    decides: Contrast
    bounds: int
    n: int
    unshown: tuple[str, ...] = ()


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
    shown = {"assay": 0.0, "premise": 0.0}  # the largest p of each role
    unshown, bounds = [], 0
    for contrast in contrasts:
        above, below = claim.bounds(contrast)
        for bound, sign in ((above, 1), (below, -1)):
            if not np.isfinite(bound):
                continue
            bounds += 1
            p = one_sided(contrast.value, bound, sign)
            if contrast.role == "claim":
                holds.append(p)
                fails.append(one_sided(contrast.value, bound, -sign))
                whose.append(contrast)
            else:
                shown[contrast.role] = max(shown[contrast.role], p)
                unshown += [contrast.name] if 2 * ALLOWANCE * p > alpha else []
    p_holds, p_fails = max(holds), min(1.0, len(fails) * min(fails))
    decides = whose[int(np.argmax(holds) if p_holds <= p_fails else np.argmin(fails))]
    p_holds, p_fails = max(p_holds, *shown.values()), max(p_fails, shown["premise"])
    return Evidence(
        REPRODUCED if p_holds <= p_fails else CONTRADICTED,
        min(1.0, 2 * ALLOWANCE * min(p_holds, p_fails)),
        decides,
        bounds,
        min(contrast.value.n for contrast in contrasts),
        tuple(unshown),
    )


def verdict(evidence: Evidence, p_adjusted: float, min_n: int, alpha: float = 0.05) -> str:
    """reproduced, contradicted or underpowered."""
    return evidence.points if evidence.n >= min_n and p_adjusted <= alpha else UNDERPOWERED


def one_sided(value: Bootstrap, bound: float, sign: int) -> float:
    """p-value of the hypothesis that the statistic is not above (sign 1) or not below (sign -1) `bound`."""
    if value.n < 2 or len(value.draws) < 2:
        return 1.0
    beyond = sign * (expanded(value).draws - bound)
    share = float((beyond <= 0).mean())
    if value.se == 0:  # nothing varies: the resolution of the bootstrap is all there is
        return max(share, 1 / (1 + len(beyond)))
    return max(share, float(special.stdtr(value.df, sign * (bound - value.estimate) / value.unbiased_se)))


def detectable(value: Bootstrap, bounds: int, tests: int = 1, alpha: float = 0.05) -> float:
    """How far past its bound a true value must lie to be found in 80 % of studies like this one.

    For a test of equivalence: the smallest margin within which two things that are alike are found to be. `bounds` must
    hold together, and are allowed 1 - POWER of misses in all; `tests` claims share alpha, as in Holm's first step.
    """
    if value.n < 2:
        return float("inf")
    level = alpha / (2 * ALLOWANCE * tests)
    reach = special.stdtrit(value.df, 1 - level) + special.ndtri(1 - (1 - POWER) / bounds)
    return float(reach * value.unbiased_se)


def judge(
    results: Path | Sequence[Path], *, seed: int = 0, alpha: float = 0.05, sizes: Sequence[Sequence[Path]] = ()
) -> pd.DataFrame:
    """A verdict for each claim from the tables in `results` (RUN/results): columns `COLUMNS`.

    results: one folder, or one a training seed of the same experiment; sizes: for each of them the folders of the same
    seed whose base models are of other sizes, which claim 14 compares. effect, low and high (1 - alpha interval,
    uncorrected) and mde (`detectable`, corrected) are in the claim's unit, of the contrast that decides; n: prompts; p:
    two-sided, p_holm: Holm's among the claims with at least min_n prompts. A claim not measured says in note what would
    measure it, one that the judge cannot tell, where the judge failed. scope: whose result it is.
    Raises UserError when a folder of `results` is none, or a score is not finite.
    """
    folders = [results] if isinstance(results, Path) else list(results)
    for folder in (*folders, *(other for same_seed in sizes for other in same_seed)):
        if not folder.is_dir():
            raise UserError(f"{folder}: no results folder; give RUN/results of `cai run` or `cai eval --out`")
    others = sizes or [()] * len(folders)
    runs = [Tables(folder, seed, same_seed) for folder, same_seed in zip(folders, others, strict=True)]
    claims = load_claims()
    rows: list[dict[str, Any]] = []
    found: dict[int, tuple[Evidence, list[Contrast]]] = {}
    for claim in claims:
        row = {"id": claim.id, "statement": claim.statement, "source": claim.source, "test": claim.test, "n": 0}
        row["scope"] = METHOD if claim.trained and len(runs) >= SEEDS else CHECKPOINTS
        try:
            contrasts = _contrasts(claim, runs)
        except NotMeasured as missing:
            known = [_said(contrast, alpha) for contrast in missing.known]
            rows.append(row | {"verdict": NOT_MEASURED, "note": "; ".join([str(missing), *known])})
            continue
        if why := _untrusted(claim, runs):
            rows.append(row | {"verdict": CANNOT_TELL, "note": f"the judge cannot tell: {why}"})
            continue
        found[claim.id] = weigh(claim, contrasts, alpha), contrasts
        rows.append(row)
    tested = [claim for claim in claims if claim.id in found and found[claim.id][0].n >= claim.min_n]
    adjusted = holm([found[c.id][0].p for c in tested]) if tested else np.array([])
    p_holm = {claim.id: float(p) for claim, p in zip(tested, adjusted, strict=True)}
    for claim, row in zip(claims, rows, strict=True):
        if claim.id in found:
            evidence, contrasts = found[claim.id]
            decided = verdict(evidence, p_holm.get(claim.id, 1.0), claim.min_n, alpha)
            interval = expanded(evidence.decides.value).interval(1 - alpha)
            row |= {"effect": interval.estimate, "low": interval.low, "high": interval.high, "n": evidence.n}
            row |= {"mde": detectable(evidence.decides.value, evidence.bounds, max(1, len(tested)), alpha)}
            row |= {"verdict": decided, "p": evidence.p, "p_holm": p_holm.get(claim.id)}
            row["note"] = _note(claim, contrasts, evidence, decided, alpha)
    numbers = {column: "float64" for column in ("effect", "low", "high", "mde", "p", "p_holm")}
    return pd.DataFrame(rows, columns=COLUMNS).astype({**numbers, "n": "int64"})


def _contrasts(claim: Claim, runs: Sequence[Tables]) -> list[Contrast]:
    """The claim's contrasts; of several runs, their means over training seeds. Raises NotMeasured as measures do."""
    measured = [MEASURES[claim.measure](run) for run in runs]
    if len(measured) == 1:
        return measured[0]
    if len({tuple(contrast.name for contrast in contrasts) for contrasts in measured}) > 1:
        raise NotMeasured("the runs do not measure the same arms, snapshots or variants; run one experiment by seeds")
    means = (over_seeds([contrast.value for contrast in same]) for same in zip(*measured, strict=True))
    return [replace(contrast, value=value) for contrast, value in zip(measured[0], means, strict=True)]


def _untrusted(claim: Claim, runs: Sequence[Tables]) -> str:
    """Why the judges whose word the claim takes cannot tell; empty where they can."""
    if not claim.judged_by:
        return ""
    missing = "run suite judge in `cai run`, or `cai judge --out RUN`"
    try:
        tests = [run.read("judges", judge_quality.COLUMNS, missing) for run in runs]
    except NotMeasured as error:
        return f"nobody has tested the judge, {error}"
    places = [place.split("/") for place in claim.judged_by]
    return judge_quality.told(
        [
            [doubt for place in places for doubt in judge_quality.doubts(tested, *place, non_evasive=claim.non_evasive)]
            for tested in tests
        ]
    )


def _note(claim: Claim, contrasts: Sequence[Contrast], evidence: Evidence, decided: str, alpha: float) -> str:
    """Unit, margin, every contrast with its interval, and what a reader must know."""
    parts = [claim.unit]
    if claim.margin is not None:
        parts.append(f"margin {claim.margin:g}")
    parts += [_said(contrast, alpha) for contrast in contrasts]
    if sum(contrast.role == "claim" for contrast in contrasts) > 1:
        parts.append(f"effect is that of {evidence.decides.name}")
    if evidence.n < claim.min_n:
        parts.append(f"{evidence.n} of the {claim.min_n} prompts that a verdict needs")
    elif decided == UNDERPOWERED and evidence.unshown:
        parts.append(f"not shown, and needed for a verdict: {', '.join(evidence.unshown)}")
    return "; ".join([*parts, *([claim.caveat] if claim.caveat else [])])


def _said(contrast: Contrast, alpha: float) -> str:
    interval = expanded(contrast.value).interval(1 - alpha)
    return f"{contrast.name}: {interval.estimate:.3g} [{interval.low:.3g}, {interval.high:.3g}]"
