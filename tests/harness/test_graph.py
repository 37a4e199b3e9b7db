"""The stage graph: keys, resuming, statuses, and what a kill leaves."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def draw(work: Work) -> None:
    (work.folder / "value.txt").write_text(str(random.random()))


def copy(work: Work) -> None:
    (work.folder / "value.txt").write_text((work.inputs["number"] / "value.txt").read_text())


def log(work: Work) -> None:
    (work.folder / "trainer").mkdir()
    (work.folder / "trainer" / "log.txt").write_text("a")
    (work.folder / "value.txt").write_text("b")


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

    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="another `cai` command writes here"):
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


# ---------------------------------------------------------------- damage


def statuses(run: Path, stage: Stage | None = None) -> list[str]:
    return [item.status for item in graph.plan([stage or example()], run)]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["value.txt", "manifest.json"])
def test_a_damaged_artefact_is_noticed_and_made_again(tmp_path: Path, harm: Callable[[Path], None], name: str) -> None:
    folders = local.execute([example()], tmp_path, seed=0)
    harm(folders["write"] / name)
    assert statuses(tmp_path) == ["damaged", "stale"]
    CALLS.clear()
    local.execute([example()], tmp_path, seed=0)
    assert CALLS == ["write"]  # it wrote the same bytes again, so what was made from them is whole
    assert statuses(tmp_path) == ["done", "done"]
    assert (folders["double"] / "value.txt").read_text() == "6"


def test_what_was_made_from_other_bytes_is_made_again(tmp_path: Path) -> None:
    stages = [Stage("copy", copy, inputs={"number": Stage("draw", draw)})]
    folders = local.execute(stages, tmp_path, seed=0)
    before = (folders["copy"] / "value.txt").read_text()
    cut(folders["draw"] / "value.txt")
    local.execute(stages, tmp_path, seed=0)
    drawn, copied = ((folders[name] / "value.txt").read_text() for name in ("draw", "copy"))
    assert drawn == copied != before


def test_a_kill_between_a_stage_and_its_dependant_leaves_the_dependant_undone(tmp_path: Path) -> None:
    source = Stage("draw", draw)
    dependant = Stage("copy", copy, inputs={"number": source})
    folders = local.execute([dependant], tmp_path, seed=0)
    cut(folders["draw"] / "value.txt")
    local.execute([source], tmp_path, seed=0)  # and no more: as after a kill
    assert statuses(tmp_path, dependant) == ["done", "stale"]


def test_work_that_was_begun_from_other_bytes_is_not_resumed(tmp_path: Path) -> None:
    source = Stage("draw", draw)
    dependant = Stage("fail", fail_once, inputs={"number": source})
    with pytest.raises(KeyboardInterrupt):
        local.execute([dependant], tmp_path, seed=0)
    cut(next(tmp_path.glob("stages/draw/*/value.txt")))
    with pytest.raises(KeyboardInterrupt):  # begun anew
        local.execute([dependant], tmp_path, seed=0)
    local.execute([dependant], tmp_path, seed=0)
    assert statuses(tmp_path, dependant) == ["done", "done"]


def test_finished_work_that_only_lacks_its_name_is_kept(tmp_path: Path) -> None:
    folder = local.execute([example()], tmp_path, seed=0)["write"]
    folder.rename(folder.with_name(f"{folder.name}.partial"))
    CALLS.clear()
    local.execute([example()], tmp_path, seed=0)
    assert CALLS == []
    assert statuses(tmp_path) == ["done", "done"]


def test_logs_are_no_artefacts(tmp_path: Path) -> None:
    stage = Stage("logs", log)
    folder = local.execute([stage], tmp_path, seed=0)["logs"]
    (folder / "trainer" / "log.txt").write_text("more")
    assert statuses(tmp_path, stage) == ["done"]
    assert list(json.loads((folder / "manifest.json").read_text())["artefacts"]) == ["value.txt"]


def test_only_files_that_changed_are_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = local.execute([example()], tmp_path, seed=0)
    hashed: list[str] = []
    real = hashlib.file_digest

    def counted(stream: Any, name: str) -> Any:
        hashed.append(Path(stream.name).name)
        return real(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    assert statuses(tmp_path) == ["done", "done"]
    assert hashed == []
    (folders["write"] / "value.txt").write_text("3")  # the same content
    assert statuses(tmp_path) == ["done", "done"]
    assert hashed == ["value.txt"]


def test_a_run_may_be_moved(tmp_path: Path) -> None:
    local.execute([example()], tmp_path / "a", seed=0)
    (tmp_path / "a").rename(tmp_path / "b")
    assert statuses(tmp_path / "b") == ["done", "done"]
    shutil.copytree(tmp_path / "b", tmp_path / "c")  # other inodes and times
    assert statuses(tmp_path / "c") == ["done", "done"]


def test_artefacts_in_a_place_of_their_own_with_copies_at_the_top(tmp_path: Path) -> None:
    def stage(value: int) -> Stage:
        return Stage("last", write, {"value": value}, place="results", published=("value.txt",))

    local.execute([stage(1)], tmp_path, seed=0)
    assert (tmp_path / "results" / "value.txt").read_text() == (tmp_path / "value.txt").read_text() == "1"
    assert statuses(tmp_path, stage(2)) == ["stale"]
    local.execute([stage(2)], tmp_path, seed=0)
    assert (tmp_path / "value.txt").read_text() == "2"
    (tmp_path / "value.txt").unlink()
    shutil.rmtree(tmp_path / "results")
    assert statuses(tmp_path, stage(2)) == ["to do"]
    local.execute([stage(2)], tmp_path, seed=0)
    assert (tmp_path / "results" / "value.txt").read_text() == (tmp_path / "value.txt").read_text() == "2"
