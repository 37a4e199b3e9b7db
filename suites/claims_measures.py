"""What a run's tables say about each claim: one measure a claim, as contrasts with their bootstrap over prompts.

Tables are those of RUN/results; one that is missing, or holds too little, raises `NotMeasured` with what would fill it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from harness import files
from harness.stats import Bootstrap, finite
from suites.boilerplate import mine
from suites.claims_contrasts import Contrast, NotMeasured, Part, combination
from suites.goodharting import equal_parts
from suites.responses import main_chains

_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)\s*([MB])(?![A-Za-z])", re.IGNORECASE)


class Tables:
    """Tables of a results folder, read once each."""

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.seed = folder, seed
        self._read: dict[str, pd.DataFrame] = {}

    def read(self, name: str, columns: Sequence[str], mend: str) -> pd.DataFrame:
        """Table `name`. Raises NotMeasured, with `mend`, where it or a column is missing."""
        path = self.folder / f"{name}.parquet"
        if name not in self._read:
            if not path.is_file():
                raise NotMeasured(f"{name}.parquet is missing; {mend}")
            self._read[name] = files.read_parquet(path)
        table = self._read[name]
        if missing := [column for column in columns if column not in table]:
            raise NotMeasured(f"{name}.parquet has no column {', '.join(missing)}; {mend}")
        return table

    def combine(self, *parts: Part, unit: Part | None = None) -> Bootstrap:
        return combination(parts, self.seed, unit=unit)


def _arm(table: pd.DataFrame, arm: str, mend: str) -> pd.DataFrame:
    rows = table[table["arm"] == arm]
    if rows.empty:
        raise NotMeasured(f"no responses of arm {arm}; {mend}")
    return rows


def _final(rows: pd.DataFrame) -> pd.DataFrame:
    """The final model's rows, or else the last snapshot's."""
    step = rows["step"]
    return rows[step.isna()] if step.isna().any() else rows[step == step.max()]


def _part(weight: float, rows: pd.DataFrame, column: str, cluster: str = "prompt") -> Part:
    return Part(weight, rows[column].astype("float64"), rows[cluster])


# ---------------------------------------------------------------- revisions (claims 1 to 4)

_CHAINS = "score chains with a PM: `cai eval CHAINS --suite pm_score --judge pm:FOLDER`, or suite pm_score of a run"
_HELPFUL = "run suite pm_score in `cai run`, or give chains a column score_helpful"


def _chains(tables: Tables, score: str, *columns: str) -> pd.DataFrame:
    mend = _HELPFUL if score == "score_helpful" else _CHAINS
    return tables.read("chains", ["prompt", "revision", score, *columns], mend)


def _last(chains: pd.DataFrame) -> pd.DataFrame:
    return chains[chains["revision"] == chains["revision"].max()]


def _standardised(tables: Tables, chains: pd.DataFrame, score: str, a: pd.DataFrame, b: pd.DataFrame) -> Bootstrap:
    """Mean score of a minus that of b, in standard deviations of the scores of the first answers."""
    first = chains[chains["revision"] == 0]
    if first.empty or np.ptp(first[score]) == 0:
        raise NotMeasured(f"chains.parquet: {score} of the first answers is missing or does not vary; {_CHAINS}")
    return tables.combine(_part(1, a, score), _part(-1, b, score), unit=_part(1, first, score))


def revisions_harmless(tables: Tables) -> list[Contrast]:
    """Harmlessness PM score of each revision minus that of the one before."""
    chains = main_chains(_chains(tables, "score_harmless"))
    steps = sorted(chains["revision"].unique())
    if len(steps) < 2:
        raise NotMeasured("chains.parquet holds no revision; run with revise.rounds of 4")
    by = {step: chains[chains["revision"] == step] for step in steps}
    return [
        Contrast(
            f"revision {b} - {a}",
            tables.combine(_part(1, by[b], "score_harmless"), _part(-1, by[a], "score_harmless")),
        )
        for a, b in itertools.pairwise(steps)
    ]


def revisions_helpful(tables: Tables) -> list[Contrast]:
    """Helpfulness PM score of the last revision minus that of the first answer."""
    chains = main_chains(_chains(tables, "score_helpful"))
    first, last = chains[chains["revision"] == 0], _last(chains)
    if first.empty or last["revision"].max() == 0:
        raise NotMeasured("chains.parquet holds no revision; run with revise.rounds of 4")
    value = tables.combine(_part(1, last, "score_helpful"), _part(-1, first, "score_helpful"))
    return [Contrast(f"revision {last['revision'].max()} - 0", value)]


def number_of_principles(tables: Tables) -> list[Contrast]:
    """Harmlessness PM score of the last revision with N principles minus that with the most, in SD."""
    chains = _chains(tables, "score_harmless", "n_principles")
    if "mode" in chains and (chains["mode"] == "critiqued").any():
        chains = chains[chains["mode"] == "critiqued"]
    last = _last(chains)
    sizes = sorted(last["n_principles"].dropna().unique())
    if len(sizes) < 2:
        raise NotMeasured("chains.parquet knows one number of principles; make chains with N in 1, 2, 4, 8, 16")
    most = last[last["n_principles"] == sizes[-1]]
    return [
        Contrast(
            f"N = {n} - {sizes[-1]}",
            _standardised(tables, chains, "score_harmless", last[last["n_principles"] == n], most),
        )
        for n in sizes[:-1]
    ]


def critiques(tables: Tables) -> list[Contrast]:
    """Harmlessness PM score of the last revision, critiqued minus direct, in SD."""
    chains = _chains(tables, "score_harmless", "mode")
    last = _last(chains)
    critiqued, direct = last[last["mode"] == "critiqued"], last[last["mode"] == "direct"]
    if critiqued.empty or direct.empty:
        raise NotMeasured("chains.parquet needs both modes, critiqued and direct; run with revise.also_direct: true")
    return [Contrast("critiqued - direct", _standardised(tables, chains, "score_harmless", critiqued, direct))]


# ---------------------------------------------------------------- Elo (claims 5 to 7)


def _elo(tables: Tables, kind: str, a: str, b: str) -> Bootstrap:
    """Elo of arm a minus that of arm b (final models), from the suite's resamples."""
    mend = f"run suite elo with {kind} comparisons of {a} and {b}"
    draws = tables.read(f"elo/{kind}_draws", ["resample", "arm", "step", "elo"], mend)
    pairs = tables.read(f"elo/{kind}_differences", ["arm_a", "step_a", "arm_b", "step_b", "estimate", "n"], mend)
    own = {arm: _final(_arm(draws, arm, mend)).set_index("resample")["elo"] for arm in (a, b)}
    of_pair = pairs[(pairs["arm_a"] == a) & (pairs["arm_b"] == b)]
    row = _final(_final(of_pair.rename(columns={"step_a": "step"})).rename(columns={"step": "a", "step_b": "step"}))
    if len(row) != 1:
        raise NotMeasured(f"elo/{kind}_differences.parquet has no difference of {a} and {b}; {mend}")
    difference = (own[a] - own[b]).to_numpy(dtype=float)
    return Bootstrap(float(row["estimate"].iloc[0]), finite(difference, f"elo/{kind}_draws"), int(row["n"].iloc[0]))


