"""The local runner: stages one after the other, in this process."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import events, manifest, store
from harness.errors import UserError
from harness.graph import Both, Planned, Progress, Silent, Stage, examine, in_order
from harness.models.identity import identity
from harness.models.open import rest


def execute(targets: Sequence[Stage], run: Path, *, seed: int, progress: Progress | None = None) -> dict[str, Path]:
    """Carry out what is not done; the folder of each stage by name. Raises UserError when the folder is in use.

    A stage is examined when its turn comes: one whose damaged input was made again with the same bytes is still done.
    """
    stages = in_order(targets)
    with store.locked(run), events.Log(run) as log:
        listener = Both(progress or Silent(), log)
        log.begin({stage.name: [source.name for source in stage.inputs.values()] for stage in stages})
        record = manifest.Record.of(run)
        done: dict[str, Planned] = {}
        for position, stage in enumerate(stages, start=1):
            item = examine(stage, done, run, record)
            if item.status == "done":
                log.write("done", stage=stage.name)
            else:
                listener.stage(stage.name, position, len(stages))
                with log.failures():
                    artefacts = _carry_out(item, done, record, seed, listener)
                log.write("finished", stage=stage.name, **_told(item.folder))
                item = replace(item, status="done", problem="", digest=manifest.digest(artefacts))
            for name in stage.published:
                _publish(item.folder / name, run / name)
            done[stage.name] = item
            record.save()
        log.write("end")
        return {name: item.folder for name, item in done.items()}


def _carry_out(
    item: Planned, done: Mapping[str, Planned], record: manifest.Record, seed: int, progress: Progress
) -> manifest.Artefacts:
    """Run the stage's function in its partial folder, then let the folder appear with its manifest; its artefacts."""
    stage, partial = item.stage, item.partial
    inputs = {role: done[source.name] for role, source in stage.inputs.items()}
    made_from = {role: source.digest for role, source in inputs.items()}
    if not _may_resume(partial, made_from):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        store.write_json(partial / "begun.json", made_from)
    artefacts = _finished(item, made_from, record)
    if artefacts is None:
        origin = hashlib.sha256(json.dumps([item.key, made_from], sort_keys=True).encode()).hexdigest()
        work = stage.work(partial, {role: source.folder for role, source in inputs.items()}, progress, origin)
        store.reset_peak_memory()
        started, before = time.monotonic(), _spent(partial)
        with _time_kept(partial, started, before):
            stage.function(work)
            rest()
        for source in inputs.values():
            found = manifest.read(source.folder)
            if found is None or record.damage(source.folder, found["artefacts"]):
                raise UserError(f"{source.folder}: damaged while `{stage.name}` read it; run the same command again")
        for name in ("spent.json", "begun.json"):
            (partial / name).unlink(missing_ok=True)
        artefacts = record.seal(partial, item.folder)
        about = {
            "stage": stage.name,
            "key": item.key,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seed": seed,
            "device": store.device_name(),
            "wall_seconds": round(before + time.monotonic() - started, 3),
            "tokens": work.tokens,
            "peak_memory_bytes": store.peak_memory(),
            "versions": store.versions(),
            "commit": store.commit(),
            "settings": dict(stage.settings),
            "options": dict(stage.options),
            "models": {role: {"name": name, "identity": identity(name)} for role, name in stage.models.items()},
            "inputs": {
                role: {"folder": source.folder.relative_to(record.run).as_posix(), "artefacts": source.digest}
                for role, source in inputs.items()
            },
            "artefacts": artefacts,
        }
        manifest.write(partial, about)
    if item.folder.exists():  # damaged, or for an older key
        shutil.rmtree(item.folder)
    os.replace(partial, item.folder)
    return artefacts


def _told(folder: Path) -> dict[str, Any]:
    """What a finished stage's manifest says of its cost, for the run's events."""
    about = manifest.read(folder) or {}
    cost = {name: about.get(name) for name in ("tokens", "device", "peak_memory_bytes")}
    return {"seconds": about.get("wall_seconds")} | cost


def _may_resume(partial: Path, made_from: Mapping[str, str | None]) -> bool:
    """Whether the work in `partial` was begun from these very inputs."""
    if manifest.read(partial) is not None:
        return True  # finished but for its name; `_finished` looks closer
    try:
        return bool(json.loads((partial / "begun.json").read_text(encoding="utf-8")) == made_from)
    except (OSError, ValueError):
        return False


def _finished(item: Planned, made_from: Mapping[str, str | None], record: manifest.Record) -> manifest.Artefacts | None:
    """The artefacts, where a kill left finished work under its partial name; work that does not match is removed."""
    found = manifest.read(item.partial)
    if found is None:
        return None
    same = {role: entry["artefacts"] for role, entry in found["inputs"].items()} == made_from
    if same and record.seal(item.partial, item.folder) == found["artefacts"]:
        return dict(found["artefacts"])
    shutil.rmtree(item.partial)
    item.partial.mkdir()
    store.write_json(item.partial / "begun.json", made_from)
    return None


def _publish(source: Path, target: Path) -> None:
    """Copy an artefact to the top of the run's folder, unless the same is there."""
    if not target.is_file() or target.read_bytes() != source.read_bytes():
        store.write_text(target, source.read_text(encoding="utf-8"))


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
