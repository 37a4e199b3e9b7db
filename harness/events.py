"""What happens in a run, as it happens: one JSON line an event in RUN/events.jsonl. The runner writes, others read.

Events, each with `time` (seconds since 1970): run (stages with what they need, pid, host), done (stage: found
finished), stage (begins: position, total), progress (done, total, eta in seconds, note), row (of a training log, some
with samples), finished (seconds, tokens, device, memory), failed (error, one line), stopped (Ctrl-C or a signal), note
(one line, such as of a worker that was lost), end.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import files, text
from harness.errors import UserError, one_line

NAME = "events.jsonl"
BEAT = 10.0  # seconds between touches of the file while the run lives
SILENT = 60.0  # without a touch for so long, a run on another machine counts as killed
EVERY = 2.0  # seconds between two progress events of a stage


class Pace:
    """How far a piece of work is and how long the rest takes, at the mean rate since its first news.

    Before that, models load; and work that is taken up again had been done in part, which took no time here.
    """

    def __init__(self, now: float):
        self.began = now
        self.first: tuple[float, float] | None = None  # when, and how much was done
        self.done, self.total = 0.0, 0.0

    def update(self, done: float, total: float, now: float) -> None:
        self.first = self.first or (now, done)
        self.done, self.total = done, total

    def eta(self, now: float) -> float | None:
        """Seconds to its end; None where nothing is known."""
        if self.first is None or not self.total:
            return None
        since, before = self.first
        if self.done > before:
            return (now - since) * (self.total - self.done) / (self.done - before)
        return (now - self.began) * (self.total - self.done) / self.done if self.done else None


def clock(seconds: float) -> str:
    """ "0:07", "12:05", "3:10:00"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Log:
    """A `harness.graph.Watcher` that writes to a run's events.jsonl. Where the disk is full it writes nothing.

    Use as a context: while it is open, a thread touches the file every `BEAT` seconds.
    """

    def __init__(self, run: Path):
        self.path = run / NAME
        self._closed = threading.Event()

    def __enter__(self) -> Log:
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def write(self, event: str, **about: Any) -> None:
        """Append an event; keys and passwords are left out of its texts."""
        line = json.dumps({"time": round(time.time(), 3), "event": event} | about, default=_plain)
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(text.redact(line) + "\n")

    def begin(self, stages: Mapping[str, Sequence[str]]) -> None:
        """A run of these stages, each with those that it needs, begins or goes on."""
        self._end_the_line()
        listed = [{"stage": name, "needs": list(needs)} for name, needs in stages.items()]
        self.write("run", stages=listed, pid=os.getpid(), host=socket.gethostname())

    def _end_the_line(self) -> None:
        """A kill may have cut the last line, to which the next event must not be joined."""
        with contextlib.suppress(OSError), self.path.open("rb+") as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) is not None and file.read(1) != b"\n":
                file.write(b"\n")

    def stage(self, name: str, position: int, total: int) -> StageLog:
        self.write("stage", stage=name, position=position, total=total)
        return StageLog(self, name)

    def ended(self, name: str) -> None:
        return  # `finished`, `failed` and `stopped` tell more

    def say(self, line: str) -> None:
        self.write("note", note=text.line(line))

    def failed(self, stage: str, error: BaseException) -> None:
        """Note why a stage ends early: it failed, or was stopped."""
        if not isinstance(error, Exception):
            self.write("stopped", stage=stage)
            return
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
        self.write("failed", stage=stage, error=text.line(said))


class StageLog:
    """A `harness.graph.Progress` of one stage, in the run's log."""

    def __init__(self, log: Log, name: str):
        self.log, self.name = log, name
        self.pace, self.written = Pace(time.monotonic()), 0.0

    def advance(self, done: float, total: float, note: str = "") -> None:
        now = time.monotonic()
        self.pace.update(done, total, now)
        if now - self.written >= EVERY or done >= total:
            self.written = now
            eta = self.pace.eta(now)
            about = {"done": done, "total": total, "eta": None if eta is None else round(eta, 1), "note": note}
            self.log.write("progress", stage=self.name, **about)

    def row(self, values: Mapping[str, Any]) -> None:
        self.log.write("row", stage=self.name, row=dict(values))


