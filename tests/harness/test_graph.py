"""The stage graph: keys, resuming, statuses, and what a kill leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import graph
from harness.errors import UserError
from harness.graph import Stage, Work
from harness.runner import local

CALLS: list[str] = []


def write(work: Work) -> None:
    CALLS.append("write")
    (work.folder / "value.txt").write_text(str(work.settings.value))
    work.count(7)


def double(work: Work) -> None:
    CALLS.append("double")
    value = int((work.inputs["number"] / "value.txt").read_text())
    (work.folder / "value.txt").write_text(str(2 * value))


def fail_once(work: Work) -> None:
    CALLS.append("fail_once")
    if not (work.folder / "tried").exists():
        (work.folder / "tried").touch()
        raise KeyboardInterrupt
    (work.folder / "value.txt").write_text("done at last")


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def example(value: int = 3) -> Stage:
    return Stage("double", double, inputs={"number": Stage("write", write, {"value": value})})


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    folders = local.execute([example()], tmp_path, seed=0)
    assert (folders["double"] / "value.txt").read_text() == "6"
    assert local.execute([example()], tmp_path, seed=0) == folders
    assert CALLS == ["write", "double"]
    manifest = json.loads((folders["write"] / "manifest.json").read_text())
    assert manifest["tokens"] == 7
    assert manifest["settings"] == {"value": 3}
    assert manifest["peak_memory_bytes"] > 0


def test_statuses(tmp_path: Path) -> None:
    assert [p.status for p in graph.plan([example()], tmp_path)] == ["to do", "to do"]
    local.execute([example()], tmp_path, seed=0)
    assert [p.status for p in graph.plan([example()], tmp_path)] == ["done", "done"]
    assert [p.status for p in graph.plan([example(4)], tmp_path)] == ["stale", "stale"]
    local.execute([example(4)], tmp_path, seed=0)
    assert [p.status for p in graph.plan([example(3)], tmp_path)] == ["done", "done"]  # the older result is kept


def test_a_stopped_stage_resumes_in_its_folder_and_appears_at_once(tmp_path: Path) -> None:
    stage = Stage("fail", fail_once)
    with pytest.raises(KeyboardInterrupt):
        local.execute([stage], tmp_path, seed=0)
    assert [p.status for p in graph.plan([stage], tmp_path)] == ["started"]
    assert not list((tmp_path / "stages" / "fail").glob("*/manifest.json"))
    folders = local.execute([stage], tmp_path, seed=0)
    assert (folders["fail"] / "value.txt").read_text() == "done at last"


def test_keys_follow_settings_inputs_files_and_code(tmp_path: Path) -> None:
    file = tmp_path / "data.txt"
    file.write_text("a")
    keys = {graph.stage_key(Stage("s", write, {"value": v}, files={"table": file}), {}) for v in (1, 2)}
    keys.add(graph.stage_key(Stage("s", double, {"value": 1}, files={"table": file}), {}))
    file.write_text("b")
    keys.add(graph.stage_key(Stage("s", write, {"value": 1}, files={"table": file}), {}))
    assert len(keys) == 4


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    import filelock

    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="another `cai run`"):
        local.execute([example()], tmp_path, seed=0)


def test_a_missing_input_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.txt: not found"):
        graph.plan([Stage("s", write, files={"table": tmp_path / "nothing.txt"})], tmp_path)


def test_options_and_where_a_file_lies_change_no_key(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    stages = [Stage("s", write, files={"table": tmp_path / name}, options={"batch": name}) for name in "ab"]
    assert len({graph.stage_key(stage, {}) for stage in stages}) == 1


def test_a_setting_that_is_not_declared_cannot_be_read() -> None:
    values = graph.Values({"seed": 1, "rl.epochs": 2, "table": {"a.b": 3}})
    assert (values.seed, values.rl.epochs, values.table) == (1, 2, {"a.b": 3})
    with pytest.raises(AttributeError, match="'updates' is read but not declared"):
        _ = values.rl.updates


def test_tokens_that_nobody_counted_are_unknown(tmp_path: Path) -> None:
    work = Work(tmp_path)
    assert work.tokens is None
    work.count(3)
    work.count(4)
    assert work.tokens == 7
    work.count(None)
    work.count(1)
    assert work.tokens is None


def test_one_name_for_two_stages_is_refused() -> None:
    with pytest.raises(UserError, match="two different stages"):
        graph.in_order([Stage("s", write), Stage("s", write)])
