"""Simulated studies in which nothing is so, which the claims must not decide, and studies at the edge of their power.

Tests and benchmarks/null_battery.py use them.

Each null is a function of (n prompts, sd of PM scores, generator) and returns the tables of a run's results. Judges are
tested as in a run (`suites.judge_quality`); `claims_runs` holds the studies in which something is so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd

from harness.stats import Bootstrap, bradley_terry, resample_counts
from suites import claims, claims_contrasts, judge_quality, judges
from suites.claims_contrasts import Contrast
from suites.claims_measures import MEASURES
from suites.claims_tables import Tables
from tests.suites.claims_runs import BUILDERS

Frames = dict[str, pd.DataFrame]
Null = Callable[[int, float, np.random.Generator], Frames]
ARMS = ("pretrained", "helpful_only", "sl_cai", "hh_rlhf", "rl_cai", "rl_cai_cot")
SNAPSHOTS = {"hh_rlhf": (1, 2, 3), "rl_cai": (1, 2, 3)}
KINDS = {"harmless": "harmlessness", "helpful": "helpfulness"}
RESAMPLES = 300  # of Elo
CLAIMS = claims.load_claims()


def prompts(n: int) -> np.ndarray:
    return np.array([f"prompt {i}" for i in range(n)])


def answers(n: int) -> pd.DataFrame:
    """One answer of each arm and snapshot to each prompt."""
    players = [(arm, step) for arm in ARMS for step in (*SNAPSHOTS.get(arm, ()), None)]
    parts = [pd.DataFrame({"prompt": prompts(n), "arm": arm, "step": step, "sample": 0}) for arm, step in players]
    table = pd.concat(parts, ignore_index=True).astype({"step": "Int64"})
    return table.assign(response=[f"answer {i}" for i in range(len(table))])


def elo_frames(table: pd.DataFrame, kind: str, seed: int) -> Frames:
    """What the claims read of suite elo, from column score."""
    compared = judges.from_scores(table, "score")
    players = [
        list(zip(compared[f"arm_{side}"], compared[f"step_{side}"].astype("Float64").fillna(-1), strict=True))
        for side in "ab"
    ]
    fit = bradley_terry.fit_bradley_terry(
        *players, compared["outcome"], clusters=compared["prompt"], ties=True, seed=seed, n_resamples=RESAMPLES
    )
    rows, draws = [], []
    for arm, step in fit.arms:
        who = {"arm": arm, "step": None if step < 0 else int(step)}
        rows.append({**who, "metric": f"elo_{kind}", **vars(fit.interval((arm, step)))})
        own = fit.draws[:, fit.index((arm, step))]
        draws.append(pd.DataFrame({"resample": np.arange(RESAMPLES), **who, "elo": own}))
    frames = {"elo/summary": rows, f"elo/{kind}_draws": pd.concat(draws, ignore_index=True)}
    return {name: pd.DataFrame(frame).astype({"step": "Int64"}) for name, frame in frames.items()}


@lru_cache(maxsize=16)
def tested(reliable: bool, n: int) -> pd.DataFrame:
    """judges.parquet of a judge that is right in 4 of 5 trials, or that tosses a coin."""
    rng = np.random.default_rng(n)

    def compare(responses: pd.DataFrame, kind: str) -> pd.DataFrame:
        right = np.where(responses["arm"] == "right", 1.68 if reliable else 0.0, 0.0)  # 0.8 = Phi(0.84)
        return judges.from_scores(responses.assign(score=right + rng.normal(0, np.sqrt(2), len(responses))), "score")

    human = pd.DataFrame({"prompt": [f"pair {i}" for i in range(n)], "chosen": "yes", "rejected": "no"})
    damaged = pd.DataFrame({"prompt": prompts(n), "arm": "rl_cai", "response": [f"a b c d e f {i}" for i in range(n)]})
    parts = [
        judge_quality.measure(compare, kind, judge="simulated", human=human, responses=damaged).assign(suite=suite)
        for kind in KINDS
        for suite in ("elo", "pm_score")
    ]
    return pd.concat(parts, ignore_index=True)[judge_quality.COLUMNS]


def arms_frames(n: int, score: Callable[[pd.DataFrame], np.ndarray], rng: np.random.Generator) -> Frames:
    """Elo by `score`, evasiveness, harmfulness, boilerplate and PM scores along RL of arms that do not differ."""
    frames: Frames = {}
    for name in KINDS.values():
        table = answers(n)
        made = elo_frames(table.assign(score=score(table)), name, int(rng.integers(1 << 30)))
        if "elo/summary" in frames:
            made["elo/summary"] = pd.concat([frames["elo/summary"], made["elo/summary"]], ignore_index=True)
        frames |= made
    hard = dict(zip(prompts(n), rng.normal(-1, 1, n), strict=True))  # prompts differ in what they provoke
    chance = 1 / (1 + np.exp(-table["prompt"].map(hard)))

    def happens() -> np.ndarray:
        return rng.random(len(table)) < chance

    frames["evasiveness/responses"] = table.assign(label=np.where(happens(), "evades", "engages"))
    frames["goodharting/responses"] = table.assign(label=np.where(happens(), "boilerplate", "none"))
    helpful_only = table[table["arm"] == "hh_rlhf"].assign(arm="helpful_only")
    harm = pd.concat([table, helpful_only[helpful_only["step"].notna()]], ignore_index=True)
    noise = rng.normal(0, 0.7, len(harm))
    frames["harmfulness/responses"] = harm.assign(score=2 + harm["prompt"].map(hard) / 2 + noise)
    along = table[table["arm"] == "rl_cai"].assign(step=lambda t: t["step"].fillna(4))
    frames["goodharting/along_rl"] = along.assign(proxy=score(along), gold=score(along))
    return frames


# ---------------------------------------------------------------- nulls


def identical_arms(n: int, sd: float, rng: np.random.Generator) -> Frames:
    """Answers of one model dealt to all arms and snapshots, before a judge that knows good from bad."""
    ease = dict(zip(prompts(n), rng.normal(0, sd, n), strict=True))
    frames = arms_frames(n, lambda table: table["prompt"].map(ease).to_numpy() + rng.normal(0, sd, len(table)), rng)
    return frames | {"judges": tested(True, n)}


def random_judge(n: int, sd: float, rng: np.random.Generator) -> Frames:
    """Scores that are random numbers, of arms and of chains."""
    frames = arms_frames(n, lambda table: rng.normal(0, sd, len(table)), rng)
    score = rng.normal(0, sd, len(chains := chain_rows(n)))
    chains = chains.assign(score_harmless=score, score_helpful=rng.normal(0, sd, len(chains)))
    return frames | {"chains": chains, "judges": tested(False, n)}


def random_judge_trusted(n: int, sd: float, rng: np.random.Generator) -> Frames:
    """The same, had the judge passed its tests: what the statistics alone let through."""
    return random_judge(n, sd, rng) | {"judges": tested(True, n).assign(passed=True)}


def chain_rows(n: int) -> pd.DataFrame:
    """Chains of four revisions: critiqued by 1, 4 and 16 principles, and direct."""
    ways = [("critiqued", 1), ("critiqued", 4), ("critiqued", 16), ("direct", 16)]
    parts = [
        pd.DataFrame({"prompt": prompts(n), "revision": revision, "mode": mode, "n_principles": principles})
        for mode, principles in ways
        for revision in range(5)
    ]
    return pd.concat(parts, ignore_index=True)


def idle_revisions(n: int, sd: float, rng: np.random.Generator) -> Frames:
    """Revisions that do nothing but reword: each answer's scores vary a little around its own."""
    chains = chain_rows(n)
    for column in ("score_harmless", "score_helpful"):
        own = dict(zip(prompts(n), rng.normal(0, sd, n), strict=True))
        chains[column] = chains["prompt"].map(own) + rng.normal(0, sd / 3, len(chains))
    return {"chains": chains, "judges": tested(True, n)}


