"""The card of a model that leaves a run: data, training, results and limits, from what the run measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from harness.models.embedded import EMBEDDED
from harness.text import markdown
from reports import opening, tables
from reports.load import RunData
from reports.static import limits

EMBEDDED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SCORE = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

name = "{name}"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForSequenceClassification.from_pretrained(name).eval()
talk = [{"role": "user", "content": "Is tea hot?"}, {"role": "assistant", "content": "At first."}]
text = tokenizer.apply_chat_template(talk, tokenize=False)  # ends where the score is read
with torch.no_grad():
    score = model(**tokenizer(text, return_tensors="pt")).logits[0, 0].item()
"""
_ANSWER = """from transformers import AutoModelForCausalLM, AutoTokenizer

name = "{name}"
tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name)
"""


def text(run: RunData, model: str, stage: Path, repo: str, *, pm: bool) -> str:
    """The card of `model`, whose stage's folder is `stage`; pm: a preference model."""
    base = _base(run)
    head = ["---", "library_name: transformers", *([f"base_model: {base}"] if base else []),
            f"pipeline_tag: {'text-classification' if pm else 'text-generation'}",
            f"tags: [cai-harness, constitutional-ai{', reward-model' if pm else ''}]", "---"]  # fmt: skip
    what = "A preference model: one output, the score of an answer in log-odds" if pm else "A language model"
    parts = [
        "\n".join(head),
        f"# {repo.rpartition('/')[2]}",
        f"{what}, {markdown(model)} of the run {markdown(run.name)} of cai-harness, a reproduction of Constitutional "
        "AI (Bai et al. 2022, arXiv:2212.08073).",
        "## Use",
        f"```python\n{(_SCORE if pm else _ANSWER).replace('{name}', repo)}```",
        "## Data",
        _bullets(run.about.get("data")) or "Not recorded.",
        "## Training",
        _training(run, stage, pm=pm),
        "## Results",
        _quality(stage) if pm else _row(run, model),
        "## Limits",
        _bullets([f"{_unchecked(pm)}", *limits(run)]),
    ]
    return "\n\n".join(parts) + "\n"


def _base(run: RunData) -> str:
    """The base model as the hub knows it; empty where it is a folder of the user's."""
    models = run.about.get("models")
    named = str(models.get("base", "")) if isinstance(models, dict) else ""
    if named == EMBEDDED:
        return EMBEDDED_ID
    return named if _HUB_ID.fullmatch(named) and not Path(named).exists() else ""


def _unchecked(pm: bool) -> str:
    if pm:
        return "A research artefact. Its scores compare answers to one prompt; they are no measure of safety."
    return (
        "A research artefact, not checked for any use. It may answer harmful requests, and its licence is its base's."
    )


def _training(run: RunData, stage: Path, *, pm: bool) -> str:
    said = [f"- {opening.of(run).trained}"]
    about = _json(stage / "manifest.json")
    settings = about.get("settings")
    if isinstance(settings, dict):
        named = {key: value for key, value in settings.items() if not isinstance(value, dict | list)}
        said.append("- Settings: " + ", ".join(f"{key} {markdown(value)}" for key, value in sorted(named.items())))
    wanted = ("Commit", "Versions") if pm else ("Commit", "Versions", "Result of an RL arm")
    said += [f"- {what}: {markdown(value)}" for what, value in tables.provenance(run) if what in wanted]
    return "\n".join(said)


def _quality(stage: Path) -> str:
    rows = []
    for file in sorted(stage.glob("quality-*.json")):
        found = _json(file)
        kind = file.stem.removeprefix("quality-")
        rows.append(
            f"- {kind}: right on {found['accuracy']:.3f} [{found['low']:.3f}, {found['high']:.3f}] of "
            f"{found['n']:.0f} held-out human pairs"
        )
    return "\n".join(rows) or "Not measured on held-out pairs."


def _row(run: RunData, arm: str) -> str:
    board = tables.scoreboard(run)
    if arm not in set(board["arm"]) or len(board.columns) < 2:
        return "Not measured."
    (row,) = board[board["arm"] == arm].to_dict("records")
    measured = "\n".join(f"- {markdown(what)}: {markdown(value)}" for what, value in row.items() if what != "arm")
    return f"{measured}\n\nEstimate with its 95 % interval; the report beside this card has the other arms."


def _bullets(lines: Any) -> str:
    return "\n".join(f"- {markdown(line)}" for line in lines) if isinstance(lines, list) else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