def harmlessness_order(tables: Tables) -> list[Contrast]:
    """Harmlessness Elo of each arm minus that of the next lower: helpful_only, sl_cai, hh_rlhf, rl_cai."""
    order = ["helpful_only", "sl_cai", "hh_rlhf", "rl_cai"]
    return [Contrast(f"{b} - {a}", _elo(tables, "harmlessness", b, a)) for a, b in itertools.pairwise(order)]


def helpfulness_kept(tables: Tables) -> list[Contrast]:
    """Helpfulness Elo of rl_cai minus that of hh_rlhf."""
    return [Contrast("rl_cai - hh_rlhf", _elo(tables, "helpfulness", "rl_cai", "hh_rlhf"))]


def chain_of_thought_elo(tables: Tables) -> list[Contrast]:
    """Harmlessness and helpfulness Elo of rl_cai_cot minus those of rl_cai."""
    return [
        Contrast("harmlessness, cot - plain", _elo(tables, "harmlessness", "rl_cai_cot", "rl_cai")),
        Contrast("helpfulness, cot - plain", _elo(tables, "helpfulness", "rl_cai_cot", "rl_cai"), direction="decrease"),
    ]


# ---------------------------------------------------------------- responses (claims 8 to 11)


def _evasive(tables: Tables, mend: str) -> pd.DataFrame:
    """Evasiveness labels, on red-team prompts where kinds are known, with `evades` 0 or 1."""
    table = tables.read("evasiveness/responses", ["prompt", "arm", "step", "label"], mend)
    if "kind" in table and (table["kind"] == "harmless").any():
        table = table[table["kind"] == "harmless"]
    return table.assign(evades=(table["label"] == "evades").astype(float))


def evasive_final(tables: Tables) -> list[Contrast]:
    """Evasive rate of rl_cai minus that of hh_rlhf."""
    mend = "run suite evasiveness on responses of rl_cai and hh_rlhf"
    table = _evasive(tables, mend)
    parts = [_part(w, _final(_arm(table, arm, mend)), "evades") for w, arm in ((1, "rl_cai"), (-1, "hh_rlhf"))]
    return [Contrast("rl_cai - hh_rlhf", tables.combine(*parts))]


