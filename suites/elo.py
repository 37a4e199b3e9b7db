"""Elo: which arm (and which snapshot along RL) is preferred, by how much, and how sure (the paper, Figures 2, 3, 8).

Strengths are Bradley-Terry's by maximum likelihood (`harness.stats.bradley_terry`) in Elo points relative to an anchor;
intervals come from a bootstrap over prompts, whose comparisons are resampled together. A comparison that was judged in
both orders counts once, half for each order. Outcomes of `suites.judges` are hard (won, lost or tied), and their ties
are modelled by Davidson's parameter; soft outcomes of one's own table have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.errors import UserError
from harness.stats import Interval, bootstrap_mean, finite, wilson
from harness.stats.bradley_terry import BradleyTerry, fit_bradley_terry
from suites import length_adjusted
from suites.judge_agreement import agreement
from suites.result import SuiteResult, summary_frame

REQUIRED = ["prompt", "arm_a", "arm_b", "outcome"]
MAX_DRAWS = 1000  # resamples kept in the `draws` table
FEW_PROMPTS = 20  # below, percentile intervals are known to be too narrow


class Player(NamedTuple):
    """An arm at a snapshot; step None is its final model."""

    arm: str
    step: int | None

    def __str__(self) -> str:
        return self.arm if self.step is None else f"{self.arm} at step {self.step}"


def run(
    comparisons: pd.DataFrame,
    *,
    metric: str = "elo_harmlessness",
    anchor: str | tuple[str, int | None],
    seed: int = 0,
    n_resamples: int = 1000,
) -> SuiteResult:
    """Elo of every arm and snapshot from a comparison table (`suites.judges.COLUMNS`; REQUIRED ones suffice).

    anchor: the arm at 0 (its final model, else its last snapshot), or an (arm, step) pair. n counts prompts.
    Tables: differences and win_rates (arm_a, step_a, arm_b, step_b, estimate, low, high, n; both directions),
    judge (judge, metric, estimate, low, high, n), draws (resample, arm, step, elo), players (arm, step, prompts, group:
    players of one group beat one another in some chain). Raises UserError as `fit_bradley_terry` does.
    """
    table, players = _checked(comparisons)
    zero = _anchor(anchor, players)
    votes = bool(table["outcome"].isin([0, 0.5, 1]).all())
    names = np.empty(len(players), dtype=object)
    names[:] = players
    fit = fit_bradley_terry(
        names[table["a"]],
        names[table["b"]],
        table["outcome"].to_numpy(),
        clusters=table["prompt"],
        weights=1 / table.groupby("comparison")["outcome"].transform("size").to_numpy(),
        ties=votes,
        anchor=zero,
        seed=seed,
        n_resamples=n_resamples,
    )
    judge = _consistency(table, seed)
    tables = {
        "differences": _differences(fit, players),
        "win_rates": _win_rates(fit),
        "judge": judge,
        "draws": _draws(fit, players),
        "players": _player_table(fit, players),
    }
    rows = [{"arm": p.arm, "step": p.step, "metric": metric, **vars(fit.interval(p))} for p in players]
    notes = [*comparisons.attrs.get("notes", []), *_notes(fit, zero, votes, judge)]
    return SuiteResult("elo", summary_frame("elo", rows), tables, notes)


def by_kind(
    scored_responses: pd.DataFrame,
    compare: Callable[[pd.DataFrame, str], pd.DataFrame],
    anchor: str | None = None,
    others: Mapping[str, Callable[[pd.DataFrame, str], pd.DataFrame]] | None = None,
    *,
    seed: int = 0,
) -> SuiteResult:
    """The suite: harmlessness Elo on red-team prompts and helpfulness Elo on others, tables prefixed by which.

    `compare(responses, kind)` judges pairs. Where no prompt says its kind, all count as red-team prompts. Metrics of
    `others`, further judges, end in "@NAME"; table KIND_agreement says how far all of them agree.
    """
    responses = scored_responses
    known = "kind" in responses and responses["kind"].notna().any()
    summaries: list[pd.DataFrame] = []
    tables: dict[str, pd.DataFrame] = {}
    notes: list[str] = []
    for kind, name in (("harmless", "harmlessness"), ("helpful", "helpfulness")):
        if known:
            part = responses[responses["kind"] == kind]
        else:
            part = responses if kind == "harmless" else responses.iloc[:0]
        if len(part[["arm", "step"]].drop_duplicates()) < 2:
            notes.append(f"elo_{name}: not measured, fewer than two arms or snapshots answered prompts of kind {kind}")
            continue
        zero, compared = _arm_at_zero(part, anchor), {"": compare(part, kind)}
        result = run(compared[""], metric=f"elo_{name}", anchor=zero, seed=seed)
        summaries.append(result.summary)
        tables |= {f"{name}_{key}": table for key, table in result.tables.items()}
        if kind == "helpful":
            own_rates = length_adjusted.win_rates(compared[""], part, zero, seed)
            summaries.append(_rates_summary(own_rates))
            tables["helpfulness_length"] = own_rates
        for judge, other in (others or {}).items():
            compared[judge] = other(part, kind)
            own = run(compared[judge], metric=f"elo_{name}@{judge}", anchor=zero, seed=seed)
            summaries.append(own.summary)
        if len(compared) > 1:
            first = str(compared[""]["judge"].iloc[0])
            tables[f"{name}_agreement"] = agreement({judge or first: table for judge, table in compared.items()}, seed)
        notes += [f"{name}: {note}" for note in result.notes]
    if not summaries:
        raise UserError("suite elo: nothing to compare; give answers of two arms or snapshots to the same prompts")
    return SuiteResult("elo", pd.concat(summaries, ignore_index=True), tables, notes)


def _rates_summary(rates: pd.DataFrame) -> pd.DataFrame:
    """Helpful wins against the arm at 0, as they are and at equal length."""
    rows: list[dict[str, Any]] = []
    for row in rates.to_dict("records"):
        about = {"arm": row["arm"], "step": None if pd.isna(row["step"]) else int(row["step"]), "n": row["n"]}
        raw = {"estimate": row["raw"], "low": row["raw_low"], "high": row["raw_high"]}
        adjusted = {key: row[key] for key in ("estimate", "low", "high")}
        rows += [about | {"metric": "win_rate_helpfulness"} | raw]
        rows += [about | {"metric": "win_rate_helpfulness_adjusted"} | adjusted]
    return summary_frame("elo", rows)


def _arm_at_zero(responses: pd.DataFrame, anchor: str | None) -> str:
    present = list(dict.fromkeys(responses["arm"]))
    if anchor is not None and anchor not in present:
        raise UserError(f"--anchor {anchor}: no such arm among the responses; choose from {', '.join(present)}")
    return anchor or ("pretrained" if "pretrained" in present else str(present[0]))


def judge_consistency(comparisons: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """How far each judge agrees with itself when the two responses swap places, where both orders were judged.

    Metrics, with bootstrap intervals over prompts: order_consistency (share of comparisons with the same winner, or a
    tie, in both orders) and first_shown_rate (mean P(the first shown is better); 0.5 is unbiased).
    Columns: judge, metric, estimate, low, high, n. Empty when nothing was judged in both orders.
    """
    return _consistency(_checked(comparisons)[0], seed)


# ---------------------------------------------------------------- input


def _checked(comparisons: pd.DataFrame) -> tuple[pd.DataFrame, list[Player]]:
    """(table, players): columns prompt, a, b (indices of players), outcome, judge, order, p, comparison.

    Rows keep their place, but are turned so that a <= b; the two orders of one comparison share its number.
    """
    missing = [c for c in REQUIRED if c not in comparisons]
    if missing or comparisons.empty:
        problem = f"no column {', '.join(missing)}" if missing else "no rows"
        raise UserError(f"comparisons: {problem}; give a row of {', '.join(REQUIRED)} for each comparison")
    source = comparisons.reset_index(drop=True)
    outcome = finite(source["outcome"], "outcome")
    for column in ("prompt", "arm_a", "arm_b"):
        if source[column].isna().any():
            raise UserError(f"comparisons: row {int(source[column].isna().argmax())} has no {column}; fill it in")
    sides = pd.DataFrame({"arm": pd.concat([source["arm_a"], source["arm_b"]], ignore_index=True).astype(str)})
    steps = [_optional(source, f"step_{side}", "Int64") for side in "ab"]
    sides["step"] = pd.concat(steps, ignore_index=True)
    codes = sides.groupby(["arm", "step"], dropna=False).ngroup().to_numpy()
    first_rows = sides.iloc[np.unique(codes, return_index=True)[1]]
    players = [
        Player(arm, None if pd.isna(s) else int(s))
        for arm, s in zip(first_rows["arm"], first_rows["step"], strict=True)
    ]
    a, b = np.split(codes, 2)
    turned = a > b
    order = _optional(source, "order", "string").fillna("")
    if not order.isin(["", "ab", "ba"]).all():
        row = int((~order.isin(["", "ab", "ba"])).argmax())
        raise UserError(f"comparisons: row {row} has order {order[row]!r}; write ab, ba or nothing")
    table = pd.DataFrame(
        {
            "prompt": source["prompt"],
            "a": np.minimum(a, b),
            "b": np.maximum(a, b),
            "outcome": np.where(turned, 1 - outcome, outcome),
            "judge": _optional(source, "judge", "string").fillna("judge"),
            "order": order.where(~turned, order.map({"ab": "ba", "ba": "ab", "": ""})),
        }
    )
    p = _optional(source, "p", "Float64").fillna(pd.Series(outcome)).to_numpy(dtype=np.float64)
    table["p"] = np.where(turned, 1 - p, p)
    key = ["prompt", "a", "b", "judge", "sample", "ordered"]
    named = table.assign(sample=_optional(source, "sample", "Int64"), ordered=order != "")
    # Votes on one pair are separate comparisons; the k-th of one order belongs with the k-th of the other.
    named["turn"] = named.groupby([*key, "order"], dropna=False).cumcount()
    table["comparison"] = named.groupby([*key, "turn"], dropna=False).ngroup()
    return table, players


def _optional(table: pd.DataFrame, column: str, dtype: str) -> pd.Series:
    values = table[column] if column in table else pd.Series(pd.NA, table.index, dtype="object")
    try:
        return values.astype(dtype)  # type: ignore[call-overload] # the stubs know no Int64 by name
    except (TypeError, ValueError) as error:
        raise UserError(f"comparisons: column {column} is not all {dtype} ({error}); fix or drop it") from None


def _anchor(anchor: str | tuple[str, int | None], players: list[Player]) -> Player:
    if not isinstance(anchor, str):
        return Player(*anchor)
    of_arm = [p for p in players if p.arm == anchor]
    final = [p for p in of_arm if p.step is None]
    return (final or of_arm or [Player(anchor, None)])[-1]


# ---------------------------------------------------------------- tables


def _pair(a: Player, b: Player) -> dict[str, Any]:
    return {"arm_a": a.arm, "step_a": a.step, "arm_b": b.arm, "step_b": b.step}


def _pair_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    columns = ["arm_a", "step_a", "arm_b", "step_b", "estimate", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns).astype({"step_a": "Int64", "step_b": "Int64", "n": "int64"})


def _differences(fit: BradleyTerry, players: list[Player]) -> pd.DataFrame:
    return _pair_frame(
        [{**_pair(a, b), **vars(fit.difference(a, b).interval())} for a in players for b in players if a != b]
    )


def _win_rates(fit: BradleyTerry) -> pd.DataFrame:
    """Share of comparisons that a wins, a tie counting half, for each compared pair, in both directions."""
    rates = fit.tally.win_rates()
    rows = []
    for m, (i, j) in enumerate(fit.tally.pairs):
        a, b, n = fit.arms[i], fit.arms[j], int(fit.tally.n_pair[m])
        low, high = np.nanquantile(rates[1:, m], [0.025, 0.975]) if n > 1 and len(rates) > 1 else (0.0, 1.0)
        share = _widened(Interval(float(rates[0, m]), float(low), float(high), n))
        rows.append({**_pair(a, b), **vars(share)})
        mirrored = Interval(1 - share.estimate, 1 - share.high, 1 - share.low, n)
        rows.append({**_pair(b, a), **vars(mirrored)})
    return _pair_frame(rows).sort_values(["arm_a", "step_a", "arm_b", "step_b"], ignore_index=True)


def _widened(share: Interval) -> Interval:
    """Where every prompt agrees resampling sees no spread: Wilson's interval over prompts takes its place."""
    return share if share.low < share.high else wilson(share.estimate * share.n, share.n)