def _plain(value: Any) -> Any:
    """What JSON does not know: numpy's numbers as numbers, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


@dataclass
class Stage:
    """A stage as the events tell of it. status: to do, running, done, failed, stopped."""

    name: str
    needs: list[str]
    status: str = "to do"
    done: float = 0.0
    total: float = 0.0
    eta: float | None = None
    note: str = ""
    error: str = ""
    seconds: float | None = None
    tokens: int | None = None
    device: str | None = None
    peak_memory_bytes: int | None = None
    node: str | None = None
    gpu_seconds: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class State:
    """A run as its events tell. status: running, done, failed, stopped, killed."""

    folder: Path
    status: str
    stages: dict[str, Stage]
    began: float
    heard: float  # when the last sign of life came, in seconds since 1970

    def count(self, status: str) -> int:
        return sum(stage.status == status for stage in self.stages.values())


def read(run: Path) -> State:
    """The state of the run in folder `run`. Raises UserError where it keeps no events, or others than `Log` writes."""
    path = run / NAME
    if not path.is_file():
        raise UserError(f"{run}: no {NAME} in it; give the folder of a run that `cai run` has begun (runs/NAME)")
    try:
        return _told(run, _lines(path), path.stat().st_mtime)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not what a run writes ({one_line(error)}); move it away") from error


def _told(run: Path, found: list[dict[str, Any]], heard: float) -> State:
    known: dict[str, Stage] = {}
    begun: dict[str, Any] = {}
    status = "running"
    for event in found:
        kind, at = event.get("event"), known.get(str(event.get("stage")))
        if kind == "run":
            begun, status = event, "running"
            known = {s["stage"]: _again(s, known.get(s["stage"])) for s in event["stages"]}
        elif kind == "end":
            status = "done"
        elif at is not None:
            known[at.name] = _after(at, str(kind), event)
            status = kind if kind in ("failed", "stopped") else status
    if status == "running" and not _alive(begun, heard):
        status = "killed"
        for stage in known.values():
            stage.status = "stopped" if stage.status == "running" else stage.status
    return State(run, str(status), known, float(begun.get("time", heard)), heard)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The events that are whole; a line that a kill cut short is passed over."""
    found = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            event = files.parse_json(line)
            if isinstance(event, dict):
                found.append(event)
    return found


def _again(listed: Mapping[str, Any], before: Stage | None) -> Stage:
    """A stage at the beginning of a run: what it took before is kept until it begins anew."""
    stage = Stage(listed["stage"], list(listed["needs"]))
    if before is not None and before.status == "done":
        stage.seconds, stage.tokens, stage.rows = before.seconds, before.tokens, before.rows
        stage.device, stage.peak_memory_bytes = before.device, before.peak_memory_bytes
        stage.node, stage.gpu_seconds = before.node, before.gpu_seconds
    return stage


def _after(stage: Stage, kind: str, event: Mapping[str, Any]) -> Stage:
    """The stage after one event more."""
    if kind == "stage":
        return Stage(stage.name, stage.needs, "running")
    if kind == "done":
        stage.status = "done"
    elif kind == "progress":
        stage.done, stage.total, stage.eta, stage.note = (event[k] for k in ("done", "total", "eta", "note"))
    elif kind == "row":
        stage.rows.append(dict(event["row"]) | {"time": event["time"]})
    elif kind in ("failed", "stopped"):
        stage.status, stage.error = kind, str(event.get("error", ""))
    elif kind == "finished":
        stage.status, stage.eta = "done", 0.0
        for name in ("seconds", "tokens", "device", "peak_memory_bytes", "node", "gpu_seconds"):
            setattr(stage, name, event.get(name))
    return stage


def _alive(begun: Mapping[str, Any], heard: float) -> bool:
    """Whether the process of a run lives: asked of this machine, or judged by the last touch on another.

    A process of that number that has long been silent is another one.
    """
    here = begun.get("host") == socket.gethostname()
    if time.time() - heard > (10 * SILENT if here else SILENT):
        return False
    if not here:
        return True
    try:
        os.kill(int(begun["pid"]), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, KeyError):
        return False
    return True


def as_json(state: State) -> dict[str, Any]:
    """What `cai status --json` prints; training rows are left in the file."""
    stages = [{name: value for name, value in vars(stage).items() if name != "rows"} for stage in state.stages.values()]
    return {
        "run": str(state.folder),
        "status": state.status,
        "began": state.began,
        "heard": state.heard,
        "stages": stages,
    }
