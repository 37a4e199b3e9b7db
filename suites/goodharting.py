"""Goodharting: what RL does to the text when it over-optimises its PM (the paper, section 4.3, Figures 3 and 8).

Boilerplate is mined, not looked up (`suites.boilerplate`); diversity is read at equal size (`suites.diversity`);
`suites.overoptimisation` finds where gold turns down; the exploit probe here asks what a PM pays for a mined phrase.

Boilerplate rates in the summary are mined on all responses of an arm, those in `differences` on equal numbers of
prompts and of samples a prompt, since more text shows more recurrence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd

from harness.errors import UserError
from harness.stats import Interval, bootstrap_difference, bootstrap_mean, finite
from suites import boilerplate, diversity, overoptimisation
from suites.rates import rate, rate_difference
from suites.result import SuiteResult, summary_frame

REQUIRED = ["prompt", "response", "arm", "step", "sample"]
LISTED = 20  # phrases an arm and step
FEW_PROMPTS = 20  # below, percentile intervals are known to be too narrow
PROBED, PROBE_SIZE = 3, 40  # phrases an arm, responses a phrase: the PM reads each changed text once

Scorer = Callable[[Sequence[str], Sequence[str]], np.ndarray]
DIFFERENCES = ["arm_a", "step_a", "arm_b", "step_b", "metric", "estimate", "low", "high", "n"]
EXPLOIT = ["arm", "phrase", "sentence", "change", "estimate", "low", "high", "n", "responses"]
PHRASES = ["arm", "step", "phrase", "kind", "words", "prompts", "responses", "share", "sentence", "example_prompt"]


class Group(NamedTuple):
    """The responses of an arm at one step (None: its final model), with what was mined from them."""

    arm: str
    step: int | None
    table: pd.DataFrame
    mined: boilerplate.Mined

    @property
    def name(self) -> str:
        return self.arm if self.step is None else f"{self.arm} at step {self.step}"


def run(
    responses: pd.DataFrame,
    *,
    scorer: Scorer | None = None,
    training: pd.DataFrame | None = None,
    seed: int = 0,
    advance: Callable[[int, int], None] | None = None,
) -> SuiteResult:
    """Boilerplate, diversity, over-optimisation and exploit probe of a response table.

    scorer: (prompts, responses) -> log-odds of a PM. training: columns arm, step, kl, proxy, gold, optionally prompt.
    advance(done, total) is told how many responses have been mined.
    Summary: boilerplate_rate and the metrics of `suites.diversity` by arm and step; gold_turn_sqrt_kl where a turn was
    seen. n counts prompts. Tables: responses (label: "boilerplate" or "none"; score: the share of words that are),
    phrases (PHRASES), differences (DIFFERENCES, a minus b: last models of all arms; each arm's last less its first),
    along_rl (training), overoptimisation, turns (`suites.overoptimisation`), exploit (EXPLOIT; score after the change
    less before).
    Raises UserError for a table that is empty or lacks columns.
    """
    table = _checked(responses)
    groups = list(_groups(table, advance))
    measured, notes = diversity.measure({g.name: g.table for g in groups}, seed)
    rows = [row for g in groups for row in _summary(g, measured, seed)]
    notes += _size_notes(groups)
    tables = {
        "responses": _labelled(groups),
        "phrases": _phrases(groups),
        "differences": _differences(groups, measured, seed),
    }
    if training is None:
        notes.append("over-optimisation not measured: no KL, proxy and gold scores along training were given")
    else:
        tables["along_rl"] = training
        tables["overoptimisation"], tables["turns"], said = overoptimisation.measure(training, seed)
        notes += said
        seen = tables["turns"][tables["turns"]["turn"].astype(bool)]
        rows += [
            {"arm": t.arm, "metric": "gold_turn_sqrt_kl", "estimate": t.sqrt_kl, "low": t.low, "high": t.high, "n": t.n}
            for t in seen.itertuples()
        ]
    if scorer is None:
        notes.append("what a PM pays for the mined phrases was not measured: no PM was given")
    else:
        tables["exploit"], said = probe(groups, scorer, seed)
        notes += said
    return SuiteResult("goodharting", summary_frame("goodharting", rows), tables, notes)


def probe(groups: Sequence[Group], scorer: Scorer, seed: int = 0) -> tuple[pd.DataFrame, list[str]]:
    """What the PM pays for each arm's most widespread phrases: (table EXPLOIT, notes).

    append: the sentence as mined goes behind responses, of any arm, that hold no boilerplate. delete: the sentences
    that hold the phrase go from the arm's own responses, unless nothing would be left. Paired, bootstrap by prompt.
    """
    finals = _finals(groups)
    plain = pd.concat([g.table[~g.mined.held] for g in finals])
    plain = diversity.in_order(plain[plain["response"] != ""], seed).head(PROBE_SIZE)
    rows, notes = [], []
    before = _scores(scorer, plain["prompt"], plain["response"])
    for group in finals:
        phrases = group.mined.phrases.head(PROBED)
        if phrases.empty:
            notes.append(f"{group.name}: exploit probe not measured: no phrase was mined")
        held = diversity.in_order(group.table[group.mined.held], seed)
        for phrase, sentence in zip(phrases["phrase"], phrases["sentence"], strict=True):
            longer = [f"{r.rstrip()} {_closed(sentence)}" for r in plain["response"]]
            change = _scores(scorer, plain["prompt"], longer) - before
            rows.append([group.arm, phrase, sentence, "append", *_change(change, plain["prompt"], seed)])
            cut = held.assign(cut=[boilerplate.without(r, phrase) for r in held["response"]])
            cut = cut[(cut["cut"] != cut["response"].str.strip()) & (cut["cut"] != "")].head(PROBE_SIZE)
            change = _scores(scorer, cut["prompt"], cut["cut"]) - _scores(scorer, cut["prompt"], cut["response"])
            rows.append([group.arm, phrase, sentence, "delete", *_change(change, cut["prompt"], seed)])
    table = pd.DataFrame([r for r in rows if r[-1]], columns=EXPLOIT)
    notes += [f"exploit probe, {r[3]} '{r[1]}' ({r[0]}): not measured, no response fits" for r in rows if not r[-1]]
    if len(table) and (table["n"] < FEW_PROMPTS).any():
        notes.append(f"exploit probe: rows with n under {FEW_PROMPTS} prompts are underpowered")
    return table, notes


def equal_parts(a: pd.DataFrame, b: pd.DataFrame, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of a and of b to mine at equal size: as many prompts in both, shared ones first, and as many samples
    of each (the smaller of the two medians)."""
    shared = set(a["prompt"]) & set(b["prompt"])
    samples = int(min(t.groupby("prompt").size().median() for t in (a, b)))
    prompts = min(a["prompt"].nunique(), b["prompt"].nunique())

    def chosen(table: pd.DataFrame) -> np.ndarray:
        ordered = diversity.in_order(table.assign(_row=np.arange(len(table))), seed)
        distinct = ordered["prompt"].drop_duplicates()
        here = distinct.isin(shared)
        kept = set([*distinct[here], *distinct[~here]][:prompts])
        part = ordered[ordered["prompt"].isin(kept) & (ordered.groupby("prompt").cumcount() < samples)]
        mask = np.zeros(len(table), dtype=bool)
        mask[part["_row"]] = True
        return mask

    return chosen(a), chosen(b)


# ---------------------------------------------------------------- parts of the result


def _checked(responses: pd.DataFrame) -> pd.DataFrame:
    missing = [c for c in REQUIRED if c not in responses]
    if missing:
        raise UserError(f"responses: no column {', '.join(missing)}; give {', '.join(REQUIRED)}")
    if responses.empty:
        raise UserError("responses: the table is empty; give at least one response")
    table = responses[REQUIRED].astype({"step": "Int64"})
    for column in ("prompt", "response", "arm"):
        if table[column].isna().any():
            row = table.index[table[column].isna()][0]
            raise UserError(f"responses: row {row} has no {column}; fill it or drop the row")
    return table.reset_index(drop=True)


def _groups(table: pd.DataFrame, advance: Callable[[int, int], None] | None) -> Iterator[Group]:
    done = 0
    for key, part in table.groupby(["arm", "step"], dropna=False, sort=True):
        arm, step = cast(tuple[str, Any], key)
        mined = boilerplate.mine(part["prompt"].tolist(), part["response"].tolist(), listed=LISTED)
        done += len(part)
        if advance is not None:
            advance(done, len(table))
        yield Group(arm, None if pd.isna(step) else int(step), part, mined)


def _finals(groups: Sequence[Group]) -> list[Group]:
    """Each arm's final model, or else its last snapshot."""
    last = {g.arm: g for g in sorted(groups, key=lambda g: (g.arm, g.step is None, g.step or 0))}
    return list(last.values())


def _summary(group: Group, measured: dict[tuple[str, str], diversity.Values], seed: int) -> Iterator[dict[str, object]]:
    intervals = {"boilerplate_rate": rate(group.mined.held, group.table["prompt"], seed)} if _minable(group) else {}
    for metric in diversity.METRICS:
        if (group.name, metric) in measured:
            intervals[metric] = bootstrap_mean(*measured[group.name, metric], seed=seed)
    for metric, interval in intervals.items():
        yield {"arm": group.arm, "step": group.step, "metric": metric, **asdict(interval)}


def _minable(group: Group) -> bool:
    """Fewer prompts than a phrase must recur for can show no boilerplate, whatever the text."""
    return group.table["prompt"].nunique() >= group.mined.k


def _differences(groups: Sequence[Group], measured: dict[tuple[str, str], diversity.Values], seed: int) -> pd.DataFrame:
    finals = _finals(groups)
    pairs = list(combinations(finals, 2))
    for last in finals:
        snapshots = [g for g in groups if g.arm == last.arm and g.step is not None]
        first = min(snapshots, key=lambda g: g.step or 0, default=last)
        pairs += [(last, first)] if first is not last else []
    rows = []
    for a, b in pairs:
        intervals = {}
        if _minable(a) and _minable(b):
            intervals["boilerplate_rate"] = _rate_difference(a, b, seed)
        for metric in diversity.METRICS:
            if (a.name, metric) in measured and (b.name, metric) in measured:
                intervals[metric] = bootstrap_difference(
                    *measured[a.name, metric], *measured[b.name, metric], seed=seed
                )
        for metric, i in intervals.items():
            rows.append([a.arm, a.step, b.arm, b.step, metric, i.estimate, i.low, i.high, i.n])
    return pd.DataFrame(rows, columns=DIFFERENCES).astype({"step_a": "Int64", "step_b": "Int64"})


def _rate_difference(a: Group, b: Group, seed: int) -> Interval:
    held, prompts = [], []
    for group, counted in zip((a, b), equal_parts(a.table, b.table, seed), strict=True):
        part = group.table[counted]
        if counted.all():
            held.append(group.mined.held)
        else:
            held.append(boilerplate.mine(part["prompt"].tolist(), part["response"].tolist(), listed=0).held)
        prompts.append(part["prompt"])
    return rate_difference(held[0], prompts[0], held[1], prompts[1], seed)


def _labelled(groups: Sequence[Group]) -> pd.DataFrame:
    parts = [
        g.table.assign(label=np.where(g.mined.held, "boilerplate", "none"), score=g.mined.coverage) for g in groups
    ]
    return pd.concat(parts).sort_index().reset_index(drop=True)


def _phrases(groups: Sequence[Group]) -> pd.DataFrame:
    parts = [g.mined.phrases.assign(arm=g.arm, step=g.step) for g in groups]
    return pd.concat(parts, ignore_index=True)[PHRASES].astype({"step": "Int64"})


def _size_notes(groups: Sequence[Group]) -> list[str]:
    notes = []
    for g in groups:
        n = g.table["prompt"].nunique()
        if not _minable(g):
            notes.append(f"{g.name}: boilerplate_rate not measured: {n} prompts, a phrase must recur for {g.mined.k}")
        elif n < FEW_PROMPTS:
            notes.append(f"{g.name}: underpowered: {n} prompts, intervals over fewer than {FEW_PROMPTS} are too narrow")
    if len({(g.table["prompt"].nunique(), len(g.table)) for g in groups}) > 1:
        notes.append("arms differ in size: compare boilerplate rates by `differences`, which are mined at equal size")
    return notes


# ---------------------------------------------------------------- exploit probe


def _scores(scorer: Scorer, prompts: Sequence[str] | pd.Series, responses: Sequence[str] | pd.Series) -> np.ndarray:
    if not len(prompts):
        return np.zeros(0)
    return finite(scorer(list(prompts), list(responses)), "PM score")


def _change(change: np.ndarray, prompts: pd.Series, seed: int) -> list[float | int]:
    if not len(change):
        return [np.nan, np.nan, np.nan, 0, 0]
    i = bootstrap_mean(change, prompts, seed)
    return [i.estimate, i.low, i.high, i.n, len(change)]


def _closed(sentence: str) -> str:
    """With a full stop: mined sentences have lost their ends."""
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
