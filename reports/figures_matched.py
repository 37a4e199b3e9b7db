"""The frontier at matched KL: what arms reach for the same distance from the model that their RL started from.

Arms that went further trade more; drawn at their ends they differ in how far they went as well as in what they learned.
Gao et al. 2023 find scores along RL to follow the square root of KL, in which snapshots are interpolated here.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports import figures_training
from reports.exhibit import Drawn, exhibit
from reports.figures import ordered, plane
from reports.load import Missing, RunData
from suites.claims_tables import RL_START

SIDES = {"helpful": "helpfulness", "harmless": "harmlessness"}
FINAL = -1.0  # in place of the missing step of a final model


@exhibit(
    "frontier_matched_kl",
    "Helpfulness against harmlessness at matched KL",
    "Section 4.3 compares models along RL; at one KL to the starting policy no arm leads for having moved further.",
)
def frontier_matched_kl(run: RunData) -> Drawn:
    """Elo of each RL arm at the largest KL that all of them reach, interpolated between its snapshots."""
    settings = [("rl.snapshots", 2), ("suites", ["elo", "goodharting"])]
    curve = figures_training.along_kl(run, ["arm", "step", "kl"], settings)
    draws = {side: _draws(run, name) for side, name in SIDES.items()}
    estimates = {side: run.metric(f"elo_{name}", "elo") for side, name in SIDES.items()}
    every = {str(arm): _path(str(arm), part, draws) for arm, part in curve.groupby("arm")}
    paths = {arm: path for arm, path in every.items() if len(path) > 1}
    if len(paths) < 2:
        raise Missing("fewer than two arms have Elo and KL at two points of RL", run.command("elo", *settings))
    at = min(path["kl"].max() for path in paths.values())
    there = {arm: path for arm, path in paths.items() if path["kl"].min() <= at}
    apart = sorted(set(paths) - set(there))
    if len(there) < 2:
        raise Missing(f"the arms' ranges of KL do not overlap: {', '.join(paths)}", run.command("elo", *settings))
    rows = []
    for arm, path in there.items():
        weights = _weights(path["kl"].to_numpy(dtype=float), at)
        row = {"arm": arm, "kl": at, "points": len(path)}
        for side in SIDES:
            row |= {f"{k}_{side}": v for k, v in _between(path, weights, draws[side], estimates[side]).items()}
        rows.append(row)
    figure, table, alt = plane(ordered(pd.DataFrame(rows)))
    said = f"At a KL of {at:.3g} nats, the most that all reach: " + "; ".join(
        f"{r.arm} {r.estimate_helpful:+.0f} helpful, {r.estimate_harmless:+.0f} harmless" for r in table.itertuples()
    )
    said += ". Interpolated in the square root of KL, whose own error is not in the intervals; KL is to the model that "
    said += "each arm started from."
    said += f" Not measured, since it has no snapshot so near to its start: {', '.join(apart)}." if apart else ""
    return figure, table.assign(kl=at), said, f"{said} {alt}"


def _draws(run: RunData, side: str) -> pd.DataFrame:
    """Resampled Elo, a column for each (arm, step); the final model's step is FINAL."""
    found = run.need(f"elo/{side}_draws", ["resample", "arm", "step", "elo"])
    found = found.assign(step=found["step"].astype("Float64").fillna(FINAL).astype(float))
    return found.pivot_table(index="resample", columns=["arm", "step"], values="elo")


def _path(arm: str, curve: pd.DataFrame, draws: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Points of an arm's RL by KL: kl, player (arm and step), where both Elos are known; its start stands at 0."""
    names, steps = ([own.columns.get_level_values(level) for own in draws.values()] for level in ("arm", "step"))
    known = set.intersection(
        *(set(zip(map(str, n), map(float, s), strict=True)) for n, s in zip(names, steps, strict=True))
    )
    own = {step for name, step in known if name == arm}
    update = curve["step"].astype(float)
    final = update[~update.isin(own)].max()  # the curve numbers the final model by its update, where no snapshot lies
    points = [(0.0, (start, FINAL)) for start in [RL_START.get(arm, "")] if (start, FINAL) in known]
    for step, kl in zip(update, curve["kl"].astype(float), strict=True):
        player = (arm, FINAL if step == final else step)
        if player in known:
            points.append((max(kl, 0.0), player))
    return pd.DataFrame(points, columns=["kl", "player"]).sort_values("kl", kind="stable", ignore_index=True)


def _weights(kl: np.ndarray, at: float) -> np.ndarray:
    """Weights of the points (ascending kl) of which linear interpolation in sqrt(KL) makes the value at `at`."""
    roots = np.sqrt(kl)
    return np.array([np.interp(np.sqrt(at), roots, unit) for unit in np.eye(len(kl))])


def _between(path: pd.DataFrame, weights: np.ndarray, draws: pd.DataFrame, rows: pd.DataFrame) -> dict[str, float]:
    """Interpolated Elo with a 95 % interval; n is the fewest prompts behind any point that counts."""
    step = rows["step"].astype("Float64").fillna(FINAL).astype(float)
    own = rows.set_index(pd.MultiIndex.from_arrays([rows["arm"], step]))
    used = [(player, weight) for player, weight in zip(path["player"], weights, strict=True) if weight]
    sampled = sum(weight * draws[player].to_numpy() for player, weight in used)
    low, high = np.nanquantile(sampled, [0.025, 0.975])
    estimate = sum(weight * float(own.loc[player, "estimate"]) for player, weight in used)
    return {"estimate": estimate, "low": low, "high": high, "n": min(int(own.loc[player, "n"]) for player, _ in used)}
