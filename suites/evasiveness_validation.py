"""How well the evasiveness classifier agrees with people, on models it has not met (docs/evasiveness-validation.md).

XSTest (Röttger et al. 2023) has people's labels of several models' answers; refusal is full or partial. Nothing is
fitted on it. `rotation` leaves one model out at a time: the classifier is fitted on the examples that were written
before anybody had looked at that model's errors, its one setting is chosen on the other models, and the agreement is
read on the model left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import UserError
from suites import evasiveness, evasiveness_model

XSTEST_MODELS = ("gpt4", "llama2new", "mistralinstruct")
HEAD = """\
# Evasiveness: validation

Made by `suites.evasiveness_validation.report`, checked by the tests. The classifier is fitted on
`suites/evasiveness_examples.jsonl` alone; XSTest's three models (refusal = full or partial) and the paper's published
samples only judge it. Intervals are 95 %; n counts responses in the first two tables, prompts in the others.

## Agreement with people on a model left out

The closest figure here to what a new model will get. For each model the classifier is fitted on the examples that were
written before its errors were looked at (their field `seen` does not name it), and its one setting, the strength of the
penalty, is the one that agrees best on the other two models. What this cannot undo: the verbal signs
(`suites/evasiveness_signs.py`) were written with the errors of all three in view, and nobody noted what the author of
the {first} examples without `seen` had looked at.
"""


def read_xstest(folder: Path) -> pd.DataFrame:
    """XSTest completions as a response table: arm the model, benign its safe half.

    refusal (bool) is the annotators' final label, full or partial. Raises UserError where a file is missing.
    """
    tables = []
    for model in XSTEST_MODELS:
        path = folder / f"completions_{model}.csv"
        if not path.is_file():
            raise UserError(f"{path}: file not found; fetch XSTest's completions into {folder}")
        rows = pd.read_csv(path, keep_default_na=False)
        table = rows.rename(columns={"completion": "response"})[["prompt", "response", "type"]]
        refusal = rows["final_label"] != "1_full_compliance"
        benign = ~rows["type"].str.startswith("contrast_")
        tables.append(table.assign(arm=model, step=None, sample=0, benign=benign, refusal=refusal))
    return pd.concat(tables, ignore_index=True).astype({"step": "Int64"})


def agreement(refusal: np.ndarray, refuses: np.ndarray) -> dict[str, float]:
    """Cohen's kappa, accuracy, precision, recall and the confusion counts of a refusal detector, both (n,) bool."""
    from sklearn.metrics import cohen_kappa_score, precision_score, recall_score

    return {
        "n": len(refusal),
        "kappa": float(cohen_kappa_score(refusal, refuses)),
        "accuracy": float((refusal == refuses).mean()),
        "precision": float(precision_score(refusal, refuses, zero_division=0.0)),
        "recall": float(recall_score(refusal, refuses, zero_division=0.0)),
        "true_refusals": int((refusal & refuses).sum()),
        "missed_refusals": int((refusal & ~refuses).sum()),
        "false_refusals": int((~refusal & refuses).sum()),
        "true_compliances": int((~refusal & ~refuses).sum()),
    }


def rotation(xstest: pd.DataFrame) -> pd.DataFrame:
    """Agreement on each model left out, and on all of them pooled: examples, strength, and `agreement`'s figures."""
    own = evasiveness_model.examples()
    x = evasiveness_model.features(xstest["prompt"].tolist(), xstest["response"].tolist())
    refusal = xstest["refusal"].to_numpy()
    rows: dict[str, dict[str, Any]] = {}
    pooled = np.zeros(len(xstest), dtype=bool)
    for model in XSTEST_MODELS:
        unseen = own[[model not in seen for seen in own["seen"]]]
        refuses = {}
        for strength in evasiveness_model.STRENGTHS:
            probabilities = evasiveness_model.fit(unseen, strength).probabilities(x)
            refuses[strength] = evasiveness_model.decide(probabilities).refuses
        others = [(xstest["arm"] == name).to_numpy() for name in XSTEST_MODELS if name != model]
        chosen = max(refuses, key=lambda s: sum(agreement(refusal[part], refuses[s][part])["kappa"] for part in others))
        held = (xstest["arm"] == model).to_numpy()
        pooled[held] = refuses[chosen][held]
        rows[model] = {"examples": len(unseen), "strength": chosen} | agreement(refusal[held], pooled[held])
    rows["pooled"] = {"examples": pd.NA, "strength": pd.NA} | agreement(refusal, pooled)
    return pd.DataFrame.from_dict(rows, orient="index")


def report(xstest: pd.DataFrame, paper: pd.DataFrame, seed: int = 0) -> str:
    """Markdown: agreement with XSTest's labels, over-refusal beside the annotators', and the paper's arms."""
    judged = evasiveness.run(xstest, seed=seed)
    table = judged.tables["responses"]
    names = [*XSTEST_MODELS, "pooled"]
    parts = [table[table["arm"] == name] for name in XSTEST_MODELS] + [table]
    found = pd.DataFrame([agreement(t["refusal"].to_numpy(), t["refuses"].to_numpy()) for t in parts], index=names)
    safe = table[table["benign"]]
    human = safe.groupby("arm")["refusal"].mean()
    over = judged.summary[judged.summary["metric"] == "over_refusal_rate"].set_index("arm").assign(annotators=human)
    answers = evasiveness.run(paper, seed=seed)
    rates, gaps = answers.summary.set_index("arm"), answers.tables["differences"]
    sections = {
        "Agreement with all examples, as shipped": _markdown(found),
        "Over-refusal on the safe half": _markdown(over[["estimate", "low", "high", "n", "annotators"]]),
        "The paper's arms: evasive_rate": _markdown(rates[["estimate", "low", "high", "n"]]),
        "Differences, arm_a minus arm_b, paired by prompt": _markdown(gaps.set_index("arm_a")),
    }
    own = evasiveness_model.examples()
    head = HEAD.format(first=sum(not seen for seen in own["seen"]))
    body = "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())
    return f"{head}\n{_markdown(rotation(xstest))}\n{body}"


def _markdown(table: pd.DataFrame) -> str:
    """A Markdown table: whole numbers as they are, others to three places, blanks where there is none."""

    def cell(value: object) -> str:
        if value is pd.NA:
            return ""
        if isinstance(value, float):
            return str(int(value)) if value == int(value) else f"{value:.3f}"
        return str(value)

    named = table.reset_index(names=str(table.index.name or ""))
    rows = [[cell(value) for value in row] for row in named.astype(object).itertuples(index=False)]
    lines = [list(map(str, named.columns)), ["---"] * len(named.columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
