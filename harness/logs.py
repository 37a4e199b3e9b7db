"""What the workers of a stage print, in its folder: logs/NODE-PROCESS.txt, one for each; they are no artefacts."""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path

FOLDER = "logs"


@contextlib.contextmanager
def printed_to(folder: Path) -> Iterator[None]:
    """What this process prints meanwhile goes to the logs of the stage whose folder is `folder`, as does a traceback.

    Libraries that are no Python too: the process's own outputs are exchanged. A log without a word is removed.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    path = folder / FOLDER / f"{socket.gethostname()}-{os.getpid()}.txt"
    with path.open("a", encoding="utf-8", errors="replace", buffering=1) as file:
        kept = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                try:
                    yield
                except BaseException:
                    traceback.print_exc()
                    raise
        finally:
            for number, own in zip((1, 2), kept, strict=True):
                os.dup2(own, number)
                os.close(own)
            wordless = path.is_file() and path.stat().st_size == 0
    if wordless:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def newest(run: Path, stage: str) -> Path | None:
    """The log of a stage that was written to last, of its unfinished work before that of finished."""
    for place in ("*.partial", "*"):
        found = list((run / "stages" / stage).glob(f"{place}/{FOLDER}/*.txt"))
        if found:
            return max(found, key=lambda path: path.stat().st_mtime)
    return None


def tail(path: Path, lines: int = 40) -> str:
    """The last lines of a log."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200 * lines))
        return "\n".join(file.read().decode("utf-8", errors="replace").splitlines()[-lines:])
