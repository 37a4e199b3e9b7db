"""One stage, carried out: in this process or, with the task pickled, in a worker on another machine."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness import manifest, store
from harness.errors import UserError
from harness.graph import Planned, Progress, Work
from harness.models.open import rest

Function = Callable[[Work], Mapping[str, Any]]
PATIENCE = 60.0  # seconds that a stage waits for a worker that was given up to let go of its folder


@dataclass(frozen=True)
class Task:
    """A stage to carry out, and all that whoever does so must know.

    place: its position in the run's plan. item: the stage as planned. run: the run's folder. inputs: folders of the
    artefacts that it reads, by role, and made_from their digests. identities: what its models' names stand for.
    """

    place: int
    item: Planned
    run: Path
    inputs: Mapping[str, Path]
    made_from: Mapping[str, str | None]
    identities: Mapping[str, str]
    seed: int

    @property
    def name(self) -> str:
        return self.item.stage.name


@dataclass(frozen=True)
class Made:
    """What a stage has made: its artefacts, what it cost (for the run's events), and the files' states and hashes."""

    artefacts: manifest.Artefacts
    cost: Mapping[str, Any]
    verified: Mapping[str, list[Any]]


def alone(task: Task, work: Work) -> Mapping[str, Any]:
    """Run the stage's function in this process; where that was, and the memory it took."""
    store.reset_peak_memory()
    task.item.stage.function(work)
    rest()
    return {
        "node": socket.gethostname(),
        "device": store.device_name(),
        "gpus": store.gpus(),
        "peak_memory_bytes": store.peak_memory(),
    }


def carry_out(task: Task, progress: Progress, function: Function | None = None) -> Made:
    """Run the stage's function in its partial folder, then let the folder appear with its manifest.

    function: what does so in place of `alone`, by several workers. Nobody else works on the stage meanwhile: its lock
    is held. Raises UserError where somebody holds it for long.
    """
    item = task.item
    with store.locked(item.partial.parent, wait=PATIENCE):
        record = manifest.Record.of(task.run)
        about = _whole(task, item.folder, record)
        if about is None:
            about = _finished(task, record) or _made(task, record, progress, function or partial(alone, task))
            if item.folder.exists():  # damaged, or for an older key
                shutil.rmtree(item.folder)
            os.replace(item.partial, item.folder)
    place = item.folder.relative_to(task.run).as_posix()
    verified = {name: entry for name, entry in record.known.items() if name.startswith(f"{place}/")}
    cost = {name: about.get(name) for name in ("tokens", "device", "peak_memory_bytes", "node", "gpu_seconds")}
    return Made(about["artefacts"], {"seconds": about.get("wall_seconds")} | cost, verified)


def _made(task: Task, record: manifest.Record, progress: Progress, function: Function) -> Mapping[str, Any]:
    """Carry out what is left in the partial folder; the manifest, which is in it now."""
    item, folder = task.item, task.item.partial
    stage = item.stage
    if not _may_resume(task):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        store.write_json(folder / "begun.json", task.made_from)
    origin = hashlib.sha256(json.dumps([item.key, task.made_from], sort_keys=True).encode()).hexdigest()
    work = stage.work(folder, task.inputs, progress, origin)
    started, before = time.monotonic(), _spent(folder)
    with _time_kept(folder, started, before):
        facts = function(work)
    for read in task.inputs.values():
        found = manifest.read(read)
        if found is None or record.damage(read, found["artefacts"]):
            raise UserError(f"{read}: damaged while `{stage.name}` read it; run the same command again")
    for name in ("spent.json", "begun.json"):
        (folder / name).unlink(missing_ok=True)
    seconds = round(before + time.monotonic() - started, 3)
    about = {
        "stage": stage.name,
        "key": item.key,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": task.seed,
        **facts,
        "wall_seconds": seconds,
        "gpu_seconds": round(facts["gpus"] * seconds, 3),
        "tokens": work.tokens,
        "versions": store.versions(),
        "commit": store.commit(),
        "settings": dict(stage.settings),
        "options": dict(stage.options),
        "models": {role: {"name": name, "identity": task.identities[role]} for role, name in stage.models.items()},
        "inputs": {
            role: {"folder": read.relative_to(task.run).as_posix(), "artefacts": task.made_from[role]}
            for role, read in task.inputs.items()
        },
        "artefacts": record.seal(folder, item.folder),
    }
    manifest.write(folder, about)
    return about


def _may_resume(task: Task) -> bool:
    """Whether the work in the partial folder was begun from these very inputs."""
    try:
        return bool(json.loads((task.item.partial / "begun.json").read_text(encoding="utf-8")) == task.made_from)
    except (OSError, ValueError):
        return False


def _whole(task: Task, folder: Path, record: manifest.Record) -> Mapping[str, Any] | None:
    """The manifest in `folder`, if the stage was finished there from these inputs and every artefact is whole."""
    found = manifest.read(folder)
    if found is None or found["key"] != task.item.key:
        return None
    same = {role: entry["artefacts"] for role, entry in found["inputs"].items()} == task.made_from
    return found if same and record.seal(folder, task.item.folder) == found["artefacts"] else None


def _finished(task: Task, record: manifest.Record) -> Mapping[str, Any] | None:
    """The manifest, where a kill left finished work under its partial name; one that does not match is removed."""
    partial = task.item.partial
    found = _whole(task, partial, record)
    if found is None and manifest.read(partial) is not None:
        shutil.rmtree(partial)
    return found


def _spent(partial: Path) -> float:
    path = partial / "spent.json"
    return float(json.loads(path.read_text())["seconds"]) if path.is_file() else 0.0


@contextlib.contextmanager
def _time_kept(partial: Path, started: float, before: float) -> Iterator[None]:
    """Note the seconds spent when the stage stops early, so that the manifest counts them."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk must not hide why the stage stopped
            store.write_json(partial / "spent.json", {"seconds": before + time.monotonic() - started})
        raise