def _draws(fit: BradleyTerry, players: list[Player]) -> pd.DataFrame:
    kept = fit.draws[:MAX_DRAWS]
    frames = [
        pd.DataFrame({"resample": np.arange(len(kept)), "arm": p.arm, "step": p.step, "elo": kept[:, fit.index(p)]})
        for p in players
    ]
    return pd.concat([frame.astype({"step": "Int64"}) for frame in frames], ignore_index=True)


def _player_table(fit: BradleyTerry, players: list[Player]) -> pd.DataFrame:
    group = {player: g for g, members in enumerate(fit.groups) for player in members}
    rows = [[p.arm, p.step, int(fit.tally.n_arm[fit.index(p)]), group[p]] for p in players]
    return pd.DataFrame(rows, columns=["arm", "step", "prompts", "group"]).astype({"step": "Int64"})


def _consistency(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    ordered = table[table["order"] != ""]
    both = ordered.pivot(index=["judge", "prompt", "comparison"], columns="order", values="p")
    both = both.reindex(columns=["ab", "ba"]).dropna().reset_index()
    rows = []
    for judge, part in both.groupby("judge"):
        same = np.sign(part["ab"] - 0.5) == np.sign(part["ba"] - 0.5)
        first = (part["ab"] + 1 - part["ba"]) / 2
        for metric, values in (("order_consistency", same), ("first_shown_rate", first)):
            interval = bootstrap_mean(values.to_numpy(dtype=float), part["prompt"], seed)
            rows.append({"judge": str(judge), "metric": metric, **vars(_widened(interval))})
    return pd.DataFrame(rows, columns=["judge", "metric", "estimate", "low", "high", "n"]).astype({"n": "int64"})


# ---------------------------------------------------------------- notes


def _notes(fit: BradleyTerry, zero: Player, votes: bool, judge: pd.DataFrame) -> list[str]:
    kept = "hard: a comparison is won, lost or tied" if votes else "soft: probabilities, as given"
    notes = [f"Elo is relative to {zero} = 0, from {fit.n} prompts", f"outcomes are {kept}"]
    if votes and fit.nu:
        notes.append(f"ties modelled (Davidson, nu = {fit.nu:.2f})")
    if fit.separated:
        named = " > ".join("{" + ", ".join(map(str, group)) + "}" for group in fit.groups)
        why = f"no comparison goes against the order {named}" if len(fit.groups) > 1 else "wins all point one way"
        notes.append(
            f"separated: {why}, so the likelihood has no maximum; half a win each way was added for every pair, and "
            "the Elo between these arms is a lower bound of the gap"
        )
    elif fit.separated_share > 0:
        notes.append(f"{fit.separated_share:.1%} of resamples separated and had half a win each way added")
    if fit.n < FEW_PROMPTS:
        notes.append(f"only {fit.n} prompts: bootstrap intervals are too narrow below about {FEW_PROMPTS}")
    if judge.empty:
        notes.append("order-swap consistency of the judge: not measured (nothing was judged in both orders)")
    for row in judge.itertuples():
        what = {
            "order_consistency": "gives the same verdict in both orders",
            "first_shown_rate": "prefers the response shown first",
        }[str(row.metric)]
        notes.append(f"judge {row.judge} {what} in {row.estimate:.0%} ({row.low:.0%} to {row.high:.0%}, n = {row.n})")
    return notes
