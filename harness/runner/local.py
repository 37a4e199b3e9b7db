"""The local runner: stages one after the other, in this process."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness import store
from harness.errors import UserError
from harness.graph import Planned, Progress, Silent, Stage, plan
from harness.models.identity import identity
from harness.models.open import rest


def execute(targets: Sequence[Stage], run: Path, *, seed: int, progress: Progress | None = None) -> dict[str, Path]:
    """Carry out what is not done; the folder of each stage by name. Raises UserError when the folder is in use."""
    import filelock

    listener = progress or Silent()
    run.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise UserError(f"{run}: another `cai run` is at work here; wait for it or give another --out") from error
    with lock:
        folders: dict[str, Path] = {}
        planned = plan(targets, run)
        for position, item in enumerate(planned, start=1):
            folders[item.stage.name] = item.folder
            if item.status != "done":
                listener.stage(item.stage.name, position, len(planned))
                _carry_out(item, folders, seed, listener)
        return folders


def _carry_out(item: Planned, folders: Mapping[str, Path], seed: int, progress: Progress) -> None:
    partial = item.folder.with_name(item.key + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    stage = item.stage
    inputs = {role: folders[upstream.name] for role, upstream in stage.inputs.items()}
    work = stage.work(partial, inputs, progress)
    store.reset_peak_memory()
    started = time.monotonic()
    before = _spent(partial)
    with _time_kept(partial, started, before):
        stage.function(work)
        rest()
    (partial / "spent.json").unlink(missing_ok=True)
    manifest = {
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
        "inputs": {role: str(path.relative_to(path.parents[2])) for role, path in inputs.items()},
    }
    store.write_json(partial / "manifest.json", manifest)
    if item.folder.exists():  # only a folder without a manifest can lie here
        shutil.rmtree(item.folder)
    os.replace(partial, item.folder)


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
