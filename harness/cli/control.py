"""`cai control`: an experiment whose true answer is known, run and held against what must come out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.run import File, Out


def control(
    experiment_file: File,
    out: Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows of {expectation, measured, met}.")] = False,
) -> None:
    """Run an experiment and check what its `expect:` says must come out. What is finished already is reused.

    Exit code: 0 where every expectation is met, 1 where one is not, 2 where the input is wrong.

    Example: `cai control experiments/control_null.yaml`
    """
    import json

    from rich.table import Table

    from harness import experiment as experiments
    from harness.cli.console import Terminal, styled
    from harness.cli.run import run
    from harness.errors import UserError
    from suites import expectations

    experiment = experiments.load(experiment_file)
    if experiment.expect is None:
        raise UserError(f"{experiment_file}: expects nothing; add expect:, as experiments/control_null.yaml has it")
    folder = out or Path("runs") / experiment.name
    run(experiment_file, folder)
    console = Terminal(stderr=as_json)
    with console.status("checking what was expected"):
        checked = expectations.check(folder / "results", experiment.expect, seed=experiment.seed)
    met = sum(one.met for one in checked)
    if as_json:
        typer.echo(json.dumps([vars(one) for one in checked], indent=2))
    else:
        table = Table("expectation", "measured", "")
        for expectation, measured, outcome in expectations.rows(checked):
            table.add_row(expectation, measured, styled(outcome, "green" if outcome == "met" else "red"))
        console.print(table)
        console.print(f"{met} of {len(checked)} expectations met")
    raise typer.Exit(0 if met == len(checked) else 1)
