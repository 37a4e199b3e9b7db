"""The user's own data and principles, each through a small run to its report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness import events

Cai = Callable[..., tuple[int, str, str]]


def experiment(model: Path, data: Path, constitution: Path) -> str:
    return yaml.safe_dump({
        "name": "own",
        "models": {"base": str(model)},
        "data": {
            "helpful_pairs": str(data / "trl" / "conversational.jsonl"),
            "harmless_pairs": {"source": str(data / "pku-saferlhf")},
            "redteam_prompts": str(data / "red-team-attempts" / "red_team_attempts.jsonl.gz"),
        },
        "constitution": str(constitution),
        "arms": ["pretrained", "sl_cai", "rl_cai"],
        "suites": ["pm_score"],
        "scale": {"redteam_prompts": 4, "helpful_prompts": 4, "heldout_prompts": 4, "preference_pairs": 6,
                  "gold_pairs": 6, "max_new_tokens": 6, "batch_size": 8},
        "lora": {"rank": 2, "alpha": 4, "top_layers": 1},
        "revise": {"rounds": 1},
        "pm": {"epochs": 1},
        "rl": {"updates": 1, "rollouts_per_update": 4, "minibatch_size": 4, "snapshots": 0},
        "report_to": "none",
    })  # fmt: skip


def test_own_preferences_prompts_and_principles_reach_the_report(
    cai: Cai, tiny_model: Path, own_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for source in ("llm-swarm/constitution.json", "principles/principles.txt"):  # the second goes on from the first
        constitution = tmp_path / f"{Path(source).stem}.yaml"
        assert cai("constitutions", "import", own_data / source, "--out", constitution)[0] == 0
        (tmp_path / "own.yaml").write_text(experiment(tiny_model, own_data, constitution))
        code, _, errors = cai("run", tmp_path / "own.yaml", "--out", run)
        assert code == 0, errors
        principles = set(pd.read_parquet(run / "results" / "chains.parquet")["principle"].dropna())
        assert principles <= {f"sl-{n}" for n in range(1, 5)}
        assert principles
    said = json.loads((run / "run.json").read_text())["data"]
    assert any(note.endswith("pku-saferlhf") for note in said)
    assert "helpful labels: 5 system messages stand before the first human turn" in said
    html = (run / "report" / "index.html").read_text()
    assert "conversational.jsonl" in html
    assert "stand-in" not in " ".join(said)
    newest = max((run / "stages" / "data").glob("*/preferences.parquet"), key=lambda path: path.stat().st_mtime)
    preferences = pd.read_parquet(newest)
    assert preferences.loc[preferences["kind"] == "helpful", "p"].nunique() > 1
    state = events.read(run)
    assert state.status == "done"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"chosen": "a", "rejected": 3}', "pairs.jsonl: row 2: one answer is a text and the other messages"),
        ('{"chosen": "a"}', "pairs.jsonl: row 2 has nothing under 'rejected'; name the column that holds it: data."),
        ('{"chosen": "a",', "pairs.jsonl: line 2: not valid JSON"),
    ],
)
def test_a_faulty_file_stops_the_plan_in_one_line(
    cai: Cai, tiny_model: Path, tmp_path: Path, line: str, expected: str
) -> None:
    (tmp_path / "pairs.jsonl").write_text(f'{{"prompt": "q", "chosen": "a", "rejected": "b"}}\n{line}\n')
    raw = {"name": "x", "models": {"base": str(tiny_model)}, "data": {"helpful_pairs": "pairs.jsonl"}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(raw))
    for command in ("plan", "run"):
        code, _, said = cai(command, tmp_path / "x.yaml", "--out", tmp_path / "run")
        assert (code, len(said.splitlines())) == (2, 1)
        assert expected in said


PKU = '{"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}'


@pytest.mark.parametrize(
    ("key", "name", "content", "expected"),
    [
        ("harmless_pairs", "pku.jsonl", f"{PKU}\n{PKU.replace(': 1}', ': 2}')}",
         "row 2: safer_response_id is 2; it must be 0 or 1"),
        ("helpful_pairs", "talk.jsonl", '{"chosen": [{"role": "x", "content": "a"}], "rejected": []}',
         "row 1: chosen: message 0 is {'role': 'x', 'content': 'a'}; each needs a role"),
        ("redteam_prompts", "asked.csv", "text\nq\n", "'prompt'"),
    ],
)  # fmt: skip
def test_a_plan_says_which_row_of_which_file(
    cai: Cai, tiny_model: Path, tmp_path: Path, key: str, name: str, content: str, expected: str
) -> None:
    (tmp_path / name).write_text(content)
    raw = {"name": "x", "models": {"base": str(tiny_model)}, "data": {key: name}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(raw))
    code, _, said = cai("plan", tmp_path / "x.yaml", "--out", tmp_path / "run")
    assert (code, len(said.splitlines())) == (2, 1)
    assert str(tmp_path / name) in said
    assert expected in said


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rules.txt", "Be kind.\n\nBe kind.\n", "line 3 says the same as line 1; delete one"),
        ("rules.csv", "rule\nBe kind.\n", "no column 'principle', its columns are rule; name the one"),
        ("swarm.json", '{"constitutions": [{"critic": "c"}]}', "constitutions.0.revision: missing"),
    ],
)
def test_an_import_says_which_line_of_which_file(
    cai: Cai, tmp_path: Path, name: str, content: str, expected: str
) -> None:
    (tmp_path / name).write_text(content)
    code, _, said = cai("constitutions", "import", tmp_path / name, "--out", tmp_path / "c.yaml")
    assert (code, len(said.splitlines())) == (2, 1)
    assert f"{name}: {expected}" in said
    assert not (tmp_path / "c.yaml").exists()
