"""A run's answers and measures as logs of inspect_ai (format version 2), for its viewer and its data frames.

One log an arm or snapshot, which is inspect's model; its samples are the held-out prompts, their epochs the answers to
one prompt, and its scorers the suites. What a suite says of one answer is a score; its summary, the metrics, with the
ends of the 95 % interval as metrics beside each. Text is written as it is: the viewer treats it as data.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from harness import store
from harness.models import chat
from reports.load import RunData
from suites.responses import load_responses

_KEYS = ["prompt", "arm", "step", "sample"]


def write(run: RunData, folder: Path) -> list[Path]:
    """The logs of every arm and snapshot of `run`, in `folder`. Raises UserError for responses that cannot be read."""
    responses = load_responses([run.path("responses")])
    store.writable(folder)
    numbers = {prompt: number for number, prompt in enumerate(responses["prompt"].drop_duplicates(), start=1)}
    judged = {suite: scores for suite in run.suites if (scores := _scores(run, suite))}
    written = []
    key: Any
    for key, part in responses.groupby(["arm", "step"], dropna=False, sort=False):
        arm, step = key
        log = _log(run, str(arm), None if pd.isna(step) else int(step), part, numbers, judged)
        name = f"{_stamp(log['eval']['created'])}_{_plain(run.name)}_{_plain(log['eval']['model'])}.json"
        store.write_text(folder / name, json.dumps(log, ensure_ascii=False, allow_nan=False, indent=1))
        written.append(folder / name)
    return written


def _scores(run: RunData, suite: str) -> dict[tuple[Any, ...], tuple[float | None, str]]:
    """(score, label) of each answer that `suite` looked at, by prompt, arm, step and sample."""
    table = run.table(f"{suite}/responses", [*_KEYS, "label", "score"])
    if table is None or not {*_KEYS, "label", "score"} <= set(table):
        return {}
    step, sample, score = (pd.to_numeric(table[name], errors="coerce") for name in ("step", "sample", "score"))
    rows = zip(table["prompt"].astype(str), table["arm"].astype(str), step, sample, score, table["label"], strict=True)
    return {
        (prompt, arm, _whole(step), _whole(sample)): (_number(value), str(label))
        for prompt, arm, step, sample, value, label in rows
    }


def _log(
    run: RunData, arm: str, step: int | None, rows: pd.DataFrame, numbers: dict[str, int], judged: dict[str, Any]
) -> dict[str, Any]:
    model = arm if step is None else f"{arm}@{step}"
    created = _created(run)
    samples = [_sample(row, model, numbers[row["prompt"]], arm, step, judged) for row in rows.to_dict("records")]
    versions = run.about.get("versions")
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "run_id": _id(run.name, created),
            "eval_id": _id(run.name, created, model),
            "created": created,
            "task": run.name,
            "task_id": _id(run.name),
            "task_version": 0,
            "task_args": {"arm": arm} | ({} if step is None else {"step": step}),
            "dataset": {"name": "held-out prompts", "samples": rows["prompt"].nunique()},
            "model": model,
            "config": {"epochs": int(rows["sample"].nunique())},
            "packages": {str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {},
            "metadata": {"source": "cai-harness", "data": run.about.get("data"), "seed": run.about.get("seed")},
        },
        "plan": {"name": "plan", "steps": [{"solver": "cai-harness"}]},
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(samples),
            "scores": list(_summaries(run, arm, step)),
        },
        "stats": {"started_at": created, "completed_at": created},
        "samples": samples,
    }


def _sample(
    row: dict[Any, Any], model: str, number: int, arm: str, step: int | None, judged: dict[str, Any]
) -> dict[str, Any]:
    asked = [{"role": m["role"], "content": m["content"]} for m in chat.parse(row["prompt"])]
    answer = {"role": "assistant", "content": row["response"], "source": "generate"}
    ended = row.get("ended")
    stop = "unknown" if ended is None or pd.isna(ended) else "stop" if ended else "max_tokens"
    scores = {}
    for suite, table in judged.items():
        value, label = table.get((row["prompt"], arm, step, row["sample"]), (None, ""))
        if value is not None:
            scores[suite] = {"value": value, "answer": row["response"], "explanation": label}
    kind = row.get("kind")
    return {
        "id": number,
        "epoch": int(row["sample"]) + 1,
        "input": row["prompt"] if len(asked) == 1 else asked,
        "target": "",
        "messages": [*asked, answer],
        "output": {
            "model": model,
            "choices": [{"message": answer, "stop_reason": stop}],
            "completion": row["response"],
        },
        "scores": scores,
        "metadata": {} if kind is None or pd.isna(kind) else {"kind": str(kind)},
    }


def _summaries(run: RunData, arm: str, step: int | None) -> Iterator[dict[str, Any]]:
    """The suites' metrics of this arm or snapshot, each with its interval and n."""
    here = run.summary[run.summary["arm"] == arm]
    here = here[here["step"].isna()] if step is None else here[here["step"] == step]
    for suite, rows in here.groupby("suite", sort=False):
        metrics = {}
        for row in rows.to_dict("records"):
            for name, key in (
                (row["metric"], "estimate"),
                *((f"{row['metric']}_{end}", end) for end in ("low", "high")),
            ):
                if (value := _number(row[key])) is not None:
                    metrics[name] = {"name": name, "value": value, "params": {"n": _number(row["n"])}}
        yield {"name": suite, "scorer": suite, "metrics": metrics}


def _created(run: RunData) -> str:
    """When the run began, in ISO 8601; where run.json does not say so, the age of its responses."""
    try:
        began = datetime.fromisoformat(str(run.about.get("created")))
    except ValueError:
        began = datetime.fromtimestamp(run.path("responses").stat().st_mtime, UTC)
    return began.astimezone(UTC).isoformat()


def _whole(value: Any) -> int | None:
    return int(value) if pd.notna(value) and math.isfinite(value) else None


def _number(value: Any) -> float | None:
    """A finite number; None for what was not measured, which JSON cannot say otherwise."""
    return float(value) if pd.notna(value) and math.isfinite(value) else None


def _id(*parts: str) -> str:
    """As long as inspect's own, and the same each time the run is exported."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:22]


def _stamp(created: str) -> str:
    return re.sub(r"[:]", "-", created)


def _plain(name: str) -> str:
    """Part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.@-]+", "-", name) or "run"
