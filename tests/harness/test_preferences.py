"""The user's own preferences and prompts: TRL's format in all forms, PKU-SafeRLHF's, and faults of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from pydantic import ValidationError

from harness import data, preferences, sources
from harness.errors import UserError
from harness.experiment import Data, Pairs, Scale, load
from harness.graph import stage_key
from pipelines.arms import Builder

FEW = Scale(redteam_prompts=8, helpful_prompts=8, heldout_prompts=6, preference_pairs=8, gold_pairs=8)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def one(row: dict[str, Any], kind: str = "helpful", **names: Any) -> tuple[Any, ...]:
    table, _ = preferences.table([("f: row 1", row)], kind, Pairs(source="f", **names), "data.helpful_pairs")
    return tuple(table.iloc[0])


TALK = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "chosen": "x", "rejected": "y"}, ("q", "x", "y", 1.0)),
        ({"prompt": TALK, "chosen": " x", "rejected": " y"}, (TALK, "x", "y", 1.0)),
        ({"chosen": "The sky is blue.", "rejected": "The sky is black."}, ("The sky is", "blue.", "black.", 1.0)),
        ({"chosen": f"{TALK} x", "rejected": f"{TALK} y"}, (TALK, "x", "y", 1.0)),
        ({"prompt": [user("q")], "chosen": [assistant("x")], "rejected": [assistant("y")]}, ("q", "x", "y", 1.0)),
        ({"chosen": [user("q"), assistant("x")], "rejected": [user("q"), assistant("y")]}, ("q", "x", "y", 1.0)),
        (  # the prompt twice, as in UltraFeedback
            {"prompt": "q", "chosen": [user("q"), assistant("x")], "rejected": [user("q"), assistant("y")]},
            ("q", "x", "y", 1.0),
        ),
        (
            {
                "prompt": [user("a"), assistant("b"), user("c")],
                "chosen": [assistant("x")],
                "rejected": [assistant("y")],
            },
            (TALK, "x", "y", 1.0),
        ),
        (  # a system message opens the human turn after it
            {
                "prompt": [{"role": "system", "content": "Be brief."}, user("q")],
                "chosen": [assistant("x")],
                "rejected": [assistant("y")],
            },
            ("Be brief.\n\nq", "x", "y", 1.0),
        ),
        (  # parts of a message
            {
                "prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}],
                "chosen": [assistant("x")],
                "rejected": [assistant("y")],
            },
            ("q", "x", "y", 1.0),
        ),
        ({"prompt": "q", "chosen": "x", "rejected": "y", "p": 0.25}, ("q", "y", "x", 0.75)),
        ({"prompt": "q", "chosen": "x", "rejected": "y", "p": "0.9"}, ("q", "x", "y", 0.9)),  # out of a CSV file
        (
            {"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": 1, "safer_response_id": 0},
            ("q", "y", "x", 1.0),
        ),
    ],
)
def test_a_row_in_each_form(row: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert one(row) == expected


def test_pku_holds_two_judgments_on_one_pair() -> None:
    row = {"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": 1, "safer_response_id": 0}
    assert one(row, "helpful")[1:3] == ("y", "x")
    assert one(row, "harmless")[1:3] == ("x", "y")


def test_columns_by_other_names() -> None:
    row = {"ask": "q", "good": "x", "bad": "y", "share": 0.8, "p": "no label"}
    assert one(row, prompt="ask", chosen="good", rejected="bad", p="share") == ("q", "x", "y", 0.8)


@pytest.mark.parametrize(
    ("row", "names", "expected"),
    [
        ({"prompt": "q", "chosen": "x"}, {}, "row 1 has nothing under 'rejected'.*: data.helpful_pairs.rejected"),
        (
            {"chosen": "x", "rejected": "y"},
            {"prompt": "ask"},
            "row 1 has nothing under 'ask'.*data.helpful_pairs.prompt",
        ),
        ({"chosen": "x", "rejected": "y"}, {}, "row 1: the answers share no beginning.*data.helpful_pairs.prompt"),
        ({"prompt": "q", "chosen": "x", "rejected": "y", "p": 1.5}, {}, "row 1: p is 1.5; a soft label is a number"),
        ({"prompt": "q", "chosen": "x", "rejected": "y", "p": None}, {}, "row 1: p is None"),
        ({"prompt": "q", "chosen": "x", "rejected": "y"}, {"p": "w"}, "row 1 has nothing under 'w'.*helpful_pairs.p"),
        (
            {"prompt": "q", "chosen": "x", "rejected": [assistant("y")]},
            {},
            "one answer is a text and the other messages",
        ),
        ({"chosen": [assistant("x")], "rejected": [assistant("y")]}, {}, "row 1: no human turn stands before"),
        (
            {"prompt": "q", "chosen": [{"from": "gpt"}], "rejected": [assistant("y")]},
            {},
            "chosen: message 0 is .*a role",
        ),
        (
            {"prompt": [user("q"), assistant("z")], "chosen": "x", "rejected": "y"},
            {},
            "prompt ends with an assistant's",
        ),
        (
            {"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": 2},
            {},
            "better_response_id is 2; it must be 0 or 1",
        ),
        (
            {"prompt": "q", "response_0": "x", "response_1": None, "better_response_id": 1},
            {},
            "row 1 needs texts under",
        ),
        ({"prompt": "q", "chosen": "x", "rejected": "x"}, {}, "f: no usable preference pair"),
    ],
)
def test_a_fault_is_one_line_with_row_and_key(row: dict[str, Any], names: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as raised:
        one(row, **names)
    assert "\n" not in str(raised.value)


def test_what_is_left_out_is_counted() -> None:
    good = {"prompt": "q", "chosen": "x", "rejected": "y"}
    rows = [good, good | {"chosen": "y"}, good | {"rejected": " "}]
    longer = {
        "prompt": [user("q")],
        "chosen": [assistant("x"), user("r"), assistant("s")],
        "rejected": [assistant("y")],
    }
    table, notes = preferences.table(
        [(f"f: row {n}", row) for n, row in enumerate([*rows, longer])], "helpful", Pairs(source="f"), "k"
    )
    assert len(table) == 1
    assert [note.removeprefix("helpful labels: left out ") for note in notes] == [
        "1 pairs with two answers alike",
        "1 pairs with an empty text",
        "1 pairs whose answers differ in more than one turn",
    ]


# ---------------------------------------------------------------- files, folders and the hub


def test_conversations_and_pku_through_the_whole_selection(own_data: Path) -> None:
    own = Data(
        harmless_pairs=Pairs(source=str(own_data / "pku-saferlhf")),
        helpful_pairs=Pairs(source=str(own_data / "trl" / "conversational.jsonl")),
    )
    prompts, pairs, notes = data.select(own, FEW, 0)
    sizes = pairs.groupby(["kind", "split"]).size()
    assert (sizes == 8).all()
    assert len(sizes) == 6
    assert set(prompts.groupby(["kind", "split"]).size()) == {8, 6}
    assert not set(prompts.loc[prompts["split"] == "train", "prompt"]) & set(
        prompts.loc[prompts["split"] == "heldout", "prompt"]
    )
    harmless = pairs[pairs["kind"] == "harmless"]
    assert harmless["chosen"].str.startswith("I would rather not").all()
    assert (harmless["p"] == 1).all()
    soft = pairs.loc[pairs["kind"] == "helpful", "p"]
    assert soft.between(0.5, 1).all()
    assert soft.nunique() > 2
    assert "helpful labels: 5 system messages stand before the first human turn" in notes


def test_two_kinds_of_judgment_on_the_same_pairs_are_split_alike(own_data: Path) -> None:
    pku = Pairs(source=str(own_data / "pku-saferlhf"))
    _, pairs, notes = data.select(Data(harmless_pairs=pku, helpful_pairs=pku), FEW, 0)
    by_kind = [pairs[pairs["kind"] == kind] for kind in data.KINDS]
    train, gold = ([set(of.loc[of["split"] == split, "prompt"]) for of in by_kind] for split in ("train", "gold"))
    assert not (train[0] | train[1]) & (gold[0] | gold[1])
    assert not any("left out" in note for note in notes)  # nothing had to be thrown away to keep them apart
    assert by_kind[0]["chosen"].tolist() != by_kind[1]["chosen"].tolist()


def test_parquet_csv_json_and_a_folder_give_the_same_pairs(own_data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (own_data / "trl" / "conversational.jsonl").read_text().splitlines()]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    places = [own_data / "trl" / "conversational.jsonl", *(tmp_path / name for name in ("a.parquet", "a.json", "hub"))]
    tables = [data._pairs("helpful", Data(helpful_pairs=Pairs(source=str(place))), 0)[0] for place in places]
    for other in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], other)


def test_a_csv_file_with_columns_of_its_own(own_data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (own_data / "trl" / "standard.jsonl").read_text().splitlines()]
    pd.DataFrame(rows).to_csv(tmp_path / "own.csv", index=False)
    (tmp_path / "x.yaml").write_text(
        "name: x\ndata: {harmless_pairs: {source: own.csv, prompt: question, chosen: better, rejected: worse}}\n"
        "scale: {redteam_prompts: 4, heldout_prompts: 3, preference_pairs: 4, gold_pairs: 4}\n"
    )
    asked = load(tmp_path / "x.yaml")  # and the path is relative to the experiment
    _, pairs, _ = data.select(asked.data, asked.scale, 0)
    assert pairs.loc[pairs["kind"] == "harmless", "chosen"].str.startswith("Yes: ").all()


def test_a_data_set_on_the_hub_with_splits_and_subset(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, subset: str | None) -> Any:
        asked.append((name, subset))
        rows = [json.loads(line) for line in (own_data / "trl" / "conversational.jsonl").read_text().splitlines()]
        return datasets.DatasetDict(
            {"train_prefs": datasets.Dataset.from_list(rows[8:]), "test_prefs": datasets.Dataset.from_list(rows[:8])}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    named = {"source": "some/preferences", "subset": "hard"}
    own = Data(helpful_pairs=Pairs(**named, train="train_prefs", test="test_prefs"))
    assert not data.is_local(own)
    _, pairs, notes = data.select(own, FEW.model_copy(update={"gold_pairs": 6}), 0)
    assert set(asked) == {("some/preferences", "hard")}
    assert "helpful labels: some/preferences" in notes
    assert len(pairs[(pairs["kind"] == "helpful") & (pairs["split"] == "heldout")]) == 6
    with pytest.raises(UserError, match=r"pairs: some/preferences has no split 'train'.*helpful_pairs.train"):
        data.select(Data(helpful_pairs=Pairs(**named)), FEW, 0)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"helpful_pairs": "no/such/file.jsonl"}, "data.helpful_pairs: no/such/file.jsonl not found"),
        ({"helpful_pairs": "nobody/no-such-set"}, "data.helpful_pairs: 'nobody/no-such-set' is no path here"),
        ({"redteam_prompts": "own.xlsx"}, "data.redteam_prompts: own.xlsx is of no known kind"),
        (
            {"helpful_pairs": {"source": "own.jsonl", "subset": "x"}},
            "data.helpful_pairs: subset is for data sets on the hub",
        ),
        (
            {"helpful_pairs": {"source": "own.jsonl", "test": "val"}},
            "own.jsonl has no split 'val'.*data.helpful_pairs.test",
        ),
        (
            {"redteam_prompts": {"source": "own.jsonl", "column": "ask"}},
            "no column 'ask', its columns are prompt, text;.*data.redteam_prompts.column",
        ),
        ({"redteam_prompts": "broken.jsonl"}, "broken.jsonl: line 2: not valid JSON"),
        (
            {"redteam_prompts": {"source": "own.jsonl", "column": "text"}},
            "own.jsonl: row 1, text: 3 is no list of messages",
        ),
    ],
)
def test_a_source_that_cannot_be_read_is_named(
    own: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.xlsx").write_text("")
    (tmp_path / "own.jsonl").write_text('{"prompt": "q", "text": 3}\n')
    (tmp_path / "broken.jsonl").write_text('{"prompt": "q"}\n{\n')
    with pytest.raises(UserError, match=expected) as raised:
        data.select(Data.model_validate(own), FEW, 0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"helpful": "a", "helpful_pairs": "b"}, "helpful and helpful_pairs both"),
        ({"hh_rlhf": "a", "helpful_pairs": "b", "harmless_pairs": "c"}, "hh_rlhf is not read"),
        ({"helpful_pairs": {"source": "a", "chosne": "b"}}, "chosne"),
    ],
)
def test_keys_that_mean_nothing_are_refused(own: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Data.model_validate(own)


def test_what_is_read_of_a_source_is_in_the_stages_key(own_data: Path, tmp_path: Path) -> None:
    def key(**own: Any) -> str:
        from harness.experiment import Experiment

        return stage_key(Builder(Experiment.model_validate({"name": "x", "data": own})).data, {})

    source, copy = own_data / "trl" / "standard.jsonl", tmp_path / "copy.jsonl"
    copy.write_bytes(source.read_bytes())
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    keys = {
        key(helpful_pairs={"source": str(source)} | columns),
        key(helpful_pairs={"source": str(source)} | columns | {"chosen": "worse", "rejected": "better"}),
        key(helpful_pairs="hub/one"),
        key(helpful_pairs="hub/two"),
        key(),
    }
    assert len(keys) == 5
    assert key(helpful_pairs={"source": str(copy)} | columns) in keys  # content, wherever it lies
    copy.write_text('{"question": "a", "better": "b", "worse": "c"}\n')
    assert key(helpful_pairs={"source": str(copy)} | columns) not in keys


# ---------------------------------------------------------------- prompts


def test_prompts_of_a_column_of_texts_of_messages_and_of_transcripts(own_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    whole = [user("first"), assistant("b"), user("c"), assistant("d")]
    rows = [{"q": "one"}, {"q": [user("two")]}, {"q": whole}, {"q": "\n\nHuman: three\n\nAssistant: x"}, {"q": None}]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"q": TALK}]))
    assert data.read_prompts(file, column="q") == ["one", "two", "first", "three", TALK]
    attempts = data.read_prompts(own_data / "red-team-attempts" / "red_team_attempts.jsonl.gz")
    assert len(attempts) > 5
    assert not any("Assistant:" in prompt for prompt in attempts)
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    assert data.read_prompts(tmp_path / "p.txt") == ["one", "two"]


def test_prompts_of_a_column_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_dict({"instruction": [f"Say {n}." for n in range(30)]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset: datasets.DatasetDict({"all": table}))
    own = {"source": "some/set", "column": "instruction", "split": "all"}
    prompts, _, _ = data.select(Data.model_validate({"helpful_prompts": own}), FEW, 0)
    assert prompts.loc[prompts["kind"] == "helpful", "prompt"].str.match(r"Say \d+\.").all()


def test_a_path_and_a_hub_id_are_told_apart() -> None:
    assert [sources.is_local(name) for name in ("a/b", "a/b.jsonl", "./a", "plain", "/a/b")] == [
        False,
        True,
        True,
        True,
        True,
    ]
