"""PM score: what a preference model gives to each arm, snapshot and revision (the paper, Figures 5 to 7).

A PM score is a logit difference, in log-odds; only differences between scores of one PM mean anything. The PM that RL
optimised must not be the one that scores here. Prompts are the independent units: their responses are resampled
together, and revisions are compared within their own chain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from harness.errors import UserError
from harness.stats import Interval, bootstrap_difference, bootstrap_mean, finite, spearman_bootstrap
from suites.diversity import Values
from suites.diversity import measure as measure_diversity
from suites.responses import red_team
from suites.result import SuiteResult, summary_frame

Scorer = Callable[[Sequence[str], Sequence[str]], np.ndarray]
WHICH = ("harmless", "helpful")
INTERVAL = ["estimate", "low", "high", "n"]
PUBLISHED = "paper_pm_score"  # the scores that came with the paper's samples
_CHAIN = ["arm", "mode", "n_principles"]  # what tells one way of making chains from another


def run(
    responses: pd.DataFrame,
    *,
    scorer: Scorer | None = None,
    column: str = "score_harmless",
    chains: pd.DataFrame | None = None,
    seed: int = 0,
) -> SuiteResult:
    """Mean PM score of each arm and step, from `scorer(prompts, responses)` or, without one, from `column`.

    Tables: responses (prompt, response, arm, step, sample, label, score). With `chains` (chains.parquet with
    score_harmless and/or score_helpful; one that lacks both is scored by `scorer`), for each arm, mode and
    n_principles: revisions (revision, which), revision_steps (difference from one revision to the next, and "overall"
    from first to last), contrasts (critiqued minus direct; N principles minus the fewest) and diversity (of
    the texts), all with estimate, low, high and n, the number of prompts. Where responses carry the paper's own scores
    (PUBLISHED), how ours agree with them: table rank_correlation and a note. Raises UserError for a missing column or
    a score that is not finite, naming the row.
    """
    table = _checked(responses, ["prompt", "response", "arm"], "responses")
    scores = _scores(table, scorer, column)
    table = table.assign(label=pd.Series(pd.NA, table.index, dtype="string"), score=scores)
    rows = [
        {"arm": arm, "step": step, "metric": "pm_score"} | vars(bootstrap_mean(part["score"], part["prompt"], seed))
        for (arm, step), part in table.groupby(["arm", "step"], dropna=False, sort=False)
    ]
    tables = {"responses": table[["prompt", "response", "arm", "step", "sample", "label", "score"]]}
    notes = []
    if PUBLISHED in table and column != PUBLISHED and table[PUBLISHED].notna().any():
        tables["rank_correlation"], said = _agreement(table[table[PUBLISHED].notna()], seed)
        notes += said
    if chains is None:
        notes.append("revisions: not measured, no critique-revision chains were given")
    else:
        scored, which = _scored_chains(chains, scorer, column)
        if which:
            tables |= {
                "revisions": revisions(scored, which, seed),
                "revision_steps": revision_steps(scored, which, seed),
                "contrasts": contrasts(scored, which, seed),
            }
        else:
            notes.append("revisions: PM score not measured, no PM has scored them; give --judge pm:FOLDER")
        tables["diversity"], said = diversity(scored, seed)
        notes += said
    return SuiteResult("pm_score", summary_frame("pm_score", rows), tables, notes)


def of_red_team(
    scored_responses: pd.DataFrame, score_column: str, chains: pd.DataFrame | None, *, seed: int = 0
) -> SuiteResult:
    """The suite: `run` on the answers to red-team prompts, where prompts say their kind."""
    return run(red_team(scored_responses), column=score_column, chains=chains, seed=seed)


def _checked(table: pd.DataFrame, required: Sequence[str], what: str) -> pd.DataFrame:
    """`table` numbered from 0, with its optional columns; UserError when it is empty or lacks a required one."""
    missing = [name for name in required if name not in table]
    if missing:
        raise UserError(f"{what}: no column {', '.join(missing)}; give {', '.join(required)}")
    if table.empty:
        raise UserError(f"{what}: the table is empty, so there is nothing to score; give at least one row")
    table = table.reset_index(drop=True)
    for name, default in (("step", pd.NA), ("sample", 0)):
        if name not in table:
            table[name] = default
    return table.astype({"step": "Int64"})


def _scores(table: pd.DataFrame, scorer: Scorer | None, column: str) -> np.ndarray:
    if scorer is not None:
        scores = np.asarray(scorer(table["prompt"].tolist(), table["response"].tolist()), dtype=np.float64)
        if scores.shape != (len(table),):
            raise UserError(f"scorer: {len(table)} responses got scores of shape {scores.shape}; give one number each")
        return finite(scores, "PM score", list(table.index))
    if column not in table:
        raise UserError(f"responses: no score column '{column}'; give a scorer or name a column that is there")
    return _numbers(table, column)


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    return finite(table[column], column, list(table.index))


# ---------------------------------------------------------------- revisions


def _scored_chains(chains: pd.DataFrame, scorer: Scorer | None, column: str) -> tuple[pd.DataFrame, list[str]]:
    """Chains with checked scores, and which scores they have."""
    table = _checked(chains, ["prompt", "revision", "response"], "chains")
    for name, default in (("arm", "chains"), ("mode", "critiqued"), ("n_principles", pd.NA)):
        if name not in table:
            table[name] = default
    table = table.astype({"n_principles": "Int64", "revision": "int64"})
    twice = table.duplicated(["prompt", "sample", *_CHAIN, "revision"])
    if twice.any():
        row = int(twice.to_numpy().argmax())
        raise UserError(f"chains: row {row} repeats a revision of its chain; number the samples of a prompt 0, 1, ...")
    which = [name for name in WHICH if f"score_{name}" in table]
    if not which and scorer is not None:
        which = ["helpful" if column == "score_helpful" else "harmless"]
        table[f"score_{which[0]}"] = _scores(table, scorer, column)
    for name in which:
        table[f"score_{name}"] = _numbers(table, f"score_{name}")
    return table, which


def _frame(rows: list[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=[*columns, *INTERVAL])
    return frame.astype({name: "Int64" for name in columns if name.startswith(("n_principles", "revision"))})


def revisions(chains: pd.DataFrame, which: Sequence[str] = WHICH, seed: int = 0) -> pd.DataFrame:
    """Mean score of each revision: arm, mode, n_principles, revision, which, estimate, low, high, n (Figure 5)."""
    rows = [
        dict(zip([*_CHAIN, "revision"], key, strict=True))
        | {"which": name}
        | vars(bootstrap_mean(part[f"score_{name}"], part["prompt"], seed))
        for name in which
        for key, part in chains.groupby([*_CHAIN, "revision"], dropna=False)
    ]
    return _frame(rows, [*_CHAIN, "revision", "which"])


def revision_steps(chains: pd.DataFrame, which: Sequence[str] = WHICH, seed: int = 0) -> pd.DataFrame:
    """What a revision adds: score of `revision` minus that of `revision_before`, within the same chain.

    comparison: "step" from each revision to the next, "overall" from the first to the last. Chains that lack one of
    the two are left out of that difference; n counts the prompts that remain.
    """
    rows = []
    for name in which:
        for key, part in chains.groupby(_CHAIN, dropna=False):
            wide = part.pivot(index=["prompt", "sample"], columns="revision", values=f"score_{name}")
            order = sorted(wide.columns)
            pairs = [("step", before, after) for before, after in pairwise(order)]
            pairs += [("overall", order[0], order[-1])] if len(order) > 1 else []
            for comparison, before, after in pairs:
                gain = (wide[after] - wide[before]).dropna()
                if gain.empty:
                    continue
                interval = bootstrap_mean(gain.to_numpy(), gain.index.get_level_values("prompt").to_numpy(), seed)
                identity = dict(zip(_CHAIN, key, strict=True))
                place = {"which": name, "comparison": comparison, "revision_before": before, "revision": after}
                rows.append(identity | place | vars(interval))
    return _frame(rows, [*_CHAIN, "which", "comparison", "revision_before", "revision"])


def contrasts(chains: pd.DataFrame, which: Sequence[str] = WHICH, seed: int = 0) -> pd.DataFrame:
    """Differences between ways of revising, paired by prompt, at each revision after the first response.

    contrast "critique": critiqued minus direct, all else equal (Figure 7); "principles": n_principles minus
    n_principles_before, the fewest (Figure 6).
    """
    rows: list[dict[str, Any]] = []
    revised = chains[chains["revision"] > 0]

    def add(a: pd.DataFrame, b: pd.DataFrame, identity: dict[str, Any]) -> None:
        for name in which:
            score = f"score_{name}"
            interval = bootstrap_difference(a[score], a["prompt"], b[score], b["prompt"], seed)
            rows.append(identity | {"which": name} | vars(interval))

    for (arm, n, revision), part in revised.groupby(["arm", "n_principles", "revision"], dropna=False):
        modes = {str(mode): rows_of for mode, rows_of in part.groupby("mode")}
        if {"critiqued", "direct"} <= modes.keys():
            identity = {"contrast": "critique", "arm": arm, "n_principles": n, "revision": revision}
            add(modes["critiqued"], modes["direct"], identity)
    for (arm, mode, revision), part in revised.groupby(["arm", "mode", "revision"]):
        by_number = list(part.groupby("n_principles"))
        for n, more in by_number[1:]:
            fewest, base = by_number[0]
            identity = {"contrast": "principles", "arm": arm, "mode": mode, "revision": revision}
            add(more, base, identity | {"n_principles": n, "n_principles_before": fewest})
    return _frame(rows, ["contrast", "arm", "mode", "n_principles", "n_principles_before", "revision", "which"])


def diversity(chains: pd.DataFrame, seed: int = 0) -> tuple[pd.DataFrame, list[str]]:
    """(table, notes): how varied the texts of each revision are, by arm, mode and n_principles: the metrics of
    `suites.diversity`, read at equal size, and unique_share, the share of texts that no other of them equals.
    """
    groups = {
        " ".join(f"{name} {value}" for name, value in zip([*_CHAIN, "revision"], key, strict=True)): (key, part)
        for key, part in chains.groupby([*_CHAIN, "revision"], dropna=False)
    }
    found, notes = measure_diversity({name: part for name, (_, part) in groups.items()}, seed)
    for name, (_, part) in groups.items():
        texts = [" ".join(text.lower().split()) for text in part["response"]]
        counts = Counter(texts)
        unique = np.array([float(counts[text] == 1) for text in texts])
        found[name, "unique_share"] = Values(unique, part["prompt"].to_numpy(dtype=object))
    rows = [
        dict(zip([*_CHAIN, "revision"], groups[name][0], strict=True))
        | {"metric": metric}
        | vars(bootstrap_mean(values, prompts, seed))
        for (name, metric), (values, prompts) in found.items()
    ]
    return _frame(rows, [*_CHAIN, "revision", "metric"]), [f"revisions: {note}" for note in notes]


# ---------------------------------------------------------------- agreement with published scores


def rank_correlation(
    scores: Sequence[float] | np.ndarray | pd.Series,
    published: Sequence[float] | np.ndarray | pd.Series,
    arms: Sequence[str] | pd.Series,
    prompts: Sequence[str] | pd.Series,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman's correlation of our PM scores with published ones: scope, arm, estimate, low, high, n, skipped.

    scope "all": every answer; "arm": those of one arm, across prompts; "within_prompt": correlation among the answers
    to one prompt, averaged over prompts (for all arms together, arm NA, and for each arm). An arm whose scores are all
    equal has no correlation and no row. n counts prompts; skipped
    those left out of a within_prompt mean, because fewer than three answers or equal scores give no correlation.
    """
    table = pd.DataFrame(
        {
            "ours": finite(np.asarray(scores), "scores"),
            "published": finite(np.asarray(published), "published scores"),
            "arm": list(arms),
            "prompt": list(prompts),
        }
    )
    groups: list[tuple[Any, pd.DataFrame]] = [(None, table), *table.groupby("arm", sort=False)]
    rows: list[dict[str, Any]] = []
    for arm, part in groups:
        if arm is not None and (part["ours"].nunique() < 2 or part["published"].nunique() < 2):
            continue
        interval = spearman_bootstrap(part["ours"], part["published"], part["prompt"], seed)
        rows.append({"scope": "all" if arm is None else "arm", "arm": arm, "skipped": 0} | vars(interval))
    for arm, part in groups:
        within, skipped = _within_prompt(part, seed)
        if within is not None:
            rows.append({"scope": "within_prompt", "arm": arm, "skipped": skipped} | vars(within))
    return pd.DataFrame(rows, columns=["scope", "arm", *INTERVAL, "skipped"])


