"""The first words of a report and of the Overview: what was trained, what was learned, what this run cannot show.

All of it is said from the run's own tables; what is not recorded is said to be so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.experiment import ARMS
from reports import reading
from reports.load import RunData
from suites.learned import COLUMNS, REWARD

RL_ARMS = tuple(arm for arm in ARMS if arm not in ("pretrained", "sl_cai"))  # packaged arms that are trained by RL
UNDECIDED = ("underpowered", "judge cannot tell", "not measured")


@dataclass(frozen=True)
class Opening:
    """Three sentences."""

    trained: str
    learned: str
    cannot: str

    def __iter__(self) -> Iterator[str]:
        return iter((self.trained, self.learned, self.cannot))


def of(run: RunData) -> Opening:
    """The opening of a run's report."""
    return Opening(_trained(run), _learned(run), _cannot(run))


# ---------------------------------------------------------------- what was trained


def _trained(run: RunData) -> str:
    if run.is_eval:
        return f"Nothing was trained here: these are measurements of given responses, of {_and(run.arms) or 'no arm'}."
    base = _of(run.about.get("models"), "base") or "a base model that is not recorded"
    said = [f"Trained from {base}, seed {run.about.get('seed', 'not recorded')}, on {machine(run)}"]
    rl, sft = run.experiment.get("rl"), run.experiment.get("sft")
    by_rl = [arm for arm in run.arms if arm in RL_ARMS]
    if by_rl and isinstance(rl, dict):
        answers = "" if rl.get("algorithm") == "dpo" else f" of {rl.get('rollouts_per_update')} answers"
        said.append(f"{_and(by_rl)} by {str(rl.get('algorithm')).upper()} of {rl.get('updates')} updates{answers}")
    if "sl_cai" in run.arms and isinstance(sft, dict):
        said.append(f"sl_cai by fine-tuning on revisions, {_count(sft.get('epochs'), 'epoch')}")
    own = [arm for arm in run.arms if arm not in (*RL_ARMS, "sl_cai", "pretrained")]
    if own:
        said.append(f"{_and(own)} by a method of the user's own")
    return f"{said[0]}: {'; '.join(said[1:]) or 'no arm'}."


def machine(run: RunData) -> str:
    """The machine that made the run, in words."""
    device = run.about.get("device")
    named = ", ".join(f"{k} {v}" for k, v in device.items()) if isinstance(device, dict) else str(device or "")
    return named or "a machine that is not recorded"


# ---------------------------------------------------------------- what was learned


def table(run: RunData) -> pd.DataFrame:
    """A row an arm: arm, what is measured, start, end, difference with its interval, prompts; empty without any."""
    rows = learned_rows(run)
    return pd.DataFrame(
        {
            "arm": rows["arm"],
            "what training optimises": rows["measure"],
            "start": [reading.number(value) for value in rows["start"]],
            "end": [reading.number(value) for value in rows["end"]],
            "end - start": [reading.interval(*each) for each in zip(rows["estimate"], rows["low"], rows["high"],
                                                                    strict=True)],
            "prompts": [str(int(n)) for n in rows["n"]],
        }
    )  # fmt: skip


def sentences(run: RunData) -> list[str]:
    """A plain sentence an arm: what training raised, what it did not, and for which arms that was not measured."""
    rows = learned_rows(run)
    said = [_sentence(row) for row in rows.to_dict("records")]
    said += [f"Whether training raised anything for {arm} was not measured: {why}." for arm, why in _unknown(run, rows)]
    return said


def _learned(run: RunData) -> str:
    if run.is_eval:
        return "What they learned cannot be said from responses alone."
    rows = learned_rows(run)
    if rows.empty:
        return "Whether anything was learned was not measured in this run (results/learned.parquet is missing)."
    parts = []
    for measure, part in rows.groupby("measure", sort=False):
        training = "RL" if measure == REWARD else "fine-tuning"
        for change, verb in (("up", "raised"), ("none", "did not raise"), ("down", "lowered")):
            there = part[[_change(row) == change for row in part.to_dict("records")]]
            if len(there):
                form = "{} ({})" if change == "none" else "{} by {}"
                named = [form.format(row["arm"], _effect(row)) for row in there.to_dict("records")]
                parts.append(f"{training} {verb} the {measure} of {_and(named)}")
    unknown = [arm for arm, _ in _unknown(run, rows)]
    parts += [f"it was not measured for {_and(unknown)}"] if unknown else []
    said = "; ".join(parts)
    return f"{said[:1].upper()}{said[1:]}."


