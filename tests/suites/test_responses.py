"""Response files of every kind become one table; whatever is wrong with one is said in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from suites.responses import CHAIN_COLUMNS, load_chains, load_responses, strip_leftover

ROWS = [
    {"prompt": "Name a river.", "response": " The Elbe. ", "arm": "a", "step": 2, "sample": 0, "kind": "helpful"},
    {"prompt": "Name a river.", "response": "None", "arm": "a", "step": None, "sample": 0, "kind": None},
    {"prompt": "NA", "response": "That is no question.", "arm": "b", "step": None, "sample": 1, "kind": "harmless"},
]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("extension", ["jsonl", "csv", "parquet"])
def test_every_format_gives_the_same_table(tmp_path: Path, extension: str) -> None:
    rows = [row | {"score": i / 2} for i, row in enumerate(ROWS)]
    table = load_responses([write(tmp_path / f"x.{extension}", rows)])
    assert list(table.columns) == ["prompt", "response", "arm", "step", "sample", "kind", "score"]
    assert table["response"].tolist() == ["The Elbe.", "None", "That is no question."]
    assert table["prompt"].tolist() == ["Name a river.", "Name a river.", "NA"]
    assert table["step"].dtype == "Int64"
    assert table["step"].isna().tolist() == [False, True, True]
    assert table["sample"].tolist() == [0, 0, 1]
    assert table["kind"].isna().tolist() == [False, True, False]
    assert table["score"].tolist() == [0, 0.5, 1]


def test_defaults_are_the_stem_and_a_count(tmp_path: Path) -> None:
    rows = [{"prompt": p, "response": "r"} for p in ("p", "p", "q", "p")]
    table = load_responses([write(tmp_path / "mine.jsonl", rows)])
    assert set(table["arm"]) == {"mine"}
    assert table["sample"].tolist() == [0, 1, 0, 2]
    assert table["step"].isna().all()


def test_folders_globs_and_a_file_named_twice(tmp_path: Path) -> None:
    write(tmp_path / "one.jsonl", [{"prompt": "p", "response": "r"}])
    write(tmp_path / "two.csv", [{"prompt": "p", "response": "r"}])
    (tmp_path / "README.md").write_text("no responses")
    assert load_responses([tmp_path])["arm"].tolist() == ["one", "two"]
    assert load_responses([tmp_path / "*.jsonl", tmp_path / "one.jsonl"])["arm"].tolist() == ["one"]
    assert len(load_responses([tmp_path / "*"])) == 2


def test_a_run_folder_means_its_responses(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    write(tmp_path / "results" / "responses.parquet", ROWS)
    write(tmp_path / "results" / "stages.parquet", [{"stage": "sft"}])
    assert len(load_responses([tmp_path])) == 3
    assert len(load_responses([tmp_path / "results"])) == 3


def test_prompts_are_normalised(tmp_path: Path) -> None:
    prompts = [
        "\n\nHuman: One turn?\n\nAssistant:",
        "  One turn, plain?  ",
        "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?\n\nAssistant:",
        "Human: A?\n\nAssistant: B.\n\nHuman: D?\n\nAssistant:",
    ]
    table = load_responses([write(tmp_path / "x.jsonl", [{"prompt": p, "response": "r"} for p in prompts])])
    assert table["prompt"].tolist() == [
        "One turn?",
        "One turn, plain?",
        "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?\n\nAssistant:",
        "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: D?\n\nAssistant:",
    ]


# ---------------------------------------------------------------- the paper's files


def test_the_papers_samples_as_they_are(outside_data: Path, own_data: Path) -> None:
    prompts, answers = (24, 4) if outside_data == own_data else (26, 17)
    table = load_responses([outside_data / "paper" / "samples"])
    counts = table.groupby("arm").size().to_dict()
    sampled_arms = ("helpful_only", "hh_rlhf", "rl_cai", "rl_cai_cot")
    assert counts == dict.fromkeys(sampled_arms, prompts * answers) | {"sl_cai": prompts}
    assert table.groupby("arm")["prompt"].nunique().eq(prompts).all()
    half = len(table) // 2
    assert table["comparison_dataset"].value_counts().to_dict() == {"InstructGPT": half, "LaMDA": half}
    sampled = table[table["arm"] != "sl_cai"]
    assert sampled["sample"].max() == answers - 1
    assert np.isfinite(sampled["paper_pm_score"]).all()
    assert table.loc[table["arm"] == "sl_cai", "paper_pm_score"].isna().all()
    assert not table["response"].str.contains(r"Human:?\s*$", regex=True).any()
    assert not table["response"].str.contains(r"-{4,}\s*$", regex=True).any()
    assert (table["response"] != "").all()
    # One of the prompts has several turns, and its single line breaks are doubled.
    many = {p for p in table["prompt"] if p.startswith("\n\nHuman:")}
    assert len(many) == 1
    assert next(iter(many)).count("\n\nAssistant:") == 3


def test_the_score_stays_with_its_answer(outside_data: Path) -> None:
    path = outside_data / "paper" / "samples" / "LAMDA_HHRLHF.jsonl"
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[5])
    table = load_responses([path])
    mine = table[(table["prompt"] == row["rl_prompt"].removeprefix("\n\nHuman: ").removesuffix("\n\nAssistant:"))]
    assert mine["paper_pm_score"].tolist() == [a["pm_scores"][0]["pm_score"] for a in row["sampled_answers"]]
    for text, answer in zip(mine["response"], row["sampled_answers"], strict=True):
        assert answer["sampled_string"].strip().startswith(text)


def test_the_papers_chains(outside_data: Path, own_data: Path) -> None:
    samples = outside_data / "paper" / "samples"
    chains = load_chains([samples])
    assert list(chains.columns[: len(CHAIN_COLUMNS)]) == CHAIN_COLUMNS
    assert len(chains) == 5 * (24 if outside_data == own_data else 26)
    assert load_chains([samples / "LAMDA_HHRLHF.jsonl"]) is None
    assert chains.groupby("prompt")["revision"].apply(list).map(lambda r: r == [0, 1, 2, 3, 4]).all()
    assert chains["principle"].isna().equals(chains["revision"] == 0)
    assert chains.loc[chains["revision"] > 0, "principle"].str.fullmatch(r"harmful\d+").all()
    last = load_responses([samples / "LAMDA_SLMADISON.jsonl"]).set_index("prompt")["response"]
    final = chains[(chains["revision"] == 4) & (chains["comparison_dataset"] == "LaMDA")].set_index("prompt")
    assert last.to_dict() == final["response"].to_dict()


@given(
    st.text(max_size=40), st.sampled_from(["\n\nHuman:", "\nHuman:", "\n\nHuman", " Human:\n\n-----", "\n\n------\n"])
)
def test_only_the_end_is_stripped(text: str, leftover: str) -> None:
    body = f"{text} and so on.".strip()
    assert strip_leftover(f" {body}{leftover}") == body
    assert strip_leftover(f"{body}\n\nHuman: What else?") == f"{body}\n\nHuman: What else?"


def test_chains_of_a_run(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "arm": "a", "sample": 0, "revision": r, "response": f"r{r}"} for r in range(3)]
    chains = load_chains([write(tmp_path / "chains.parquet", rows)])
    assert chains["revision"].tolist() == [0, 1, 2]
    assert set(chains["mode"]) == {"critiqued"}
    with pytest.raises(UserError, match="row 4 repeats"):
        load_chains([write(tmp_path / "twice.jsonl", [*rows, rows[0]])])
    plain = write(tmp_path / "plain.jsonl", ROWS)
    assert load_chains([plain]) is None
    assert len(load_chains([plain, tmp_path / "chains.parquet"])) == 3
    with pytest.raises(UserError, match="no column 'response'"):
        load_chains([write(tmp_path / "cut.csv", [{"prompt": "p", "revision": 0}])])


@pytest.mark.parametrize("extension", ["jsonl", "csv", "parquet"])
def test_of_chains_the_last_main_revision_is_the_response(tmp_path: Path, extension: str) -> None:
    rows = [
        {"prompt": "p", "arm": arm, "revision": r, "mode": mode, "n_principles": n, "response": f"{mode} {n} {r}"}
        for arm, most in (("a", 16), ("b", 4))
        for mode in ("critiqued", "direct")
        for n in (1, most)
        for r in range(3)
    ]
    table = load_responses([write(tmp_path / f"x.{extension}", rows)])
    assert table[["arm", "response"]].to_numpy().tolist() == [["a", "critiqued 16 2"], ["b", "critiqued 4 2"]]
    assert list(table.columns) == ["prompt", "response", "arm", "step", "sample"]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "p", "response": "r"}\n{"prompt": ', r"a\.jsonl: line 2: not valid JSON"),
        ("a.jsonl", "[1, 2]", r"line 1: not a JSON object"),
        ("a.jsonl", "", r"file is empty"),
        ("a.csv", "", r"file is empty"),
        ("a.csv", "prompt,response\n", r"file is empty"),
        ("a.csv", "prompt,answer\np,r\n", r"no column 'response'"),
        ("a.csv", 'prompt,response\np,r,"x,y\n', r"not a readable CSV"),
        ("a.jsonl", '{"response": "r"}', r"no column 'prompt'"),
        ("a.jsonl", '{"prompt": "p", "response": "r"}\n{"response": "r"}', r"row 2: prompt is nan, not text"),
        ("a.jsonl", '{"prompt": "p", "response": null}', r"row 1: response is None, not text"),
        ("a.jsonl", '{"prompt": " ", "response": "r"}', r"row 1: prompt is empty"),
        ("a.jsonl", r'{"prompt": "\n\nHuman: \n\nAssistant:", "response": "r"}', r"row 1: prompt is empty"),
        ("a.csv", "prompt,response,arm\np,r,\n", r"row 1: arm is empty"),
        ("a.csv", "prompt,response,step\np,r,2.5\n", r"column 'step': row 1 is 2.5"),
        ("a.csv", "prompt,response,sample\np,r,-1\n", r"column 'sample': row 1 is -1"),
        ("a.csv", "prompt,response,step\np,r,late\n", r"column 'step': row 1 is 'late'"),
        ("a.csv", "prompt,response,kind\np,r,nice\n", r"row 1: kind is 'nice'"),
        ("a.csv", "prompt,response,sample\np,r,0\np,s,0\n", r"arm a has sample 0 of prompt 'p' twice"),
        ("a.parquet", "not parquet", r"not a readable Parquet"),
        ("a.txt", "p", r"unknown extension '\.txt'"),
        ("a.jsonl", '{"sampled_answers": [{}], "rl_prompt": "p"}', r"row 1 is not in the paper's layout"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_responses([tmp_path / name])
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "no.csv", "not found"), (tmp_path / "*.csv", "matches"), (tmp_path, "folder")):
        with pytest.raises(UserError, match=message):
            load_responses([path])
    with pytest.raises(UserError, match="no file given"):
        load_responses([])
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9", "response": "r"}')
    with pytest.raises(UserError, match="not UTF-8"):
        load_responses([tmp_path])


def test_files_must_not_melt_into_one_arm(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "out.jsonl", [{"prompt": "p", "response": folder}])
    with pytest.raises(UserError, match="its arm would be 'out'"):
        load_responses([tmp_path / "x", tmp_path / "y"])