def _agreement(table: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """`rank_correlation` of score with PUBLISHED, and the same in words."""
    table = table.assign(**{PUBLISHED: _numbers(table, PUBLISHED)})
    if table["score"].nunique() < 2 or table[PUBLISHED].nunique() < 2:
        columns = ["scope", "arm", *INTERVAL, "skipped"]
        return pd.DataFrame(columns=columns), [f"rank correlation with {PUBLISHED}: none, the scores are all equal"]
    found = rank_correlation(table["score"], table[PUBLISHED], table["arm"], table["prompt"], seed)
    notes = []
    for scope, rows in found.groupby("scope", sort=False):
        each = [
            f"{row['arm']} {row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            for row in rows.fillna({"arm": "all arms"}).to_dict("records")
        ]
        where = "within prompts" if scope == "within_prompt" else "across prompts"
        notes.append(f"rank correlation with {PUBLISHED}, {where}: {', '.join(each)}")
    return found, notes


def _within_prompt(table: pd.DataFrame, seed: int) -> tuple[Interval | None, int]:
    """(mean over prompts of the correlation among a prompt's answers, prompts skipped); None when none has one."""
    rho = [
        float(spearmanr(part["ours"], part["published"]).statistic)
        for _, part in table.groupby("prompt", sort=False)
        if len(part) >= 3 and part["ours"].nunique() > 1 and part["published"].nunique() > 1
    ]
    return (bootstrap_mean(rho, None, seed) if rho else None), table["prompt"].nunique() - len(rho)
