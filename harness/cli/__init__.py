"""`cai`: the command line. Commands import what they need when they run, so `cai --help` answers at once."""

from __future__ import annotations

import os
import sys

import typer

from harness.cli import compare, constitutions, evaluate, inspect, lock, run, verify, view
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
app.command("verify")(verify.verify)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("claims")(view.claims)
app.command("report")(view.report)
app.command("dashboard")(view.dashboard)
app.command("models")(inspect.models)
app.command("doctor")(inspect.doctor)
app.add_typer(constitutions.app, name="constitutions")


def main() -> None:
    """Entry point: errors of the user's making end in one line and exit code 2, Ctrl-C in 130."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # red-team data should phone nobody
    try:
        app(standalone_mode=True)
    except UserError as error:
        _stop(str(error), 2)
    except SystemExit as stop:
        if stop.code == 130:  # Typer's for Ctrl-C
            print("stopped; what is finished is kept, and the same command goes on from here", file=sys.stderr)
        raise
    finally:
        lock.release()


def _stop(message: str, code: int) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print("[bold red]error:[/]", message, highlight=False)
    sys.exit(code)
