"""Tables that report and dashboard share: scoreboard, the five rows, claims, provenance, responses side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from reports import judging, reading
from reports.load import RunData, final_rows, in_order
from suites import registry
from suites.claims import WEIGHED

SIGNALS = {
    "hh_rlhf": "a PM of people's comparisons, for helpfulness and for harm",
    "rl_cai": "a PM of people's comparisons for helpfulness and of AI comparisons, by written principles, for harm",
}
NOT_MEASURED = "not measured"
NO_CLAMP = "none"
PAPER = Path(__file__).with_name("paper.yaml")
VERDICTS = {  # background, ink, sign: the word always stands beside them
    "reproduced": ("#d5efe6", "#00503a", "✓"),
    "contradicted": ("#fbdccb", "#7a2c00", "✗"),
    "underpowered": ("#fdf0c8", "#5c4700", "?"),
    "judge cannot tell": ("#e6e0f2", "#41306b", "⚖"),
    "not measured": ("#ececec", "#444444", "∅"),
}
SIGNS = ", ".join(f"{sign} {word}" for word, (_, _, sign) in VERDICTS.items())  # where a sign stands alone


def scoreboard(run: RunData) -> pd.DataFrame:
    """A row an arm, a column a metric, as text "estimate [low, high]"; metrics without any value are left out.

    A column says where the judge behind it cannot tell. Further judges' Elo stands beside the first one's.
    """
    rows = final_rows(run.summary)
    table = pd.DataFrame({"arm": run.arms})
    for metric, (known, unit, _) in reading.METRICS.items():
        others = sorted(found for found in set(rows["metric"]) if found.startswith(f"{metric}@"))
        for column in (metric, *others):
            found = rows[rows["metric"] == column].drop_duplicates("arm").set_index("arm")
            if found.empty:
                continue
            title = f"{known} ({unit})" if unit != "Elo" else known
            title += f", by {column.removeprefix(f'{metric}@')}" if column != metric else ""
            mark = judging.mark(run, column)
            table[f"{title} [{mark}]" if mark else title] = [_cell(found, arm, unit) for arm in run.arms]
    own = rows[~rows["suite"].isin(registry.names())]
    for name, part in own.groupby("metric", sort=False):
        by_arm = part.drop_duplicates("arm").set_index("arm")
        table[str(name)] = [_cell(by_arm, arm, "") for arm in run.arms]
    return table


def _cell(found: pd.DataFrame, arm: str, unit: str) -> str:
    if arm not in found.index:
        return NOT_MEASURED
    row = found[found.index == arm].iloc[0]
    return reading.interval(float(row["estimate"]), float(row["low"]), float(row["high"]), unit)


def five_rows(run: RunData) -> pd.DataFrame:
    """The paper's argument: hh_rlhf beside rl_cai, as columns what, hh_rlhf, rl_cai."""
    measured = {"elo_harmlessness", "elo_helpfulness", "evasive_rate"}
    rows: list[dict[str, str]] = []
    final = final_rows(run.summary)
    for metric, (name, unit, better) in reading.METRICS.items():
        if metric in measured:
            found = final[final["metric"] == metric].drop_duplicates("arm").set_index("arm")
            cells = {arm: _cell(found, arm, unit) for arm in SIGNALS}
            rows.append({"what": f"{name} ({better} is better)"} | cells)
    used = run.about.get("human_harm_labels")
    counts = used if isinstance(used, dict) else {}
    said = {arm: "unknown" if counts[arm] is None else str(counts[arm]) for arm in SIGNALS if arm in counts}
    labels = {arm: said.get(arm, "not recorded in this folder") for arm in SIGNALS}
    annotator = run.about.get("annotator")
    by = str(annotator.get("harmless", "human")) if isinstance(annotator, dict) else "human"
    data = run.about.get("data")
    if by != "human":
        used_some = [arm for arm in SIGNALS if counts.get(arm)]
        labels |= {arm: f"0; {labels[arm]} by {by}, a function in place of people" for arm in used_some}
    elif isinstance(data, list) and any("harmless labels" in str(note) and "stand-in" in str(note) for note in data):
        used_some = [arm for arm in SIGNALS if counts.get(arm)]
        labels |= {arm: f"{labels[arm]}, shipped with the harness as a stand-in for people's" for arm in used_some}
    rows.append({"what": "Human harm labels used"} | labels)
    rows.append({"what": "What the training signal consists of"} | SIGNALS)
    return pd.DataFrame(rows)


def claims(run: RunData) -> pd.DataFrame:
    """id, statement, source, verdict, effect (text), n, smallest effect, note. Raises `Missing`."""
    columns = ["id", "statement", "source", "verdict", "effect", "low", "high", "n", "mde", "note"]
    rows = run.need("claims", columns)
    shown = []
    for row in rows.to_dict("records"):
        measured = row["verdict"] in WEIGHED
        shown.append(
            {
                "id": int(row["id"]),
                "statement": str(row["statement"]),
                "source": str(row["source"]),
                "verdict": str(row["verdict"]),
                "effect": reading.significant(row["effect"], row["low"], row["high"]) if measured else "",
                "n": str(int(row["n"])) if measured else "",
                "smallest effect": reading.short(row["mde"]) if measured and pd.notna(row["mde"]) else "",
                "note": str(row["note"] or ""),
            }
        )
    return pd.DataFrame(shown)


