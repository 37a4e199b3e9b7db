"""What lies on disk: atomic writes, and the facts that a manifest tells of each stage.

Where several workers carry a stage out, the main one writes and the others' calls do nothing (`harness.ranks`).
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import ranks
from harness.errors import UserError, one_line

if TYPE_CHECKING:
    import pandas as pd

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "pandas")


@contextlib.contextmanager
def disk_space(folder: Path) -> Iterator[None]:
    """Turn a full disk, however a library reports it, into a UserError that names `folder`."""
    try:
        yield
    except Exception as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise UserError(f"{folder}: the disk is full; free some space and run the same command again") from error


@contextlib.contextmanager
def locked(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder that is written to. Raises UserError where another holds it for `wait` seconds."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock", is_singleton=True)  # the same process may take it again
    try:
        lock.acquire(timeout=wait)
    except filelock.Timeout as error:
        raise UserError(f"{folder}: another `cai` command writes here; wait for it or give another --out") from error
    except NotImplementedError as error:
        raise UserError(f"{folder}: this file system has no file locks (flock); give a folder on another") from error
    try:
        yield
    finally:
        lock.release()


def writable(folder: Path) -> None:
    """Make `folder` and prove that files can be written there, before hours of work are. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder}: this is a file, or lies below one; give a folder") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = one_line(getattr(error, "strerror", error))
        raise UserError(f"{folder}: cannot be written ({reason}); give another folder") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either the old content or the new, never a part."""
    if not ranks.main():
        return
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write `table` as Parquet, atomically."""
    if not ranks.main():
        return
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(partial, index=False)
    os.replace(partial, path)


def remove(folder: Path) -> None:
    """Remove a folder and all that is in it, if it is there."""
    if ranks.main():
        shutil.rmtree(folder, ignore_errors=True)


def append_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a JSON-lines file and flush them to the disk: what a killed stage resumes from."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def versions() -> dict[str, str]:
    """Versions of Python, the harness and the libraries that decide a result."""
    found = {"python": platform.python_version(), "cai-harness": _version("cai-harness")}
    return found | {name: _version(name) for name in _LIBRARIES}


@cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@cache  # of the code that this process runs
def commit() -> str | None:
    """The harness's own git commit, with '+' when the tree is changed; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else None


def reset_peak_memory() -> None:
    """Start a new peak: of the GPU's memory where torch uses one, of this process's on Linux."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        try:
            clear.write_text("5")
        except OSError:  # not permitted in some containers; the peak is then that of the whole process
            return


def peak_memory() -> int:
    """Peak memory in bytes since the last reset: the GPU's where torch uses one, else resident memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def gpus() -> int:
    """How many GPUs this process sees, where it has loaded torch."""
    torch = sys.modules.get("torch")
    return torch.cuda.device_count() if torch is not None else 0


def device_name() -> str | None:
    """The device that models run on, in words; None in a process that has loaded none."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"cpu ({_processor()}, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''})"


def _processor() -> str:
    """The processor's name, or its kind where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine() or "unknown processor"
