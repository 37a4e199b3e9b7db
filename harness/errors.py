"""The one exception that users see, and how what libraries say becomes one line of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """Bad input or environment. The message is one line: what is wrong, where, and how to fix it.

    The command line prints it after ``error:`` and exits with 2.
    """


@contextlib.contextmanager
def own_code(what: str) -> Iterator[None]:
    """Turn whatever a user's own Python file raises, SystemExit included, into a UserError that begins with `what`."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserError(f"{what}: {type(error).__name__}: {one_line(error)}; correct the file") from error


def one_line(what: object, most: int = 120) -> str:
    """`what`, an exception or a text, on one line of at most `most` characters; an exception without text by its type.

    A library's first line says what is wrong, the others where in its own code.
    """
    if isinstance(what, BaseException):
        what = next((line for line in str(what).splitlines() if line.strip()), "") or type(what).__name__
    text = " ".join(str(what).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def shown(value: object, most: int = 40) -> str:
    """A value of a user's file as Python writes it, cut to `most` characters; what cannot be written, by its type."""
    try:
        return one_line(repr(value), most)
    except (ValueError, RecursionError):  # an integer of too many digits
        return f"a huge {type(value).__name__}"


def explain(error: ValidationError) -> str:
    """The first problem of a pydantic error in one line: key, what is wrong, how to fix it."""
    first = error.errors()[0]
    key = one_line(".".join(str(part) for part in first["loc"]))
    where = f"{key}: " if key else ""
    if first["type"] == "extra_forbidden":
        return f"{where}unknown key; delete it or correct its spelling"
    if first["type"] == "missing":
        return f"{where}missing; add this key"
    message = one_line(first["msg"].removeprefix("Value error, "), 300)
    if first["type"] == "value_error":
        return f"{where}{message}"
    given = first["input"]
    return f"{where}{message}, got {shown(given if isinstance(given, str) else shown(given))}; change the value"
