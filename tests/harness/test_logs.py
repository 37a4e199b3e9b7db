"""What a stage's workers print lands in its folder, and is no artefact."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import events, logs, manifest

Cai = Callable[..., tuple[int, str, str]]


def fall() -> None:
    print("from Python")
    os.write(2, b"from below Python\n")
    print("an error", file=sys.stderr)
    raise ZeroDivisionError("nothing")


def test_all_that_is_printed_is_kept_and_a_traceback_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "stages" / "s" / "0123.partial"
    home.mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), logs.printed_to(home):
        fall()
    print("afterwards")
    assert capfd.readouterr().out == "afterwards\n"
    log = logs.newest(tmp_path, "s")
    assert log is not None
    assert log.parent == home / "logs"
    said = log.read_text()
    for part in ("from Python\n", "from below Python\n", "an error\n", 'raise ZeroDivisionError("nothing")'):
        assert part in said
    assert logs.tail(log, 1) == "ZeroDivisionError: nothing"
    assert list(manifest.files(home)) == []


def test_a_log_without_a_word_is_removed_and_one_with_words_goes_on(tmp_path: Path) -> None:
    with logs.printed_to(tmp_path):
        pass
    assert list((tmp_path / "logs").iterdir()) == []
    for word in ("first", "second"):
        with logs.printed_to(tmp_path):
            print(word)
    with logs.printed_to(tmp_path):
        pass
    (log,) = (tmp_path / "logs").iterdir()
    assert log.read_text() == "first\nsecond\n"


def test_the_log_of_unfinished_work_comes_first(tmp_path: Path) -> None:
    assert logs.newest(tmp_path, "s") is None
    for number, place in enumerate(("0123.partial", "0122")):
        folder = tmp_path / "stages" / "s" / place / "logs"
        folder.mkdir(parents=True)
        (folder / "n-1.txt").write_text(place)
        os.utime(folder / "n-1.txt", (number, number))
    found = logs.newest(tmp_path, "s")
    assert found is not None
    assert found.read_text() == "0123.partial"


def test_status_names_the_log_of_a_failed_stage(cai: Cai, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "stages" / "sl_cai" / "0123.partial" / "logs").mkdir(parents=True)
    with events.Log(run) as log:
        log.begin({"sl_cai": []})
        log.stage("sl_cai", 1, 1)
        log.failed("sl_cai", OSError("the disk is full"))
    assert "What it printed" not in cai("status", run)[1]
    printed = run / "stages" / "sl_cai" / "0123.partial" / "logs" / "node-7.txt"
    printed.write_text("much\n")
    code, out, _ = cai("status", run)
    assert code == 0
    assert "".join(out.split()).endswith(f"Whatitprinted:{printed}")
