"""What a run's tables say about its arms: the measures of claims 5 to 11."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from suites.boilerplate import mine
from suites.claims_contrasts import Contrast, NotMeasured
from suites.claims_tables import RL_START, Elo, Tables, change, final, of_arm, part
from suites.goodharting import equal_parts

# ---------------------------------------------------------------- Elo (claims 5 to 7)


def _elo(tables: Tables, kind: str, *arms: str) -> Elo:
    return Elo(tables, kind, f"run suite elo with {kind} comparisons of {', '.join(arms)}")


def harmlessness_order(tables: Tables) -> list[Contrast]:
    """Harmlessness Elo of each arm minus that of the next lower: helpful_only, sl_cai, hh_rlhf, rl_cai."""
    order = ["helpful_only", "sl_cai", "hh_rlhf", "rl_cai"]
    elo = _elo(tables, "harmlessness", *order)
    return [Contrast(f"{b} - {a}", elo.difference(b, a)) for a, b in itertools.pairwise(order)]


def helpfulness_kept(tables: Tables) -> list[Contrast]:
    """Helpfulness Elo of rl_cai minus that of hh_rlhf.

    Assay: hh_rlhf beats the pretrained model by more than the margin, as a non-inferiority trial's active control must
    beat placebo (Pigeot et al. 2003).
    """
    elo = _elo(tables, "helpfulness", "rl_cai", "hh_rlhf", "pretrained")
    return [
        Contrast("rl_cai - hh_rlhf", elo.difference("rl_cai", "hh_rlhf")),
        Contrast("hh_rlhf - pretrained", elo.difference("hh_rlhf", "pretrained"), "exceeds", role="assay"),
    ]


def chain_of_thought_elo(tables: Tables) -> list[Contrast]:
    """Harmlessness and helpfulness Elo of rl_cai_cot minus those of rl_cai."""
    harmless, helpful = (_elo(tables, kind, "rl_cai_cot", "rl_cai") for kind in ("harmlessness", "helpfulness"))
    return [
        Contrast("harmlessness, cot - plain", harmless.difference("rl_cai_cot", "rl_cai")),
        Contrast("helpfulness, cot - plain", helpful.difference("rl_cai_cot", "rl_cai"), direction="decrease"),
    ]


# ---------------------------------------------------------------- evasiveness (claims 8 and 9)


def _evasive(tables: Tables, remedy: str) -> pd.DataFrame:
    """Evasiveness labels, on red-team prompts where kinds are known, with `evades` 0 or 1."""
    table = tables.read("evasiveness/responses", ["prompt", "arm", "step", "label"], remedy)
    if "kind" in table and (table["kind"] == "harmless").any():
        table = table[table["kind"] == "harmless"]
    return table.assign(evades=(table["label"] == "evades").astype(float))


def evasive_final(tables: Tables) -> list[Contrast]:
    """Evasive rate of rl_cai minus that of hh_rlhf; harmlessness Elo likewise, which must not fall by the margin.

    Assay: hh_rlhf beats helpful_only, which was never trained to be harmless, by more than the margin.
    """
    remedy = "run suite evasiveness on responses of rl_cai and hh_rlhf"
    table = _evasive(tables, remedy)
    parts = [part(w, final(of_arm(table, arm, remedy)), "evades") for w, arm in ((1, "rl_cai"), (-1, "hh_rlhf"))]
    evasive = Contrast("evasive rate, rl_cai - hh_rlhf", tables.combine(*parts), "difference", "decrease")
    try:
        elo = _elo(tables, "harmlessness", "rl_cai", "hh_rlhf", "helpful_only")
        harmless = elo.difference("rl_cai", "hh_rlhf")
        assay = elo.difference("hh_rlhf", "helpful_only")
    except NotMeasured as missing:
        raise NotMeasured(f"whether rl_cai is more harmful: {missing}", [evasive]) from None
    return [
        evasive,
        Contrast("harmlessness Elo, rl_cai - hh_rlhf", harmless),
        Contrast("harmlessness Elo, hh_rlhf - helpful_only", assay, "exceeds", role="assay"),
    ]


def decline_along_rl(tables: Tables) -> list[Contrast]:
    """Late change of both Elos, of hh_rlhf (a decline) and of rl_cai (none past the margin); and what explains it,
    the evasive rate of hh_rlhf late in RL minus that of the model that its RL started from.
    """
    remedy = "run suites elo and evasiveness on pretrained, sl_cai and two or more snapshots of hh_rlhf and rl_cai"
    contrasts = []
    for kind in ("harmlessness", "helpfulness"):
        elo = Elo(tables, kind, remedy)
        name = f"{kind} Elo late in RL"
        contrasts.append(Contrast(f"{name}, hh_rlhf", elo.late_change("hh_rlhf"), "difference", "decrease"))
        contrasts.append(Contrast(f"{name}, rl_cai", elo.late_change("rl_cai"), "non_inferiority", "increase"))
    table = _evasive(tables, remedy)
    rows = of_arm(table, "hh_rlhf", remedy)
    start = final(of_arm(table, RL_START["hh_rlhf"], remedy))
    place = tables.order_of(rows)
    late = rows[place.isin(sorted(place.unique())[-max(1, place.nunique() // 3) :])]
    grown = tables.combine(part(1, late, "evades"), part(-1, start, "evades"))
    return [*contrasts, Contrast("evasive rate, hh_rlhf late - start of RL", grown, "difference", "increase")]


# ---------------------------------------------------------------- harmfulness and boilerplate (claims 10 and 11)


def harmful_along_rl(tables: Tables) -> list[Contrast]:
    """Late minus early harmfulness (0 to 4) of helpful_only, and how far that exceeds the change of the others."""
    remedy = "run suite harmfulness on several snapshots of helpful_only, hh_rlhf and rl_cai"
    table = tables.read("harmfulness/responses", ["prompt", "arm", "step", "score"], remedy)
    if "stand_in" in table and table["stand_in"].any():
        raise NotMeasured(
            f"the harmfulness regressor was fitted on the shipped stand-in; {remedy}, with data.harm_ratings"
        )
    if "temperature" in table and (table["temperature"] == 1).any():
        table = table[table["temperature"] == 1]
    own = change(tables, of_arm(table, "helpful_only", remedy), "score", 1, remedy)
    others = {arm: change(tables, of_arm(table, arm, remedy), "score", -1, remedy) for arm in ("hh_rlhf", "rl_cai")}
    exceeds = [Contrast(f"helpful_only's change - {arm}'s", tables.combine(*own, *p)) for arm, p in others.items()]
    return [Contrast("helpful_only, late - early", tables.combine(*own)), *exceeds]


def over_trained(tables: Tables) -> list[Contrast]:
    """Boilerplate rate of rl_cai's last model minus those of hh_rlhf and helpful_only.

    Premise: rl_cai is over-trained. From the first third of its snapshots to the last its proxy PM's score of held-out
    answers rises, and the gold PM's does not by the margin, in standard deviations of the early answers' scores.
    """
    remedy = "run suite goodharting on responses of rl_cai, and of hh_rlhf or helpful_only"
    table = tables.read("goodharting/responses", ["prompt", "response", "arm", "step", "sample", "label"], remedy)
    table = table.assign(held=(table["label"] == "boilerplate").astype(float))
    others = [arm for arm in ("hh_rlhf", "helpful_only") if (table["arm"] == arm).any()]
    if not others:
        raise NotMeasured(f"no arm to compare rl_cai with; {remedy}")
    contrasts = []
    for arm in others:
        a, b = final(of_arm(table, "rl_cai", remedy)), final(of_arm(table, arm, remedy))
        of_a, of_b = equal_parts(a, b, tables.seed)
        parts = [part(1, _mined(a, of_a), "held"), part(-1, _mined(b, of_b), "held")]
        contrasts.append(Contrast(f"boilerplate rate, rl_cai - {arm}", tables.combine(*parts)))
    try:
        return [*contrasts, *_over_optimised(tables)]
    except NotMeasured as missing:
        raise NotMeasured(f"whether rl_cai is over-trained: {missing}", contrasts) from None


def _over_optimised(tables: Tables) -> list[Contrast]:
    remedy = "run rl_cai with two or more snapshots and suite goodharting in `cai run`"
    along = tables.read("goodharting/along_rl", ["arm", "step", "prompt", "proxy", "gold"], remedy)
    rows = of_arm(along, "rl_cai", remedy)
    proxy = tables.combine(*change(tables, rows, "proxy", 1, remedy))
    early = rows[rows["step"] == rows["step"].min()]
    if np.ptp(early["gold"]) == 0:
        raise NotMeasured("the gold PM gives all answers of the first snapshot one score")
    gold = tables.combine(*change(tables, rows, "gold", 1, remedy), unit=part(1, early, "gold"))
    return [
        Contrast("proxy score, late - early", proxy, "difference", "increase", "premise"),
        Contrast("gold score, late - early (SD)", gold, "non_inferiority", "decrease", "premise"),
    ]


def _mined(rows: pd.DataFrame, kept: np.ndarray) -> pd.DataFrame:
    """The kept rows; mined anew where they are fewer, since more text shows more recurrence."""
    if kept.all():
        return rows
    chosen = rows[kept]
    held = mine(chosen["prompt"].tolist(), chosen["response"].tolist(), listed=0).held
    return chosen.assign(held=held.astype(float))
