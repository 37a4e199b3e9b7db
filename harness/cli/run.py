"""`cai run` and `cai plan`: the main job, from an experiment file to the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.cli.console import Terminal
    from harness.experiment import Experiment
    from harness.graph import Planned, Stage, Watcher
    from harness.runner.schedule import Run

    Execute = Callable[[Sequence[Run], Watcher], object]

File = Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="The experiment file.")]
Out = Annotated[Path | None, typer.Option("--out", help="The run's folder (default: runs/NAME).")]
Runner = Literal["local", "ray"]


def run(
    experiment_file: File,
    out: Out = None,
    runner: Annotated[
        Runner, typer.Option("--runner", help="local: stages one after the other; ray: several at once (extra `ray`).")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option("--address", help="A Ray cluster that is up: auto, HOST:PORT or ray://HOST:PORT."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Stages at once with --runner ray, where there are no GPUs.")
    ] = None,
) -> None:
    """Train the arms, run the suites and write the report. What is finished already is reused.

    Of an experiment with `seeds` or several base models, one run for each in a folder of its own, then the claims over
    all.

    Examples:

    `cai run experiments/demo.yaml`

    `cai run experiments/demo.yaml --runner ray`
    """
    from functools import partial

    from harness import experiment as experiments
    from harness.errors import UserError

    experiment = experiments.load(experiment_file)
    if runner == "local" and (address or workers):
        raise UserError(f"{'--address' if address else '--workers'} means nothing to --runner local; add --runner ray")
    folder = out or Path("runs") / experiment.name
    cells = experiment.cells()
    if runner == "ray":
        from harness.runner import ray

        _run(
            cells,
            experiment_file,
            folder,
            partial(ray.execute, asked=experiment.compute, address=address, workers=workers),
        )
    else:
        for name, cell in cells.items():
            _run({name: cell}, experiment_file, folder, _locally)
    if experiment.is_study:
        _over_cells(folder, cells)


def _over_cells(folder: Path, cells: dict[str, Experiment]) -> None:
    """Judge the claims over the runs of a study: claims.parquet and the report in its folder."""
    from harness import store
    from harness.cli.console import Terminal, styled
    from harness.cli.view import show_claims
    from reports import study, study_report

    by_base: dict[str, dict[int, Path]] = {}
    for name, cell in cells.items():
        by_base.setdefault(cell.models.base, {})[cell.seed] = folder / name
    with store.disk_space(folder):
        verdicts = study.judge(by_base)
        store.write_table(folder / "claims.parquet", study.table(verdicts))
        page = study_report.write(folder, folder.name, by_base, verdicts)
    for base, judged in verdicts.items():
        if len(verdicts) > 1:
            Terminal().print(styled(base, "bold"))
        show_claims(judged)
    Terminal(soft_wrap=True).print("Study:", styled(page, "bold"), f"(open it in a browser), {folder / 'summary.md'}")


def _locally(runs: Sequence[Run], progress: Watcher) -> None:
    from harness.runner import local

    for run in runs:
        local.execute(run.targets, run.folder, seed=run.seed, progress=progress)


def _run(cells: Mapping[str, Experiment], file: Path, out: Path, carry_out: Execute) -> None:
    """Runs, by the name of their folder in `out`, all that can be done of them at once."""
    import time

    from harness import store
    from harness.cli.console import Terminal, styled
    from harness.cli.progress import Bars

    began, console = time.monotonic(), Terminal()
    prepared = [
        _prepared(cell, file, out / name, name if len(cells) > 1 else "", console) for name, cell in cells.items()
    ]
    with store.disk_space(out), Bars(console) as bars:
        carry_out(prepared, bars)
    took = f"  ({time.monotonic() - began:.0f} s)"
    for run in prepared:
        report = run.folder / "report" / "index.html"
        console.print("Report:", styled(report, "bold"), f"(open it in a browser), {report.with_name('summary.md')}")
        console.print("Dashboard:", styled(f"cai dashboard {run.folder}", "bold"), took)


def _prepared(experiment: Experiment, file: Path, folder: Path, label: str, console: Terminal) -> Run:
    """A run of which all has been checked that can be before it begins; says what of it is done."""
    import os

    from harness import graph, store
    from harness.cli.console import styled
    from harness.models.checkpoints import TRUST
    from harness.runner.schedule import Run

    targets = _targets(experiment, file)
    if experiment.models.trust_remote_code:
        os.environ[TRUST] = "1"  # the runner's own processes inherit it
    store.writable(folder)
    planned = graph.plan(targets, folder)
    _check_data(experiment, planned)
    todo = [item for item in planned if item.status != "done"]
    done = f"{len(planned) - len(todo)} of {len(planned)} stages done, in {folder}"
    console.print(styled(f"{experiment.name}:", "bold"), done)
    for item in todo:
        if item.status == "damaged":
            console.print(f"damaged: {item.folder}: {item.problem}; it is made again")
    with store.disk_space(folder):
        if any(item.stage.place is None for item in todo):
            quiet()
            _check_servers(todo)
    return Run(targets, folder, experiment.seed, label)


def plan(
    experiment_file: File,
    out: Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows of {stage, status, key, needs, ...}.")] = False,
    estimate: Annotated[bool, typer.Option("--estimate", help="Show what each stage will take.")] = False,
    gpus: Annotated[str, typer.Option(help="With --estimate: devices, or several numbers: 8,64.")] = "1",
    rate: Annotated[
        list[str] | None,
        typer.Option(help="With --estimate: a shipped device (h100) or NAME=NUMBER; else `cai doctor --measure`'s."),
    ] = None,
    price: Annotated[float | None, typer.Option(help="With --estimate: money for a device-hour.")] = None,
    parameters: Annotated[
        str | None, typer.Option(help="With --estimate: size of all models, such as 7B, in place of their configs.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="With --estimate: tables for a document.")] = False,
) -> None:
    """Show every stage as done, started, stale or to do, before anything is loaded; with --estimate what it will take.

    Examples:

    `cai plan experiments/demo.yaml`

    `cai plan experiments/demo.yaml --json`

    `cai plan experiments/gpu.yaml --estimate --rate h100 --gpus 8 --price 2.50`
    """
    import json

    from rich.table import Table

    from harness import experiment as experiments
    from harness import graph
    from harness.cli import estimate as estimates
    from harness.cli.console import Terminal, styled
    from harness.runner import compute

    asked = estimates.Asked(gpus, rate or (), price, parameters, markdown, as_json)
    asked.check(estimate)
    experiment = experiments.load(experiment_file)
    here = [compute.here()]

    def share(stage: Stage) -> str:
        """What a stage gets where several run at once (--runner ray)."""
        need = compute.need(stage, experiment.compute, here)
        return compute.told(need) + ("" if compute.fits(need, here) else " (not here)")

    found = {}
    for name, cell in experiment.cells().items():
        folder = (out or Path("runs") / experiment.name) / name
        found[folder] = graph.plan(_targets(cell, experiment_file), folder)
        _check_data(cell, found[folder])
    if estimate:
        estimates.show(list(zip(experiment.cells().values(), found.items(), strict=True)), asked)
        return
    if as_json:
        rows = [
            {"stage": i.stage.name, "status": i.status, "key": i.key, "needs": i.needs, "compute": share(i.stage)}
            | ({"run": folder.name} if experiment.is_study else {})
            for folder, planned in found.items()
            for i in planned
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    colours = {"done": "green", "started": "yellow", "stale": "yellow", "damaged": "red", "to do": "cyan"}
    for folder, planned in found.items():
        table = Table(title=f"{experiment.name} in {folder}", title_justify="left")
        for column in ("stage", "status", "needs", "compute", "key"):
            table.add_column(column)
        for item in planned:
            status = styled(item.status, colours[item.status])
            table.add_row(item.stage.name, status, ", ".join(item.needs), share(item.stage), item.key[:8])
        Terminal().print(table)


def _targets(experiment: Experiment, file: Path) -> list[Stage]:
    """The last stage of an experiment, the report, which needs all others."""
    from pipelines import arms
    from reports import collect
    from suites import stages as suite_stages
    from suites.written import stage as written_stage

    training = arms.plan(experiment)
    measured = suite_stages.plan(experiment, training.arms, training.pms, training.chains, training.data)
    kept = [stage for stage in training.arms.values() if stage is not None]
    written = [written_stage(experiment, training.written, training.data)] if training.written is not None else []
    stages = [*kept, *written, *training.labels.values(), *training.pms.values(), *measured.values()]
    return [collect.plan(experiment, file, training.arms, stages)]


def _check_data(experiment: Experiment, planned: list[Planned]) -> None:
    """Draw the prompts and pairs, where none is on the hub, so that a shortage shows at once. Raises UserError."""
    from harness import data

    drawn = any(item.stage.name == "data" and item.status == "done" for item in planned)
    if not drawn and data.is_local(experiment.data):
        data.select(experiment.data, experiment.scale, experiment.seed)


def _check_servers(todo: list[Planned]) -> None:
    """Ask the feedback model's server, where a stage to do needs it, before hours of training. Raises UserError."""
    from harness.models.open import open_model
    from harness.models.server import is_server

    named = {name for item in todo for name in item.stage.models.values()}
    for name in filter(is_server, sorted(named)):
        open_model(name, batch_size=1, choosing=True)