def learned_rows(run: RunData) -> pd.DataFrame:
    """Rows of learned.parquet that can be read, in the order of arms; empty without any."""
    found = run.table("learned", COLUMNS)
    if found is None or set(COLUMNS) - set(found):
        return pd.DataFrame(columns=COLUMNS)
    numbers = found[["start", "end", "estimate", "low", "high", "n"]].apply(pd.to_numeric, errors="coerce")
    whole = found.assign(**numbers, arm=found["arm"].astype(str), measure=found["measure"].astype(str))
    whole = whole.dropna(subset=["start", "end", "estimate", "low", "high", "n"])
    order = {arm: place for place, arm in enumerate(run.arms)}
    place = whole["arm"].map(order).fillna(len(order))
    return whole.assign(place=place).sort_values("place", kind="stable")[COLUMNS].reset_index(drop=True)


def _unknown(run: RunData, rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Trained arms without a row, and why."""
    algorithm = _of(run.experiment.get("rl"), "algorithm")
    dpo = "DPO has no preference model, so no reward to score answers by"
    found = []
    for arm in run.arms:
        if arm != "pretrained" and arm not in set(rows["arm"]):
            no_chain = "no revision was kept from fine-tuning (sft.heldout)"
            why = dpo if algorithm == "dpo" and arm in RL_ARMS else no_chain if arm == "sl_cai" else "it has no row"
            found.append((arm, why))
    return found


def _sentence(row: dict[Any, Any]) -> str:
    arm, measure, training = row["arm"], row["measure"], "RL" if row["measure"] == REWARD else "Fine-tuning"
    change = _change(row)
    if change == "up":
        return f"{training} raised the {measure} of {arm} by {_effect(row)}."
    if change == "down":
        return f"{training} lowered the {measure} of {arm}: {_effect(row)}."
    return f"{training} did not raise the {measure} of {arm}: {_effect(row)} cannot be told from no change."


def _change(row: dict[Any, Any]) -> str:
    return "up" if row["low"] > 0 else "down" if row["high"] < 0 else "none"


def _effect(row: dict[Any, Any]) -> str:
    return reading.interval(row["estimate"], row["low"], row["high"])


# ---------------------------------------------------------------- what this run cannot show


def _cannot(run: RunData) -> str:
    parts = []
    verdicts = run.table("claims", ["verdict"])
    if verdicts is not None and "verdict" in verdicts and len(verdicts):
        undecided = int(verdicts["verdict"].isin(UNDECIDED).sum())
        if undecided:
            parts.append(f"whether {undecided} of the paper's {len(verdicts)} claims hold, which it leaves undecided")
    parts.append(stand_in(run))
    where = "" if run.is_eval else f" on one machine ({machine(run)})"
    parts.append(
        f"what the method does in general, since this is one run of one seed and one base model{where}: on another "
        "machine the sampled answers differ, and a verdict near its threshold may turn"
    )
    return f"This run cannot show: {'; '.join(part for part in parts if part)}."


def stand_in(run: RunData) -> str:
    """What follows from the shipped labels, where the run used them; else empty."""
    notes = run.about.get("data")
    shipped = isinstance(notes, Sequence) and any(
        "harmless labels" in str(note) and "stand-in" in str(note) for note in notes if isinstance(note, str)
    )
    if not shipped:
        return ""
    said = "what people prefer, since the shipped stand-in labels were written and not collected"
    if "hh_rlhf" in run.arms:
        said += (
            ", and they train hh_rlhf by one policy (a flat refusal beats harm) and judge it by another (an evasive "
            "answer loses to one that engages), so that claims 5 and 8 are partly built in"
        )
    return said


# ---------------------------------------------------------------- words


def _of(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _count(number: Any, what: str) -> str:
    value = f"{number:g}" if isinstance(number, int | float) else str(number)
    return f"{value} {what}" if value == "1" else f"{value} {what}s"


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1] if names else ""]))