def beside_paper(run: RunData) -> pd.DataFrame:
    """The paper's scale beside the run's: what, the paper, this run, source. Empty for folders of no experiment."""
    settings = run.experiment
    rows = []
    for fact in yaml.safe_load(PAPER.read_text(encoding="utf-8"))["facts"] if settings else []:
        *sections, key = str(fact.get("ours", "")).split(".")
        value: Any = settings
        for section in sections:
            value = value.get(section) if isinstance(value, dict) else None
        if sections and isinstance(value, dict) and key in value:
            own = NO_CLAMP if value[key] is None else _amount(value[key])
            paper = f"{_amount(fact['value'])} {fact['unit']}"
            rows.append({"what": fact["what"], "the paper": paper, "this run": own, "source": fact["source"]})
    return pd.DataFrame(rows, columns=["what", "the paper", "this run", "source"])


def _amount(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(_amount, value))
    return f"{value:,g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def provenance(run: RunData) -> list[tuple[str, str]]:
    """What made these numbers, as (what, value); what is not recorded says so."""
    about = run.about
    models = about.get("models") if isinstance(about.get("models"), dict) else {}
    rows = [
        ("Kind", {"run": "cai run", "eval": "cai eval"}.get(str(about.get("kind")), "")),
        ("Made", str(about.get("created", ""))),
        ("Models", _pairs(models)),
        ("Data", _pairs(about.get("data"))),
        ("Scale", _pairs(about.get("scale"))),
        ("Seed", str(about.get("seed", ""))),
        ("Result of an RL arm", _results(run)),
        ("Commit", str(about.get("commit") or "")),
        ("Versions", _pairs(about.get("versions"))),
        ("Machine", _pairs(about["device"]) if isinstance(about.get("device"), dict) else str(about.get("device", ""))),
        ("Cost", _cost(about)),
    ]
    return [(what, value or "not recorded") for what, value in rows]


def stages(run: RunData) -> pd.DataFrame:
    """What each stage cost (stage, key, finished, wall_seconds, ...); empty where the run does not say."""
    said = run.about.get("stages")
    return pd.DataFrame([row for row in said if isinstance(row, dict)] if isinstance(said, list) else [])


def _results(run: RunData) -> str:
    """Which snapshot counts as the result of each arm, and by which rule."""
    rl = run.experiment.get("rl")
    rule = rl.get("result") if isinstance(rl, dict) else None
    if rule is None:
        return ""
    if rule == "last":
        return "the last update"
    rows = run.results
    if rows.empty:
        return f"by rule {rule}; which snapshots is not recorded"
    said = [f"{r.arm} update {r.step} of {r.last} ({reading.number(r.value)})" for r in rows.itertuples()]  # type: ignore[arg-type]  # untyped
    return f"by rule {rule} on {rows['n'].max()} training prompts: {', '.join(said)}"


def _pairs(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items() if v not in (None, {}, []))
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return "" if value is None else str(value)


def _cost(about: dict[str, Any]) -> str:
    said = []
    if isinstance(about.get("wall_seconds"), int | float):
        said.append(f"{about['wall_seconds'] / 60:.1f} minutes")
    if isinstance(about.get("tokens"), int):
        uncounted = len(about.get("tokens_not_counted") or [])
        said.append(f"{about['tokens']:,} tokens" + f" and those of {uncounted} stages not counted" * bool(uncounted))
    if isinstance(about.get("peak_memory_bytes"), int | float):
        said.append(f"{about['peak_memory_bytes'] / 2**30:.1f} GiB of memory at most")
    return ", ".join(said)


def side_by_side(run: RunData, most: int = 10) -> list[dict[str, Any]]:
    """Prompts that every arm answered, half of each kind: {prompt, kind, responses: {arm: text}}. Raises `Missing`.

    The first sample of final models. Prompts are taken evenly from the sorted list, so none is picked by its answers.
    """
    rows = final_rows(run.need("responses", ["prompt", "response", "arm"]))
    extra = run.table("responses", ["step", "sample", "kind"])
    if extra is not None and len(extra.columns):
        whole = run.need("responses", ["prompt", "response", "arm"]).join(extra)
        rows = final_rows(whole)
    if "kind" not in rows:
        rows = rows.assign(kind=None)
    if "sample" in rows:
        rows = rows.sort_values("sample", kind="stable")
    rows = rows.astype({"prompt": str, "arm": str}).drop_duplicates(["prompt", "arm"])
    arms = in_order(set(rows["arm"]))
    complete = rows.groupby("prompt")["arm"].nunique()
    asked = complete[complete == max(complete)].index
    first = rows[rows["prompt"].isin(asked)].drop_duplicates("prompt").set_index("prompt")["kind"]
    kinds = [part for _, part in first.groupby(first.astype("string").fillna(""))]
    chosen: list[str] = []
    for place, part in enumerate(kinds):
        share = most // len(kinds) + (1 if place < most % len(kinds) else 0)
        prompts = sorted(part.index)
        every = max(1, len(prompts) // max(1, share))
        chosen += prompts[::every][:share]
    found = []
    for prompt in chosen:
        texts = rows[rows["prompt"] == prompt].set_index("arm")["response"]
        kind = first[prompt]
        found.append(
            {
                "prompt": prompt,
                "kind": "" if pd.isna(kind) else str(kind),
                "responses": {arm: str(texts[arm]) for arm in arms if arm in texts.index},
            }
        )
    return found
