"""`cai status`: how far a run is, from what it writes as it goes; the run itself is not touched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from harness.events import Stage, State

COLOURS = {"done": "green", "running": "yellow", "failed": "red", "stopped": "red", "killed": "red", "to do": "cyan"}


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or of a study's runs.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print what the run's events tell, for scripts.")] = False,
) -> None:
    """Show what of a run is done, running, failed and to do, also while it runs and from another machine.

    Examples:

    `cai status runs/demo`

    `cai status runs/demo --json`
    """
    import json

    from harness import events

    of_seeds = [] if (run / events.NAME).is_file() else sorted(path.parent for path in run.glob(f"*/{events.NAME}"))
    states = [events.read(folder) for folder in of_seeds or [run]]
    if as_json:
        told = [events.as_json(state) for state in states]
        typer.echo(json.dumps(told if of_seeds else told[0], indent=2))
        return
    for state in states:
        _show(state)


def _show(state: State) -> None:
    from rich.table import Table

    from harness import logs
    from harness.cli.console import Terminal, styled

    console = Terminal()
    done = f"{state.count('done')} of {len(state.stages)} stages done"
    console.print(styled(f"{state.folder}:", "bold"), styled(state.status, COLOURS[state.status]), done)
    table = Table("stage", "status", "done", "ETA", "time", "")
    for stage in state.stages.values():
        table.add_row(*_row(stage))
    console.print(table)
    failed = next((stage for stage in state.stages.values() if stage.error), None)
    if failed is not None:
        console.print(f"{failed.name} failed: {failed.error}")
        log = logs.newest(state.folder, failed.name)
        if log is not None:
            console.print(f"What it printed: {log}")


def _row(stage: Stage) -> list[RenderableType]:
    from harness.cli.console import styled
    from harness.events import clock

    share = f"{stage.done:g}/{stage.total:g}" if stage.total and stage.status != "done" else ""
    eta = clock(stage.eta) if stage.eta is not None and stage.status == "running" else ""
    took = clock(stage.seconds) if stage.seconds is not None and stage.status == "done" else ""
    note = stage.note if stage.status == "running" else ""
    return [stage.name, styled(stage.status, COLOURS[stage.status]), share, eta, took, note]
