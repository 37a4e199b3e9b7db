"""Experiment files and constitutions with a few keys or values spoilt."""

from __future__ import annotations

import copy
import json
from typing import Any

import yaml
from hypothesis import strategies as st

from tests import hostile
from tests.generated.tables import damaged
from tests.generated.values import VALUES

NAMED: list[Any] = [  # what may lie beside an experiment file
    *("mine.py", "a.jsonl", "folder", "c.yaml", "server:x#y", "pairs.jsonl"),
    {"source": "pairs.jsonl", "p": "p"},
    {"source": "pairs.jsonl", "column": "prompt"},
]
EXPERIMENT: dict[str, Any] = {
    "name": "x",
    "seed": 0,
    "constitution": "default",
    "arms": ["helpful_only", "sl_cai"],
    "suites": ["evasiveness"],
    "models": {"base": "embedded", "feedback": None, "judge": "gold_pm"},
    "data": {"redteam_prompts": None, "harmless_pairs": None, "helpful_pairs": None},
    "scale": {
        "redteam_prompts": 4,
        "helpful_prompts": 4,
        "heldout_prompts": 4,
        "preference_pairs": 4,
        "gold_pairs": 4,
        "samples_per_prompt": 1,
        "max_new_tokens": 8,
        "max_prompt_tokens": 128,
        "batch_size": 8,
    },
    "lora": {"rank": 4, "alpha": 8, "top_layers": 1},
    "revise": {"rounds": 2, "also_principles": [2]},
    "sft": {"epochs": 1.0, "learning_rate": 0.001},
    "feedback": {"clamp": [0.4, 0.6]},
    "pm": {"max_length": 64},
    "rl": {"updates": 2, "rollouts_per_update": 4, "learning_rate": 0.001},
    "methods": [],
    "report_to": "none",
}


@st.composite
def experiment_file(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(sorted(hostile.YAML.values())))
    raw = copy.deepcopy(EXPERIMENT)
    for _ in range(draw(st.integers(0, 3))):
        place: dict[str, Any] = raw
        key = draw(st.sampled_from(sorted(raw)))
        if isinstance(raw[key], dict) and raw[key] and draw(st.integers(0, 4)):
            place, key = raw[key], draw(st.sampled_from(sorted(raw[key])))
        if draw(st.integers(0, 8)) == 0:
            key = draw(st.sampled_from(["kl_coef", "epochs", "few_shot", "variants"]) | st.text(max_size=5))
        match draw(st.sampled_from(["set", "set", "set", "drop", "list"])):
            case "drop":
                place.pop(key, None)
            case "list":
                place[key] = draw(st.lists(VALUES | st.sampled_from(["hh_rlhf", "rl_cai", "elo", "hhh"]), max_size=3))
            case _:
                place[key] = draw(VALUES | st.sampled_from(NAMED))
    try:
        content = yaml.safe_dump(raw, allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")
    except yaml.YAMLError:  # not every value has a form in YAML
        content = json.dumps(raw).encode()
    return draw(damaged(content))


CONSTITUTION = {
    "name": "c",
    "description": "d",
    "license": "l",
    "critique_revision": [{"id": "a", "tags": ["t"], "critique": "What is wrong?", "revision": "Fix it."}],
    "comparison": [{"id": "b", "question": "Which?"}],
}


@st.composite
def constitution_file(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(sorted(hostile.YAML.values())))
    raw: dict[str, Any] = copy.deepcopy(CONSTITUTION)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.sampled_from([raw, raw["critique_revision"][0] if raw.get("critique_revision") else raw]))
        if isinstance(place, dict):
            place[draw(st.sampled_from(sorted(place)) | st.text(max_size=4))] = draw(VALUES)
        if not isinstance(raw.get("critique_revision"), list) or not isinstance(raw["critique_revision"], list):
            break
        if raw["critique_revision"] and not isinstance(raw["critique_revision"][0], dict):
            break
    return draw(damaged(json.dumps(raw).encode()))
