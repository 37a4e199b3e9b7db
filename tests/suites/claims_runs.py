"""Simulated runs: the tables that each claim reads, with the paper's finding in them or its opposite.

Each builder takes a generator and a side: 1 as the paper says, -1 the opposite, 0 no difference.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from suites import elo, judge_quality

Frames = dict[str, pd.DataFrame]
N = 120  # prompts
PROMPTS = np.array([f"prompt {i}" for i in range(N)])


def scores(rng: np.random.Generator, mean: float, spread: float = 1.0) -> np.ndarray:
    return rng.normal(mean, spread, N)


def chains(
    rng: np.random.Generator, step: float, column: str, own: np.ndarray | None = None, **extra: object
) -> pd.DataFrame:
    own = scores(rng, 0) if own is None else own
    revisions = [
        pd.DataFrame({"prompt": PROMPTS, "revision": r, column: own + r * step + scores(rng, 0, 0.3)}) for r in range(5)
    ]
    return pd.concat(revisions, ignore_index=True).assign(**{"mode": "critiqued", "n_principles": 16} | extra)


def revised(column: str, sign: int) -> Callable[[np.random.Generator, int], Frames]:
    return lambda rng, side: {"chains": chains(rng, 0.5 * side * sign, column)}


def by_number(rng: np.random.Generator, side: int) -> Frames:
    steps = {1: 0.5, 4: 0.5, 16: 0.5} if side > 0 else {1: 0.1, 4: 0.5, 16: 0.5}  # revisions work in either case
    own = scores(rng, 0)  # one prompt is as hard with any number of principles
    tables = [chains(rng, step, "score_harmless", own, n_principles=n) for n, step in steps.items()]
    return {"chains": pd.concat(tables, ignore_index=True)}


def by_mode(rng: np.random.Generator, side: int) -> Frames:
    critiqued = chains(rng, 0.5, "score_harmless")
    direct = chains(rng, 0.5 - 0.4 * side, "score_harmless", mode="direct")
    return {"chains": pd.concat([critiqued, direct], ignore_index=True)}


def elo_tables(rng: np.random.Generator, **of_kind: dict[str, float]) -> Frames:
    """Suite elo on simulated votes; strengths in log-odds."""
    tables = {}
    for kind, strengths in of_kind.items():
        arms = list(strengths)
        rows = [
            {"prompt": p, "arm_a": a, "arm_b": b, "outcome": float(rng.random() < 1 / (1 + np.exp(-gap)))}
            for p in PROMPTS
            for i, a in enumerate(arms)
            for b in arms[i + 1 :]
            for gap in [strengths[a] - strengths[b]]
        ]
        votes = pd.DataFrame(rows)
        for side in "ab":  # "hh_rlhf@3" is a snapshot
            votes[[f"arm_{side}", f"step_{side}"]] = votes[f"arm_{side}"].str.partition("@")[[0, 2]]
            votes[f"step_{side}"] = pd.to_numeric(votes[f"step_{side}"]).astype("Int64")
        result = elo.run(votes, metric=f"elo_{kind}", anchor=arms[0], n_resamples=400)
        tables |= {f"elo/{kind}_{name}": table for name, table in result.tables.items()}
        before = tables.get("elo/summary", result.summary.iloc[:0])
        tables["elo/summary"] = pd.concat([before, result.summary], ignore_index=True)
    return tables


def order(rng: np.random.Generator, side: int) -> Frames:
    arms = ["helpful_only", "sl_cai", "hh_rlhf", "rl_cai"]
    return elo_tables(rng, harmlessness={arm: 1.2 * i * side for i, arm in enumerate(arms)})


def kept(rng: np.random.Generator, side: int) -> Frames:
    return elo_tables(rng, helpfulness={"hh_rlhf": 0, "rl_cai": 0.6 if side > 0 else -1.2, "pretrained": -1.5})


def traded(rng: np.random.Generator, side: int) -> Frames:
    return elo_tables(
        rng, harmlessness={"rl_cai": 0, "rl_cai_cot": side}, helpfulness={"rl_cai": 0, "rl_cai_cot": -side}
    )


def answers(rng: np.random.Generator, rates: dict[tuple[str, int | None], float], held: str, rest: str) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {"prompt": np.repeat(PROMPTS, 2), "response": "r", "arm": arm, "step": step, "sample": np.tile([0, 1], N)}
        ).assign(label=np.where(rng.random(2 * N) < rate, held, rest))
        for (arm, step), rate in rates.items()
    ]
    return pd.concat(parts, ignore_index=True).astype({"step": "Int64"})


def evasive(rng: np.random.Generator, side: int) -> Frames:
    rates: dict[tuple[str, int | None], float] = {("hh_rlhf", None): 0.4 + 0.2 * side, ("rl_cai", None): 0.4}
    rates[("rl_cai", 10)] = 1.0  # an early snapshot is not the final model
    harmless = elo_tables(rng, harmlessness={"helpful_only": -1.5, "hh_rlhf": 0, "rl_cai": 0.6})
    return {"evasiveness/responses": answers(rng, rates, "evades", "engages")} | harmless


def evasive_late(rng: np.random.Generator, side: int) -> Frames:
    rates: dict[tuple[str, int | None], float] = {("pretrained", None): 0.3}
    for place, step in enumerate([1, 2, 3, None]):
        rates["hh_rlhf", step] = 0.3 + 0.12 * (place + 1) * side
    hh = {"pretrained": 0.0, "hh_rlhf@1": 1.0, "hh_rlhf@2": 2.5, "hh_rlhf@3": 2.5, "hh_rlhf": 2.5 - 1.2 * side}
    strengths = hh | {"sl_cai": 1.0, "rl_cai@1": 1.5, "rl_cai@2": 2.0, "rl_cai@3": 2.0, "rl_cai": 2.6}
    elos = elo_tables(rng, harmlessness=strengths, helpfulness=strengths)
    return {"evasiveness/responses": answers(rng, rates, "evades", "complies")} | elos


def harmful(rng: np.random.Generator, side: int) -> Frames:
    rows = [
        pd.DataFrame({"prompt": PROMPTS, "arm": arm, "step": step, "score": scores(rng, 1 + side * grows * step, 0.5)})
        for arm, grows in (("helpful_only", 0.4), ("hh_rlhf", 0.0), ("rl_cai", -0.1))
        for step in range(3)
    ]
    return {"harmfulness/responses": pd.concat(rows, ignore_index=True).astype({"step": "Int64"})}


def boilerplate(rng: np.random.Generator, side: int) -> Frames:
    rates: dict[tuple[str, int | None], float] = {("rl_cai", 30): 0.4 + 0.2 * side}
    rates |= {("hh_rlhf", 30): 0.4, ("helpful_only", None): 0.35}
    own = scores(rng, 0)
    along = [
        pd.DataFrame({"prompt": PROMPTS, "arm": "rl_cai", "step": step, "proxy": own + step / 10 + scores(rng, 0, 0.5)})
        for step in (10, 20, 30)
    ]
    curve = pd.concat(along, ignore_index=True).assign(gold=lambda t: t["proxy"] - t["step"] / 8)
    return {"goodharting/responses": answers(rng, rates, "boilerplate", "none"), "goodharting/along_rl": curve}


def questions(
    rng: np.random.Generator, accuracy: float, confidence: float, mode: str, model: str = "m", n: int = 4 * N
) -> Frames:
    spread = rng.uniform(-0.05, 0.05, n)
    right = rng.random(n) < accuracy + spread
    sure = np.clip(confidence + spread, 0.5, 1)
    columns = {"question": np.arange(n), "mode": mode, "model": model, "correct": right.astype(float)}
    return {"hhh/questions": pd.DataFrame(columns | {"p_correct": np.where(right, sure, 1 - sure)})}


def together(*parts: Frames) -> Frames:
    return {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]}


def cot(rng: np.random.Generator, side: int) -> Frames:
    return together(questions(rng, 0.7, 0.7, "plain"), questions(rng, 0.7 + 0.12 * side, 0.7, "cot"))


def calibrated(rng: np.random.Generator, side: int) -> Frames:
    plain = questions(rng, 0.75, 0.75 if side > 0 else 0.95, "plain", n=8 * N)
    return together(plain, questions(rng, 0.75, 0.97, "cot"))


def sizes(rng: np.random.Generator, side: int) -> Frames:
    models = {"Small-135M": 0.7 - 0.1 * side, "Medium-360M": 0.7, "Large-1.7B": 0.7 + 0.1 * side}
    return together(*(questions(rng, a, 0.7, "plain", model) for model, a in models.items()))


def pms(variant: str) -> Callable[[np.random.Generator, int], Frames]:
    def build(rng: np.random.Generator, side: int) -> Frames:
        accuracy = {"pm.rl_cai": 0.6 + 0.25 * side, "pm.hh_rlhf": 0.5}
        singles = ("one_principle", "one_principle_1", "one_principle_2")
        accuracy |= {f"pm.rl_cai.{name}": 0.6 for name in (singles if variant == "one_principle" else [variant])}
        rows = [
            pd.DataFrame({"pm": pm, "prompt": PROMPTS, "correct": (rng.random(N) < a).astype(float)})
            for pm, a in accuracy.items()
        ]
        return {"pm_pairs": pd.concat(rows, ignore_index=True)}

    return build


def trusted() -> pd.DataFrame:
    """judges.parquet of a judge that has passed every test."""
    rows = [
        {"suite": suite, "judge": "simulated", "kind": kind, "metric": metric, "estimate": 0.8, "low": 0.7, "high": 0.9,
         "n": N, "bar": judge_quality.BAR, "passed": True, "gap_low": 1.0}
        for suite in ("elo", "pm_score")
        for kind in ("harmless", "helpful")
        for metric in (*judge_quality.REQUIRED, judge_quality.NON_EVASIVE)
    ]  # fmt: skip
    return pd.DataFrame(rows)[judge_quality.COLUMNS]


BUILDERS: dict[int, Callable[[np.random.Generator, int], Frames]] = {
    1: revised("score_harmless", 1), 2: revised("score_helpful", -1), 3: by_number, 4: by_mode, 5: order, 6: kept,
    7: traded, 8: evasive, 9: evasive_late, 10: harmful, 11: boilerplate, 12: cot, 13: calibrated, 14: sizes,
    15: pms("hard"), 16: pms("one_principle"),
}  # fmt: skip