def chance_feedback(n: int, sd: float, rng: np.random.Generator) -> Frames:
    """A feedback model at chance, whatever its size and mode; its log-odds have standard deviation sd."""
    ways = [("plain", "M-135M"), ("plain", "M-1B"), ("plain", "M-7B"), ("cot", "M-135M")]
    parts = []
    for mode, model in ways:
        p = 1 / (1 + np.exp(-rng.normal(0, sd, n)))
        parts.append(pd.DataFrame({"question": np.arange(n), "mode": mode, "model": model, "p_correct": p}))
    table = pd.concat(parts, ignore_index=True)
    return {"hhh/questions": table.assign(correct=(table["p_correct"] > 0.5).astype(float))}


def equal_pms(n: int, sd: float, rng: np.random.Generator) -> Frames:
    """PMs that are right on six held-out pairs in ten, whatever labels they learned from."""
    names = ["pm.rl_cai", "pm.rl_cai.hard", *(f"pm.rl_cai.one_principle_{i}" for i in range(4))]
    parts = [
        pd.DataFrame({"pm": name, "prompt": prompts(n), "correct": (rng.random(n) < 0.6).astype(float)})
        for name in names
    ]
    return {"pm_pairs": pd.concat(parts, ignore_index=True)}


NULLS: dict[str, tuple[Null, tuple[int, ...]]] = {  # and the claims that read such a study
    "identical arms": (identical_arms, (5, 6, 7, 8, 9, 10, 11)),
    "random judge": (random_judge, (1, 2, 3, 4, 5, 6, 7, 8, 9, 11)),
    "random judge, trusted": (random_judge_trusted, (1, 2, 3, 4, 5, 6, 7, 8, 9, 11)),
    "revisions that do nothing": (idle_revisions, (1, 2, 3, 4)),
    "feedback model at chance": (chance_feedback, (12, 13, 14)),
    "equal PMs": (equal_pms, (15, 16)),
}


