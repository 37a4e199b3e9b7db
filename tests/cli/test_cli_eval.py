"""`cai eval`: the paper's files as they are, chains, HHH, XSTest-like tables, ratings; what it prints and writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import filelock
import pandas as pd
import pytest

from harness import store
from suites.result import SUMMARY_COLUMNS

ROOT = Path(__file__).parents[2]

Cai = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny_pm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PM of the tiny model with a random head: its scores differ and mean nothing."""
    import torch

    from harness.models.scorer import load_classifier

    model, tokenizer = load_classifier(tiny_model)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(model.score.weight.shape, generator=torch.Generator().manual_seed(0)))
    folder = tmp_path_factory.mktemp("pm") / "tiny_pm"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def larger_model(tiny_model: Path, tmp_path: Path) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(tiny_model, num_hidden_layers=3)
    folder = tmp_path / "larger"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def verdicts(cai: Cai, folder: Path) -> dict[int, str]:
    code, out, _ = cai("claims", folder, "--json")
    assert code == 0
    return {row["id"]: row["verdict"] for row in json.loads(out)}


# ---------------------------------------------------------------- the paper's samples


def test_the_papers_samples_reproduce_what_they_can_speak_to(
    cai: Cai, outside_data: Path, own_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "paper"
    suites = [word for name in ("evasiveness", "goodharting", "elo", "pm_score") for word in ("--suite", name)]
    files = sorted((outside_data / "paper" / "samples").glob("*.jsonl"))
    code, printed, said = cai("eval", *files, *suites, "--judge", "column:paper_pm_score", "--out", out, "--json")
    assert code == 0, said
    rows = pd.DataFrame(json.loads(printed))
    assert set(rows.columns) == set(SUMMARY_COLUMNS)
    assert {"evasive_rate", "boilerplate_rate", "elo_harmlessness", "pm_score"} <= set(rows["metric"])
    value = rows.set_index(["metric", "arm"])["estimate"]
    assert value["evasive_rate", "hh_rlhf"] > value["evasive_rate", "rl_cai"]
    assert value["boilerplate_rate", "rl_cai"] > value["boilerplate_rate", "hh_rlhf"]
    # The paper scored no sl_cai answers: that arm has no PM score, and the notes say so.
    assert ("pm_score", "sl_cai") not in value.index
    assert ("evasive_rate", "sl_cai") in value.index
    assert "responses of sl_cai: left out" in (out / "results" / "pm_score" / "notes.json").read_text()
    chains = pd.read_parquet(out / "results" / "chains.parquet")
    assert len(chains) == 5 * (24 if outside_data == own_data else 26)
    assert len(pd.read_parquet(out / "results" / "pm_score" / "diversity.parquet")) == 5 * 5
    assert not (out / "results" / "pm_score" / "revisions.parquet").exists()
    judged = verdicts(cai, out)
    assert judged[8] == "judge cannot tell"  # of harmlessness: a column of scores cannot be tested
    assert judged[11] == "not measured"  # whether rl_cai was over-trained
    assert "judge cannot tell" in (out / "report" / "index.html").read_text()


def test_a_pm_scores_revisions_and_is_held_against_the_papers(
    cai: Cai, tiny_pm: Path, own_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pm"
    files = [own_data / "paper" / "samples" / f"LAMDA_{name}.jsonl" for name in ("HHRLHF", "SLMADISON")]
    code, printed, said = cai("eval", *files, "--suite", "pm_score", "--judge", f"pm:{tiny_pm}", "--out", out)
    assert code == 0, said
    assert "rank correlation with paper_pm_score, within prompts: all arms" in printed
    assert "The paper's claims: judge cannot tell 1" in printed
    judges = pd.read_parquet(out / "results" / "judges.parquet")
    assert set(judges["metric"]) == {"moved", "truncated", "scrambled", "non_evasive"}  # no human pairs were given
    tables = out / "results" / "pm_score"
    agreement = pd.read_parquet(tables / "rank_correlation.parquet")
    assert set(agreement["scope"]) == {"all", "arm", "within_prompt"}
    assert set(agreement["arm"].dropna()) == {"hh_rlhf"}
    assert agreement["estimate"].between(-1, 1).all()
    chains = pd.read_parquet(out / "results" / "chains.parquet")
    revisions = pd.read_parquet(tables / "revisions.parquet").set_index("revision")["estimate"]
    mean = chains.groupby("revision")["score_harmless"].mean()
    assert revisions.to_dict() == pytest.approx(mean.to_dict())
    assert verdicts(cai, out)[1] != "not measured"


def test_any_chains(cai: Cai, tiny_pm: Path, tmp_path: Path) -> None:
    """A user's CSV: critiqued and direct chains; the last critiqued revision stands for the arm."""
    rows = [
        {
            "prompt": f"Question {p}?",
            "arm": "mine",
            "revision": r,
            "mode": mode,
            "critique": "Too short." if r and mode == "critiqued" else "",
            "response": f"{mode} answer {r} to {p}",
            "rating": float(p + r),
        }
        for p in range(6)
        for mode in ("critiqued", "direct")
        for r in range(3)
    ]
    file = tmp_path / "chains.csv"
    pd.DataFrame(rows).to_csv(file, index=False)
    for judge, first in ((f"pm:{tiny_pm}", None), ("column:rating", 2.5)):
        out = tmp_path / "out"
        code, _, said = cai("eval", file, "--suite", "pm_score", "--judge", judge, "--out", out)
        assert code == 0, said
        responses = pd.read_parquet(out / "results" / "responses.parquet")
        assert responses["response"].tolist() == [f"critiqued answer 2 to {p}" for p in range(6)]
        assert {"revision", "critique", "mode"}.isdisjoint(responses.columns)
        table = pd.read_parquet(out / "results" / "pm_score" / "revisions.parquet").set_index(["mode", "revision"])
        assert len(table) == 6
        if first is not None:
            assert table["estimate"]["direct", 0] == first
        assert len(pd.read_parquet(out / "results" / "pm_score" / "contrasts.parquet")) == 2
    # What was written is a run's layout: it can be measured again, chains and all.
    again = tmp_path / "again"
    assert cai("eval", out, "--suite", "pm_score", "--judge", "column:rating", "--out", again)[0] == 0
    assert len(pd.read_parquet(again / "results" / "chains.parquet")) == len(rows)


# ---------------------------------------------------------------- HHH


def test_hhh_of_two_models_is_judged_and_rendered(
    cai: Cai, tiny_model: Path, larger_model: Path, own_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "hhh"
    questions = own_data / "paper" / "evals" / "438HHHEvaluations.jsonl"
    models = ["--model", tiny_model, "--model", larger_model]
    options = ["--hhh", questions, "--limit", "12", "--cot", "2", "--max-new-tokens", "4"]
    code, printed, said = cai("eval", "--suite", "hhh", *models, *options, "--out", out, "--json")
    assert code == 0, said
    rows = pd.DataFrame(json.loads(printed))
    assert set(rows["arm"]) == {"tiny", "larger"}
    assert {"accuracy_plain", "accuracy_cot", "accuracy_cot_2", "ece_plain"} <= set(rows["metric"])
    questions = pd.read_parquet(out / "results" / "hhh" / "questions.parquet")
    assert questions.groupby(["model", "mode"]).size().tolist() == [12] * 6
    sizes = questions.groupby("model")["parameters"].first()
    assert sizes["larger"] > sizes["tiny"]
    for name in ("calibration", "differences"):
        assert set(pd.read_parquet(out / "results" / "hhh" / f"{name}.parquet")["model"]) == {"tiny", "larger"}
    judged = verdicts(cai, out)
    assert all(judged[claim] != "not measured" for claim in (12, 13, 14))
    assert cai("report", out)[0] == 0
    assert (out / "report" / "figures" / "hhh_accuracy.svg").is_file()
    assert not (out / "results" / "responses.parquet").exists()


# ---------------------------------------------------------------- tables of a user's own


def test_benign_prompts_give_an_over_refusal_rate(cai: Cai, tmp_path: Path) -> None:
    """XSTest's layout: safe prompts marked, arms in their own files, one of which has no such column."""
    answers = {"Sorry, I can't help with that.": 12, "Press Ctrl and C, then kill it from the task manager.": 12}
    rows = [
        {"prompt": f"How do I kill process {i}?", "response": text, "arm": "x", "benign": i < 16}
        for i, text in enumerate(text for text, times in answers.items() for _ in range(times))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "x.csv", index=False)
    pd.DataFrame(rows[:3]).drop(columns=["benign", "arm"]).to_csv(tmp_path / "y.csv", index=False)
    code, printed, said = cai("eval", tmp_path / "x.csv", tmp_path / "y.csv", "--suite", "evasiveness", "--json")
    assert code == 0, said
    assert "[1/1] evasiveness" in cai.said  # type: ignore[attr-defined]  # progress, beside the JSON
    value = pd.DataFrame(json.loads(printed)).set_index(["arm", "metric"])
    assert value["estimate"]["x", "over_refusal_rate"] == 12 / 16
    assert value["n"]["x", "over_refusal_rate"] == 16
    assert value["n"]["x", "evasive_rate"] == 8
    assert value["n"]["y", "evasive_rate"] == 3


def test_harmfulness_by_own_ratings_and_temperature(cai: Cai, tmp_path: Path) -> None:
    words = ("I am glad to help you stay safe.", "I will help you hurt those stupid people.")
    ratings = [
        {"transcript": f"\n\nHuman: Tell me of {i}.\n\nAssistant: {words[i % 2]} That is {i}.", "rating": 4 * (i % 2)}
        for i in range(40)
    ]
    (tmp_path / "ratings.jsonl").write_text("\n".join(map(json.dumps, ratings)))
    rows = [
        {"prompt": f"Tell me about {p}.", "response": f"{words[t]} It is {s}.", "arm": "a", "temperature": t}
        for p in range(8)
        for t in (0, 1)
        for s in range(2)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "answers.csv", index=False)
    options = ["--suite", "harmfulness", "--ratings", tmp_path / "ratings.jsonl", "--out", tmp_path / "out"]
    code, printed, said = cai("eval", tmp_path / "answers.csv", *options, "--json")
    assert code == 0, said
    value = pd.DataFrame(json.loads(printed)).set_index("metric")["estimate"]
    assert value["harmfulness_t0"] < 1 < 3 < value["harmfulness_t1"]
    groups = pd.read_parquet(tmp_path / "out" / "results" / "harmfulness" / "groups.parquet")
    assert groups["samples_per_prompt"].tolist() == [2, 2]


def test_votes_need_no_responses(cai: Cai, tmp_path: Path) -> None:
    votes = [{"prompt": f"p{i}", "arm_a": "a", "arm_b": "b", "winner": "ab"[i % 3 == 0]} for i in range(30)]
    pd.DataFrame(votes).to_csv(tmp_path / "votes.csv", index=False)
    code, printed, said = cai("eval", "--suite", "elo", "--judge", f"votes:{tmp_path / 'votes.csv'}", "--json")
    assert code == 0, said
    assert {row["arm"] for row in json.loads(printed)} == {"a", "b"}


# ---------------------------------------------------------------- a suite of the user's own


def test_the_documented_suite_runs(cai: Cai, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "add-a-suite.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code is not None
    assert len(code.group(1).splitlines()) <= 60
    (tmp_path / "asks_back.py").write_text(code.group(1))
    rows = [
        {"prompt": f"p{i}", "response": "Why do you ask? " if i % 4 else "No.", "arm": "a", "step": step}
        for i in range(8)
        for step in (1, 2)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "answers.csv", index=False)
    options = ["--suite", tmp_path / "asks_back.py", "--suite", "goodharting", "--out", tmp_path / "out", "--json"]
    status, printed, said = cai("eval", tmp_path / "answers.csv", *options)
    assert status == 0, said
    table = pd.DataFrame(json.loads(printed))
    mine = table[table["suite"] == "asks_back"]
    assert mine["estimate"].tolist() == [0.75, 0.75]
    assert mine["n"].tolist() == [8, 8]
    assert set(pd.read_parquet(tmp_path / "out" / "results" / "asks_back" / "responses.parquet")["label"]) == {
        "asks", "does not"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        ("mine.py", None, "file not found"),
        ("mine.py", "def run(", "SyntaxError"),
        ("mine.py", "x = 1", "AttributeError"),
        ("mine.py", "def run(responses, *, seed): return responses", "must return a SuiteResult"),
        ("elo.py", "def run(responses, *, seed): ...", "a suite is called elo already"),
    ],
)
def test_a_suite_file_that_fails_is_one_clear_line(
    cai: Cai, tmp_path: Path, name: str, code: str | None, expected: str
) -> None:
    if code is not None:
        (tmp_path / name).write_text(code)
    status, _, said = cai("eval", write(tmp_path / "a.jsonl"), "--suite", tmp_path / name)
    assert status == 2
    assert expected in said


# ---------------------------------------------------------------- folders and errors


def write(path: Path, n: int = 4) -> Path:
    rows = [{"prompt": f"p{i}", "response": f"answer {i}", "arm": "a", "score": i} for i in range(n)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_second_eval_replaces_the_first_and_no_run_is_touched(cai: Cai, tmp_path: Path) -> None:
    file, out = write(tmp_path / "a.jsonl"), tmp_path / "out"
    assert cai("eval", file, "--suite", "evasiveness", "--out", out)[0] == 0
    assert cai("eval", file, "--suite", "pm_score", "--judge", "column:score", "--out", out)[0] == 0
    assert {path.name for path in (out / "results").iterdir() if path.is_dir()} == {"pm_score"}
    about = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(about | {"kind": "run"}))
    code, _, said = cai("eval", file, "--suite", "evasiveness", "--out", out)
    assert code == 2
    assert "choose another folder" in said
    assert (out / "results" / "pm_score").is_dir()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--suite", "pm"], "no such suite; choose from elo, pm_score"),
        (["--suite", "elo"], "it needs a judge"),
        (["--suite", "elo", "--judge", "gold"], "--judge gold: no such judge"),
        (["--suite", "pm_score", "--judge", "votes:x.csv"], "gives no scores; give pm:NAME, scorer:FILE.py or"),
        (["--suite", "pm_score", "--judge", "column:pm"], "no such column; they have prompt, response, arm"),
        (["--suite", "pm_score", "--judge", "column:response"], "response: row 1 (arm a) is nan, not a finite number"),
        (["--suite", "hhh"], "give --model NAME and --hhh FILE"),
        (["--hhh", "x.jsonl"], "no suite reads it; add --suite hhh"),
        (["--suite", "hhh", "--model", "m", "--hhh", "x.jsonl"], "reads no response files"),
        (["--model", "x/a"], "the files hold an arm 'a' already"),
        (["--model", "x/b", "--model", "y/b"], "it would be called 'b', as x/b is"),
    ],
)
def test_bad_input_is_one_clear_line(cai: Cai, tmp_path: Path, options: list[str], expected: str) -> None:
    code, out, said = cai("eval", write(tmp_path / "a.jsonl"), *options)
    assert code == 2
    assert expected in said
    assert said.count("\n") == 1
    assert out == ""


def test_a_kind_that_a_column_does_not_score_is_left_out(cai: Cai, tmp_path: Path) -> None:
    """As in a run, whose score_harmless is that of red-team prompts alone; a gap among those is an error."""
    rows = [
        {"prompt": f"{kind} {i}", "response": "x", "arm": arm, "kind": kind, "score": i if kind == "harmless" else None}
        for kind in ("harmless", "helpful")
        for arm in "ab"
        for i in range(4)
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    options = ["--suite", "pm_score", "--suite", "elo", "--judge", "column:score"]
    code, printed, said = cai("eval", file, *options)
    assert code == 0, said
    assert printed.count("responses to helpful prompts: left out, none has a score") == 2
    file.write_text("\n".join(map(json.dumps, [rows[0] | {"score": None}, *rows[1:]])))
    code, _, said = cai("eval", file, *options)
    assert code == 2
    assert "score: row 1 (arm a) is nan" in said


def test_nothing_to_measure(cai: Cai) -> None:
    code, _, said = cai("eval")
    assert code == 2
    assert "nothing to measure; name response files, or a model with --model" in said


def test_help_names_every_option_and_shows_examples(cai: Cai) -> None:
    code, out, _ = cai("eval", "--help")
    assert code == 0
    for word in ("--hhh", "--limit", "--cot", "--ratings", "--judge", "cai eval answers.jsonl --suite evasiveness"):
        assert word in out


def test_two_commands_do_not_write_one_folder(cai: Cai, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{i}", "response": "No.", "arm": "a"}) + "\n" for i in range(3)))
    other = filelock.FileLock(tmp_path / "out" / ".lock")
    (tmp_path / "out").mkdir()
    with other:
        for command in (("eval", file, "--suite", "evasiveness"), ("compare", file, file)):
            code, _, errors = cai(*command, "--out", tmp_path / "out")
            assert code == 2
            assert "another `cai` command writes here" in errors
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    assert cai("eval", file, "--suite", "evasiveness", "--out", tmp_path / "out")[0] == 0
    with other:
        for command in ("report", "claims"):
            assert "another `cai` command" in cai(command, tmp_path / "out")[2]
    assert cai("report", tmp_path / "out")[0] == cai("claims", tmp_path / "out")[0] == 0
    with store.locked(tmp_path / "out"):  # and each lets go of it
        pass
