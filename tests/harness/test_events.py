"""A run's events: what is written, what they tell of a run at work, failed, stopped and killed, and `cai status`."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import events, graph
from harness.cli.console import Terminal
from harness.cli.progress import Bars
from harness.errors import UserError
from harness.graph import Stage, Work
from harness.runner import local

Cai = Callable[..., tuple[int, str, str]]


def learn(work: Work) -> None:
    for step in (1, 2, 3):
        work.progress.advance(step, 3, f"loss {1 / step:.1f}")
        work.progress.row({"step": step, "loss": np.float32(1 / step)})
    work.count(12)
    (work.folder / "value.txt").write_text("learned")


def fall(work: Work) -> None:
    work.progress.advance(1, 4)
    if not (work.inputs["learned"] / ".." / ".." / ".." / "fixed").exists():
        raise ValueError("no such luck\nsecond line")
    (work.folder / "value.txt").write_text("up again")


def interrupted(work: Work) -> None:
    raise KeyboardInterrupt


def example(function: Callable[[Work], None] = fall) -> Stage:
    return Stage("second", function, inputs={"learned": Stage("first", learn)})


def statuses(run: Path) -> dict[str, str]:
    return {name: stage.status for name, stage in events.read(run).stages.items()}


def test_a_run_tells_of_its_stages_rows_and_failures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such luck"):
        local.execute([example()], tmp_path, seed=0)
    state = events.read(tmp_path)
    assert state.status == "failed"
    first, second = state.stages["first"], state.stages["second"]
    assert (first.status, second.status) == ("done", "failed")
    assert second.error == "ValueError: no such luck"
    assert (second.done, second.total, second.needs) == (1, 4, ["first"])
    assert first.tokens == 12
    assert first.seconds is not None
    assert first.peak_memory_bytes
    assert [row["step"] for row in first.rows] == [1, 2, 3]
    assert first.rows[1]["loss"] == 0.5  # a number, though numpy's

    (tmp_path / "fixed").touch()
    local.execute([example()], tmp_path, seed=0)
    state = events.read(tmp_path)
    assert (state.status, set(statuses(tmp_path).values())) == ("done", {"done"})
    assert state.stages["first"].rows == first.rows  # found done; its curve is kept
    assert state.stages["second"].error == ""


def test_ctrl_c_is_told_from_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        local.execute([example(interrupted)], tmp_path, seed=0)
    assert events.read(tmp_path).status == "stopped"
    assert statuses(tmp_path) == {"first": "done", "second": "stopped"}


def begun(run: Path, **about: Any) -> events.Log:
    """A run under way in another process."""
    log = events.Log(run)
    log.begin({"first": [], "second": ["first"]})
    log.stage("first", 1, 2)
    lines = (run / events.NAME).read_text().splitlines()
    head = json.loads(lines[-2]) | about
    (run / events.NAME).write_text("\n".join([*lines[:-2], json.dumps(head), lines[-1]]) + "\n")
    return log


def test_a_run_at_work_and_one_that_was_killed(tmp_path: Path) -> None:
    begun(tmp_path)
    assert events.read(tmp_path).status == "running"
    begun(tmp_path, pid=2**22 + 1)  # beyond any process on Linux
    assert events.read(tmp_path).status == "killed"
    assert statuses(tmp_path) == {"first": "stopped", "second": "to do"}


def test_a_run_on_another_machine_lives_while_it_touches_its_file(tmp_path: Path) -> None:
    begun(tmp_path, pid=2**22 + 1, host="elsewhere")
    assert events.read(tmp_path).status == "running"
    past = time.time() - events.SILENT - 1
    os.utime(tmp_path / events.NAME, (past, past))
    assert events.read(tmp_path).status == "killed"


def test_a_long_silence_of_a_living_process_here_is_no_death_at_once(tmp_path: Path) -> None:
    begun(tmp_path)
    for silent, expected in ((2 * events.SILENT, "running"), (11 * events.SILENT, "killed")):
        past = time.time() - silent
        os.utime(tmp_path / events.NAME, (past, past))
        assert events.read(tmp_path).status == expected


def test_an_open_log_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BEAT", 0.01)
    log = begun(tmp_path)
    os.utime(tmp_path / events.NAME, (1, 1))
    with log:
        until = time.monotonic() + 10
        while (tmp_path / events.NAME).stat().st_mtime == 1 and time.monotonic() < until:
            time.sleep(0.01)
    assert (tmp_path / events.NAME).stat().st_mtime > 1


def test_a_line_that_a_kill_cut_is_passed_over(tmp_path: Path) -> None:
    begun(tmp_path)
    with (tmp_path / events.NAME).open("a") as file:
        file.write('{"time": 1, "event": "progr')
    assert statuses(tmp_path) == {"first": "running", "second": "to do"}
    events.Log(tmp_path).begin({"third": []})  # and the next event is not joined to it
    assert statuses(tmp_path) == {"third": "to do"}


@pytest.mark.parametrize("line", ['{"event": "run"}', '{"event": "run", "stages": [3]}', "[1]", "x"])
def test_another_file_of_that_name_is_no_traceback(tmp_path: Path, line: str) -> None:
    (tmp_path / events.NAME).write_text(f"{line}\n")
    with contextlib.suppress(UserError):
        assert not events.read(tmp_path).stages


def test_progress_is_written_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    first = begun(tmp_path).stage("first", 1, 2)
    for done in range(1, 1001):
        first.advance(done, 1000, "n")
    told = [e for e in map(json.loads, (tmp_path / events.NAME).read_text().splitlines()) if e["event"] == "progress"]
    assert len(told) < 10
    assert told[-1]["done"] == 1000


def test_a_key_in_an_error_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_secret")
    log = begun(tmp_path)
    log.failed("first", OSError("refused: hf_secret_secret"))
    assert "hf_secret" not in (tmp_path / events.NAME).read_text()
    assert events.read(tmp_path).stages["first"].error == "OSError: refused: ***"


def test_eta_at_the_rate_since_the_first_news() -> None:
    pace = events.Pace(100.0)
    assert pace.eta(105.0) is None
    pace.update(60, 100, 110.0)  # taken up again, or a large batch: nobody knows
    pace.update(70, 100, 120.0)
    assert pace.eta(120.0) == pytest.approx(30)


def test_without_a_terminal_there_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(Terminal(), every=0.02) as bars:
        bar = bars.stage("first", 1, 2)
        bar.advance(1, 4)
        bar.advance(2, 4)
        time.sleep(0.2)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "[1/2] first"
    assert any(line.startswith("[1/2] first: 50%, ETA 0:0") for line in said[1:])


def test_events_are_no_artefact_and_change_no_key(tmp_path: Path) -> None:
    (tmp_path / "fixed").touch()
    stage = example()
    local.execute([stage], tmp_path, seed=0)
    assert [item.status for item in graph.plan([stage], tmp_path)] == ["done", "done"]


# ---------------------------------------------------------------- cai status


def test_status_in_words_and_as_json(tmp_path: Path, cai: Cai) -> None:
    with pytest.raises(ValueError, match="no such luck"):
        local.execute([example()], tmp_path, seed=0)
    code, said, _ = cai("status", tmp_path)
    assert code == 0
    assert "failed" in said
    assert "1 of 2 stages done" in said
    assert "second failed: ValueError: no such luck" in said
    told = json.loads(cai("status", tmp_path, "--json")[1])
    assert told["status"] == "failed"
    assert [stage["status"] for stage in told["stages"]] == ["done", "failed"]


def test_status_of_a_study_and_of_no_run(tmp_path: Path, cai: Cai) -> None:
    for seed in ("seed-0", "seed-1"):
        (tmp_path / seed).mkdir()
        begun(tmp_path / seed)
    assert [told["status"] for told in json.loads(cai("status", tmp_path, "--json")[1])] == ["running"] * 2
    code, _, said = cai("status", tmp_path / "none")
    assert code == 2
    assert "none: no events.jsonl in it; give the folder of a run" in said
    with pytest.raises(UserError):
        events.read(tmp_path)


def test_a_run_of_the_harness_tells_all(tiny_run: Path) -> None:
    state = events.read(tiny_run)
    assert state.status == "done"
    assert set(statuses(tiny_run).values()) == {"done"}
    arm = state.stages["rl_cai"].rows
    assert [row["step"] for row in arm] == [1, 2]
    assert {"reward", "kl", "entropy", "length"} <= set(arm[0])
    assert {"prompt", "response", "score"} == set(arm[0]["samples"][0])
    assert all("loss" in row for row in state.stages["sl_cai"].rows + state.stages["pm.rl_cai"].rows)
    assert state.stages["sl_cai"].rows