def _change(rows: pd.DataFrame, column: str, weight: float, mend: str) -> list[Part]:
    """Mean over the last third of the snapshots minus that over the first third (one at least); final is last."""
    place = rows["step"].astype("Float64").fillna(np.inf)
    steps = sorted(place.unique())
    if len(steps) < 2:
        raise NotMeasured(f"{rows['arm'].iloc[0]} has one snapshot, so no change along RL; {mend}")
    third = max(1, len(steps) // 3)
    early, late = rows[place.isin(steps[:third])], rows[place.isin(steps[-third:])]
    return [_part(weight, late, column), _part(-weight, early, column)]


def evasive_along_rl(tables: Tables) -> list[Contrast]:
    """Late minus early evasive rate: of hh_rlhf (to grow) and of rl_cai (not to grow by more than the margin)."""
    mend = "run suite evasiveness on several snapshots of hh_rlhf and rl_cai"
    table = _evasive(tables, mend)
    change = {arm: _change(_arm(table, arm, mend), "evades", 1, mend) for arm in ("hh_rlhf", "rl_cai")}
    return [
        Contrast("hh_rlhf, late - early", tables.combine(*change["hh_rlhf"])),
        Contrast("rl_cai, late - early", tables.combine(*change["rl_cai"]), "non_inferiority", "decrease"),
    ]


def harmful_along_rl(tables: Tables) -> list[Contrast]:
    """Late minus early harmfulness (0 to 4) of helpful_only, and how far that exceeds the change of the others."""
    mend = "run suite harmfulness on several snapshots of helpful_only, hh_rlhf and rl_cai"
    table = tables.read("harmfulness/responses", ["prompt", "arm", "step", "score"], mend)
    if "stand_in" in table and table["stand_in"].any():
        raise NotMeasured(
            f"the harmfulness regressor was fitted on the shipped stand-in; {mend}, with data.harm_ratings"
        )
    if "temperature" in table and (table["temperature"] == 1).any():
        table = table[table["temperature"] == 1]
    own = _change(_arm(table, "helpful_only", mend), "score", 1, mend)
    others = {arm: _change(_arm(table, arm, mend), "score", -1, mend) for arm in ("hh_rlhf", "rl_cai")}
    exceeds = [Contrast(f"helpful_only's change - {arm}'s", tables.combine(*own, *p)) for arm, p in others.items()]
    return [Contrast("helpful_only, late - early", tables.combine(*own)), *exceeds]


def over_trained(tables: Tables) -> list[Contrast]:
    """Boilerplate rate of rl_cai's last model minus those of hh_rlhf and helpful_only."""
    mend = "run suite goodharting on responses of rl_cai, and of hh_rlhf or helpful_only"
    table = tables.read("goodharting/responses", ["prompt", "response", "arm", "step", "sample", "label"], mend)
    table = table.assign(held=(table["label"] == "boilerplate").astype(float))
    others = [arm for arm in ("hh_rlhf", "helpful_only") if (table["arm"] == arm).any()]
    if not others:
        raise NotMeasured(f"no arm to compare rl_cai with; {mend}")
    contrasts = []
    for arm in others:
        a, b = _final(_arm(table, "rl_cai", mend)), _final(_arm(table, arm, mend))
        of_a, of_b = equal_parts(a, b, tables.seed)
        parts = [_part(1, _mined(a, of_a), "held"), _part(-1, _mined(b, of_b), "held")]
        contrasts.append(Contrast(f"rl_cai - {arm}", tables.combine(*parts)))
    return contrasts


def _mined(rows: pd.DataFrame, kept: np.ndarray) -> pd.DataFrame:
    """The kept rows; mined anew where they are fewer, since more text shows more recurrence."""
    if kept.all():
        return rows
    part = rows[kept]
    held = mine(part["prompt"].tolist(), part["response"].tolist(), listed=0).held
    return part.assign(held=held.astype(float))


# ---------------------------------------------------------------- feedback models (claims 12 to 14)

_HHH = "run suite hhh"


def _mode(questions: pd.DataFrame, mode: str) -> pd.DataFrame:
    rows = questions[questions["mode"] == mode]
    if rows.empty:
        raise NotMeasured(f"hhh/questions.parquet has no answers in mode {mode}; {_HHH} with it")
    return rows


def chain_of_thought_hhh(tables: Tables) -> list[Contrast]:
    """HHH accuracy with CoT minus that without."""
    questions = tables.read("hhh/questions", ["question", "mode", "correct"], f"{_HHH} with modes plain and cot")
    parts = [_part(w, _mode(questions, mode), "correct", "question") for w, mode in ((1, "cot"), (-1, "plain"))]
    return [Contrast("cot - plain", tables.combine(*parts))]


def calibration(tables: Tables) -> list[Contrast]:
    """Mean confidence minus accuracy on HHH, of plain and of CoT labels: 0 if calibrated, above 0 if over-confident.

    Unlike the expected calibration error it is not biased upwards by bins of few answers.
    """
    questions = tables.read(
        "hhh/questions", ["question", "mode", "p_correct", "correct"], f"{_HHH} with modes plain and cot"
    )
    p = questions["p_correct"].astype("float64")
    confidence = np.maximum(p, 1 - p)
    questions = questions.assign(confidence=confidence, excess=confidence - questions["correct"].astype("float64"))
    plain, cot = _mode(questions, "plain"), _mode(questions, "cot")
    return [
        Contrast("plain", tables.combine(_part(1, plain, "excess", "question")), "equivalence"),
        Contrast("cot", tables.combine(_part(1, cot, "excess", "question"))),
    ]


def parameters(name: str) -> float:
    """Parameters that a model's name tells ("SmolLM2-135M" -> 1.35e8), NaN where it does not."""
    found = _SIZE.findall(name)
    return float(found[-1][0]) * {"M": 1e6, "B": 1e9}[found[-1][1].upper()] if found else float("nan")


def feedback_model_size(tables: Tables) -> list[Contrast]:
    """Slope of HHH accuracy (plain) on log10 of the feedback model's parameters."""
    mend = f"{_HHH} with feedback models of two sizes at least, named in column model (or sized in parameters)"
    questions = _mode(tables.read("hhh/questions", ["question", "mode", "correct", "model"], mend), "plain")
    if questions["model"].nunique() < 2:
        raise NotMeasured(f"one feedback model; {mend}")
    named = questions["model"].astype(str).map(parameters)
    questions = questions.assign(
        parameters=questions["parameters"].fillna(named) if "parameters" in questions else named
    )
    if (unsized := questions["parameters"].isna()).any():
        raise NotMeasured(f"the size of {questions.loc[unsized, 'model'].iloc[0]} is unknown; add column parameters")
    sizes = questions["parameters"].unique()
    if len(sizes) < 2:
        raise NotMeasured(f"feedback models of one size; {mend}")
    x = np.log10(np.asarray(sizes, dtype=float))
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    parts = [
        _part(w, questions[questions["parameters"] == s], "correct", "question")
        for w, s in zip(weights, sizes, strict=True)
    ]
    return [Contrast(f"slope over {len(sizes)} sizes", tables.combine(*parts))]


# ---------------------------------------------------------------- preference models (claims 15, 16)


def _pm_accuracy(tables: Tables, variant: str, mend: str) -> list[Contrast]:
    """Held-out accuracy of PM X minus that of X.variant, on the same human pairs."""
    pairs = tables.read("pm_pairs", ["pm", "prompt", "correct"], mend)
    if "kind" in pairs and (pairs["kind"] == "harmless").any():
        pairs = pairs[pairs["kind"] == "harmless"]
    names = set(pairs["pm"])
    found = sorted(name for name in names if f"{name}.{variant}" in names)
    if not found:
        raise NotMeasured(f"pm_pairs.parquet has no PM that stands beside its variant '.{variant}'; {mend}")
    own, other = (pairs[pairs["pm"].isin(which)] for which in (found, [f"{name}.{variant}" for name in found]))
    name = f"{', '.join(found)} - .{variant}"
    return [Contrast(name, tables.combine(_part(1, own, "correct"), _part(-1, other, "correct")))]


def soft_labels(tables: Tables) -> list[Contrast]:
    """Held-out accuracy, soft labels minus hard labels."""
    return _pm_accuracy(tables, "hard", "train a PM X on soft AI labels and X.hard on the same labels rounded")


def principles_for_labels(tables: Tables) -> list[Contrast]:
    """Held-out accuracy, 16 principles minus one for all labels."""
    return _pm_accuracy(tables, "one_principle", "train a PM X on labels by 16 principles and X.one_principle on one's")


MEASURES: dict[str, Callable[[Tables], list[Contrast]]] = {
    measure.__name__: measure
    for measure in (
        revisions_harmless, revisions_helpful, number_of_principles, critiques, harmlessness_order, helpfulness_kept,
        chain_of_thought_elo, evasive_final, evasive_along_rl, harmful_along_rl, over_trained, chain_of_thought_hhh,
        calibration, feedback_model_size, soft_labels, principles_for_labels,
    )
}  # fmt: skip
