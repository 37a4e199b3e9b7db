"""`cai`: the command line. Commands import what they need when they run, so `cai --help` answers at once."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from harness.cli import (
    compare,
    constitutions,
    control,
    evaluate,
    export,
    inspect,
    judge,
    lock,
    new,
    publish,
    run,
    status,
    verify,
    view,
)
from harness.errors import UserError

app = typer.Typer(
    name="cai",
    help="Reproduce Constitutional AI on open models, and regression-test a new method against its baselines.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("run")(run.run)
app.command("plan")(run.plan)
app.command("status")(status.status)
app.command("new")(new.new)
app.command("publish")(publish.publish)
app.command("export")(export.export)
app.command("control")(control.control)
app.command("verify")(verify.verify)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("judge")(judge.judge)
app.command("claims")(view.claims)
app.command("report")(view.report)
app.command("dashboard")(view.dashboard)
app.command("models")(inspect.models)
app.command("doctor")(inspect.doctor)
app.add_typer(constitutions.app, name="constitutions")


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere.")] = False,
) -> None:
    """Typer shows this in the help of `cai`; `main` reads the option, so that it may stand behind the command, too."""


options.__doc__ = app.info.help


def main() -> None:
    """Entry point. An error is one line on standard error and exit code 2, Ctrl-C exit code 130."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # red-team data should phone nobody
    debug = "--debug" in sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character is no reason to stop
    try:
        code = app([word for word in sys.argv[1:] if word != "--debug"], prog_name="cai", standalone_mode=False)
    except BaseException as error:  # SystemExit, too: in this mode only a user's own code raises it
        code = _failed(error, debug)
    finally:
        lock.release()
    if code == 130:  # Typer's for Ctrl-C
        print("stopped; what is finished is kept, and the same command goes on from here", file=sys.stderr)
    sys.exit(code)


def _failed(error: BaseException, debug: bool) -> int:
    """Say what went wrong, in one line; the exit code."""
    from harness.cli import console

    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):  # `cai ... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  so that the interpreter's last flush finds a place
        return 1
    if debug:
        print(console.traceback_of(error), file=sys.stderr)
    if isinstance(error, UserError):
        console.fail(str(error))
    elif type(error).__name__ == "NoArgsIsHelpError":  # `cai` alone
        print(getattr(error, "message", ""))
    elif hasattr(error, "format_message"):  # Typer's own, of wrong usage
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "cai"
        console.fail(f"{error.format_message().rstrip('.')}; see `{command} --help`")
    elif isinstance(error, OSError) and error.filename is not None:
        console.fail(f"{error.filename}: {error.strerror}; check the path, its rights and the disk")
    else:
        console.fail(console.unexpected(error))
    return 2
