"""The one way that `cai` prints: what comes from outside (names, paths, texts, messages) is shown as it is.

Rich's markup, emoji codes and highlighting are off, terminal controls are written out, keys and passwords left out.
Our own words get their style by `styled`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.status import Status
from rich.text import Text

from harness import text
from harness.errors import one_line


class Terminal(Console):
    """A rich console for which every string is data."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, through which every string goes that is printed or stands in a table."""
        return super().render_str(_clean(text), **options)

    def status(self, status: RenderableType, **options: Any) -> Status:
        """As rich's, which reads markup in a string whatever the console says."""
        return super().status(styled(status) if isinstance(status, str) else status, **options)


def styled(value: object, style: str = "") -> Text:
    """`value` as text of that style."""
    return Text(_clean(str(value)), style)


def fail(message: str) -> None:
    """Print an error: one line on standard error, never folded."""
    Terminal(stderr=True, soft_wrap=True).print(Text("error:", "bold red"), text.line(text.redact(message)))


def _clean(value: str) -> str:
    return text.terminal(text.redact(value))


# ---------------------------------------------------------------- what nobody foresaw


def unexpected(error: BaseException) -> str:
    """The line for an error that is no user's: what it is, where its traceback was written, how to report it."""
    said = f"unexpected: {type(error).__name__}: {one_line(error)}"
    try:
        place = f"its traceback is in {_keep(traceback_of(error))}"
    except OSError as full:
        place = f"its traceback could not be written ({full.strerror}), `cai --debug ...` shows it"
    return f"{said}; {place}; please report it with that file, as CONTRIBUTING.md says"


def traceback_of(error: BaseException) -> str:
    """The traceback, without keys and passwords."""
    return _clean("".join(traceback.format_exception(error)))


def _keep(trace: str) -> Path:
    from harness import __version__, store
    from harness.models import embedded

    words = " ".join(["cai", *sys.argv[1:]])
    made_by = f"cai-harness {__version__}, commit {store.commit()}, Python {sys.version}, {sys.platform}"
    for folder in (embedded.cache_folder(), Path(tempfile.gettempdir()) / "cai-harness"):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=folder, prefix="error-", suffix=".txt", delete=False, encoding="utf-8"
            ) as file:
                file.write(f"{made_by}\n{_clean(words)}\n\n{trace}")
            return Path(file.name)
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))
