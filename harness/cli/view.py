"""`cai report`, `cai claims` and `cai dashboard`: what a person reads after a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

    from reports.study import Study

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `cai run` or `cai eval --out` wrote.")]


def report(run: RunFolder) -> None:
    """Write the static report of a run or a study: one HTML file that opens without a network, Markdown and more.

    A study is a folder of runs of one experiment by seed or base model; its claims are judged where they were not.

    Example: `cai report runs/demo`
    """
    from harness import manifest, store
    from harness.cli.console import Terminal, styled
    from harness.cli.lock import hold
    from reports import static, study

    studies = [] if (run / "results").is_dir() else [found for found in study.find(run) if found.folder == run]
    if studies:
        _report_of(studies)
        return
    must_hold_results(run)
    store.writable(run / "report")
    hold(run)
    with store.disk_space(run):
        path = static.render(run)
        manifest.reseal(run / "report")
    Terminal(soft_wrap=True).print("Report:", styled(path, "bold"))


def _report_of(studies: list[Study]) -> None:
    from harness import store
    from harness.cli.console import Terminal, styled
    from harness.errors import UserError
    from reports import study, study_report

    if len(studies) > 1:
        raise UserError(
            f"{studies[0].folder} holds runs of {len(studies)} experiments; move the runs of each into a folder of "
            "their own, then `cai report` that folder"
        )
    (found,) = studies
    store.writable(found.folder)
    with store.disk_space(found.folder):
        verdicts = found.verdicts()
        if verdicts is None:
            verdicts = study.judge(found.cells)
            store.write_table(found.folder / "claims.parquet", study.table(verdicts))
        page = study_report.write(found.folder, found.folder.resolve().name, found.cells, verdicts)
    Terminal(soft_wrap=True).print("Report:", styled(page, "bold"))


def claims(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="A folder that `cai run` or `cai eval --out` wrote, or one a seed."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON rows.")] = False,
) -> None:
    """Judge the paper's 16 claims on a run's own data, with effect, interval, n and the smallest effect to be seen.

    Of several runs of one experiment by seeds, claims about trained models are judged over seeds and prompts: with
    three or more, the verdict is of the method. Such verdicts are printed and written into no run.

    Examples:

    `cai claims runs/demo`

    `cai claims runs/seed-0 runs/seed-1 runs/seed-2`
    """
    from harness import manifest, store
    from harness.cli.lock import hold
    from suites import claims as judged

    for run in runs:
        must_hold_results(run)
    _must_be_of_one_base(runs)
    if len(runs) == 1:
        store.writable(runs[0] / "results")
        hold(runs[0])
    verdicts = judged.judge([run / "results" for run in runs], seed=_seed(runs[0]))
    if len(runs) == 1:
        with store.disk_space(runs[0]):
            store.write_table(runs[0] / "results" / "claims.parquet", verdicts)
            manifest.reseal(runs[0] / "results")
    if as_json:
        typer.echo(verdicts.to_json(orient="records", indent=2))
        return
    show_claims(verdicts)


def show_claims(verdicts: pd.DataFrame) -> None:
    """Print the verdicts as a table."""
    from rich.table import Table

    from harness.cli.console import Terminal, styled
    from suites import claims as judged

    colours = {"reproduced": "green", "contradicted": "red", "underpowered": "yellow", "judge cannot tell": "yellow"}
    table = Table("claim", "statement", "verdict", "effect [95 %]", "n", "smallest effect", "test", "scope")
    for row in verdicts.to_dict("records"):
        measured = row["verdict"] in judged.WEIGHED
        effect = f"{row['effect']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]" if measured else str(row["note"])
        mde = f"{row['mde']:.3g}" if measured else ""
        n = str(int(row["n"])) if measured else ""
        verdict = styled(row["verdict"], colours.get(row["verdict"], "dim"))
        scope = row["scope"] if measured else ""
        table.add_row(str(row["id"]), row["statement"], verdict, effect, n, mde, str(row["test"]), scope)
    Terminal().print(table)


def dashboard(
    runs: Annotated[Path, typer.Argument(metavar="[RUNS_DIR]", help="A run's folder, or a folder of runs.")] = Path(
        "runs"
    ),
    port: Annotated[int, typer.Option(help="The port to listen on.", min=1, max=65535)] = 8501,
    host: Annotated[str, typer.Option(help="The address to bind to; the default is this machine alone.")] = "127.0.0.1",
) -> None:
    """Open the Streamlit dashboard on a run or a folder of runs.

    Example: `cai dashboard runs`
    """
    import importlib.util
    import sys

    from harness.errors import UserError

    if importlib.util.find_spec("streamlit") is None:
        raise UserError("streamlit is not installed; run `pip install 'cai-harness[dashboard]'`")
    if not runs.exists():
        raise UserError(f"{runs}: no such folder; make a run with `cai run experiments/demo.yaml`")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "streamlit", "run", str(root / "reports" / "app.py"), "--server.port", str(port)]
    command += ["--server.address", host, "--server.headless", "true", "--browser.gatherUsageStats", "false"]
    command += ["--client.toolbarMode", "minimal"]
    raise typer.Exit(_serve(command, runs))


def _serve(command: list[str], runs: Path) -> int:
    import os
    import subprocess

    return subprocess.run(command, env=os.environ | {"CAI_RUNS_DIR": str(runs.resolve())}).returncode


def _seed(run: Path) -> int:
    """The seed of a run or an evaluation, so that its claims are judged as it judged them."""
    from harness import files

    about = files.read_json(run / "run.json") if (run / "run.json").is_file() else {}
    seed = about.get("seed") if isinstance(about, dict) else None
    return seed if isinstance(seed, int) else 0


def _must_be_of_one_base(runs: list[Path]) -> None:
    """Raise UserError for runs of different base models, whose differences are not those of seeds."""
    from harness import files
    from harness.errors import UserError

    about = [files.read_json(run / "run.json") for run in runs if (run / "run.json").is_file()]
    models = [found.get("models") for found in about if isinstance(found, dict)]
    bases = {str(named["base"]) for named in models if isinstance(named, dict) and "base" in named}
    if len(bases) > 1:
        raise UserError(
            f"these runs have different base models ({', '.join(sorted(bases))}), which are no seeds of one "
            "experiment; give the runs of one, or name both under models.base and `cai run` it"
        )


def must_hold_results(run: Path) -> None:
    from harness.errors import UserError

    if not (run / "results").is_dir():
        raise UserError(f"{run}: no results here; give a folder that `cai run` or `cai eval --out` wrote")