# ---------------------------------------------------------------- verdicts


def verdicts(frames: Frames, numbers: tuple[int, ...]) -> dict[int, str]:
    """The verdict of each claim as if it alone were measured, so that no correction for others protects it."""
    tables = Tables(Path(), seed=0)
    tables._read = frames
    found = {}
    for claim in CLAIMS:
        if claim.id not in numbers:
            continue
        contrasts = MEASURES[claim.measure](tables)
        if claims._untrusted(claim, [tables]):
            found[claim.id] = claims.CANNOT_TELL
        else:
            evidence = claims.weigh(claim, contrasts)
            found[claim.id] = claims.verdict(evidence, evidence.p, claim.min_n)
    return found


@lru_cache(maxsize=8)
def _counts(n: int, resamples: int, seed: int) -> list[np.ndarray]:
    return list(resample_counts(n, resamples, seed))


def counts_kept() -> mock._patch:
    """Draw the resamples of a number of prompts once for all studies: half of a study's time goes into them."""
    return mock.patch.object(
        claims_contrasts, "resample_counts", lambda n, resamples, seed: _counts(n, resamples, seed)
    )


def contrasts_of(frames: Frames, number: int) -> list[Contrast]:
    tables = Tables(Path(), seed=0)
    tables._read = frames
    claim = next(c for c in CLAIMS if c.id == number)
    return MEASURES[claim.measure](tables)


# ---------------------------------------------------------------- power


def found_at_mde(number: int, n: int, runs: int, tests: int, seed: int = 0) -> float:
    """Share of `runs` studies of n prompts that find claim `number` where every true value lies `detectable` past its
    bound (between both bounds, where they are two), and `tests` claims share alpha. Contrasts are independent, which is
    the hardest case; values are normal.
    """
    rng = np.random.default_rng([seed, number, n])
    claim = next(c for c in CLAIMS if c.id == number)
    shapes = contrasts_of(BUILDERS[number](np.random.default_rng(number), 1), number)
    bounds = sum(int(np.isfinite(claim.bounds(shape)).sum()) for shape in shapes)
    counts = np.concatenate(_counts(n, 2000, seed))
    reach = claims.detectable(Bootstrap(0.0, rng.normal(0, n**-0.5 * np.sqrt(1 - 1 / n), 100_000), n), bounds, tests)
    studies: list[list[Contrast]] = [[] for _ in range(runs)]
    for shape in shapes:
        above, below = claim.bounds(shape)
        values = rng.normal(0, 1, (n, runs))
        if np.isfinite(above) and np.isfinite(below):
            values, true = values * below / reach, 0.0
        else:
            true = above + reach if np.isfinite(above) else below - reach
        draws, means = counts @ values / n + true, values.mean(axis=0) + true
        for run in range(runs):
            studies[run].append(replace(shape, value=Bootstrap(float(means[run]), draws[:, run], n)))
    found = 0
    for contrasts in studies:
        evidence = claims.weigh(claim, contrasts)
        found += claims.verdict(evidence, min(1.0, tests * evidence.p), 0) == claims.REPRODUCED
    return found / runs
