"""A stage that was killed ends as if it had not been, wherever the kill cut the file that it resumes from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.experiment import Experiment
from harness.graph import Stage, Work
from harness.kept import Done, Rows
from pipelines import arms

KEPT = "done.jsonl"


@pytest.fixture(scope="module")
def inputs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders in the place of the stages that chains, answers and labels read."""
    folder = tmp_path_factory.mktemp("inputs")
    prompts = [f"{'Why? ' * (n % 4)}Question {n}" for n in range(7)]
    rows = [
        {"kind": kind, "split": "train", "prompt": f"{p} {kind}"} for kind in ("harmless", "helpful") for p in prompts
    ]
    pd.DataFrame(rows).to_parquet(folder / "prompts.parquet")
    answers = [
        {"prompt": p, "sample": s, "response": f"Answer {s} {'x' * n}", "ended": True}
        for n, p in enumerate(prompts)
        for s in range(2)
    ]
    pd.DataFrame(answers).to_parquet(folder / "responses.parquet")
    first = tmp_path_factory.mktemp("first")
    table = pd.DataFrame(answers)
    table[table["sample"] == 0].to_parquet(first / "responses.parquet")
    shutil.copytree(tiny_model, folder / "model")
    return {"data": folder, "policy": folder, "responses": folder, "first": first}


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    training = arms.plan(
        Experiment(
            name="x",
            scale={"max_new_tokens": 6, "batch_size": 3},
            revise={"rounds": 2, "also_direct": True},
            feedback={"cot_tokens": 6},
        )
    )
    sl_cai = training.arms["sl_cai"]
    assert sl_cai is not None
    return {
        "answers": training.labels["plain"].inputs["responses"],
        "helpful": sl_cai.inputs["helpful"],
        "chains": training.chains["critiqued"],
        "direct": training.chains["direct"],
        "cot": training.labels["cot"],
    }


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


@pytest.mark.parametrize("name", ["answers", "helpful", "chains", "direct", "cot"])
def test_cut_at_any_line_it_ends_with_the_same_tables(
    stages: dict[str, Stage], inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stage = stages[name]

    def run(folder: Path, kept: bytes | None = None) -> Work:
        folder.mkdir()
        if kept is not None:
            (folder / KEPT).write_bytes(kept)
        work = stage.work(folder, {role: inputs[role] for role in stage.inputs})
        stage.function(work)
        return work

    with monkeypatch.context() as patch:
        patch.setattr(Done, "remove", lambda done: None)
        assert run(tmp_path / "whole").tokens is not None
    lines = (tmp_path / "whole" / KEPT).read_bytes().splitlines(keepends=True)
    assert len(lines) >= 3
    for count in range(len(lines) + 1):
        torn = lines[count][: len(lines[count]) // 2] if count < len(lines) else b""
        folder = tmp_path / f"cut-{count}"
        work = run(folder, b"".join(lines[:count]) + torn)
        assert tables(folder) == tables(tmp_path / "whole")
        assert not (folder / KEPT).exists()
        assert (work.tokens is None) == (count > 0)  # what the killed try read and wrote, nobody knows


ROW = st.dictionaries(st.sampled_from(["prompt", "response"]), st.text(), min_size=1)


@settings(deadline=None, max_examples=200)
@given(batches=st.lists(st.lists(ROW, min_size=1, max_size=4), max_size=5), data=st.data())
def test_cut_at_any_byte_whole_batches_are_kept_and_no_part_of_one(
    tmp_path_factory: pytest.TempPathFactory, batches: list[Rows], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("done")
    done = Done(Work(folder), 0, "")
    for batch in batches:
        done.keep(batch)
    content = (folder / KEPT).read_bytes() if batches else b""
    cut = data.draw(st.integers(0, len(content)))
    (folder / KEPT).write_bytes(content[:cut])
    resumed = Done(Work(folder), 0, "")
    whole = batches[: content[:cut].count(b"\n")]
    assert resumed.rows == [row for batch in whole for row in batch]
    for batch in batches[len(whole) :]:
        resumed.keep(batch)
    assert (folder / KEPT).read_bytes() == content
