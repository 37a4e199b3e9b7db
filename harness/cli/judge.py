"""`cai judge`: what a judge can tell, before it judges anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from harness.cli.evaluate import PairsOption, human_pairs

if TYPE_CHECKING:
    import pandas as pd

    from harness.models.open import Engine
    from suites.judge_open import Judge
    from suites.judge_report import Report

GOLD = "gold_pm"


def judge(
    judges: Annotated[
        list[str], typer.Argument(help="pm:NAME, scorer:FILE.py, model:NAME, server:URL#MODEL, or gold_pm with --run.")
    ],
    run: Annotated[
        Path | None, typer.Option("--run", help="A run: its held-out human pairs, its responses, its gold PMs.")
    ] = None,
    harmless_pairs: PairsOption = None,
    helpful_pairs: PairsOption = None,
    responses: Annotated[
        list[Path] | None, typer.Option("--responses", help="Response files, such as the paper's samples.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the tables, as Parquet.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tests as JSON rows.")] = False,
    engine: Annotated[
        Literal["auto", "transformers", "vllm"],
        typer.Option("--engine", help="What runs models; auto is vLLM where it is installed and there is a GPU."),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of damage and bootstrap.", min=0, max=2**32 - 1)] = 0,
) -> None:
    """Test judges: human pairs, damaged answers, the non-evasive of two harmless answers, and how far they agree.

    Exit code: 0 where each judge passed what it was tested on, 2 where one did not.

    Examples:

    `cai judge gold_pm --run runs/demo`

    `cai judge pm:PM_FOLDER model:embedded --harmless-pairs hh-rlhf/harmless-base --responses answers.jsonl`
    """
    from harness import store
    from harness.cli.console import Terminal
    from harness.quiet import quiet
    from suites import judge_quality, judge_report

    human, table = _given(run, {"harmless": harmless_pairs, "helpful": helpful_pairs}, responses or [])
    quiet()
    console = Terminal(stderr=as_json)
    with console.status(f"testing {', '.join(judges)}"):
        found = judge_report.report([_opened(name, run, engine) for name in judges], human, table, seed)
    if out is not None:
        with store.disk_space(out):
            out.mkdir(parents=True, exist_ok=True)
            for name, rows in vars(found).items():
                store.write_table(out / f"{name}.parquet", rows)
    if as_json:
        typer.echo(found.tests.to_json(orient="records", indent=2))
    else:
        _show(console, found)
    required = found.tests[found.tests["metric"].isin(judge_quality.REQUIRED)]
    raise typer.Exit(0 if required["passed"].all() else 2)


def _given(
    run: Path | None, folders: dict[str, Path | None], files: list[Path]
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame | None]:
    """Human pairs by kind of prompts, and responses. Raises UserError where nothing was given to test on."""
    from harness import files as reading
    from harness.errors import UserError
    from suites.responses import load_responses

    human = human_pairs(folders)
    table = load_responses(files) if files else None
    if run is not None:
        data = sorted((run / "stages" / "data").glob("*/preferences.parquet"), key=lambda path: path.stat().st_mtime)
        if not data:
            raise UserError(f"--run {run}: no data of a run in it; give a folder that `cai run` wrote")
        pairs = reading.read_parquet(data[-1])
        pairs = pairs[pairs["split"] == "heldout"]
        human = {kind: pairs[pairs["kind"] == kind] for kind in pairs["kind"].unique()} | human
        table = load_responses([run]) if table is None else table
    if not human and table is None:
        raise UserError("nothing to test on; give --run, --harmless-pairs, --helpful-pairs or --responses")
    return human, table


def _opened(name: str, run: Path | None, engine: Engine) -> Judge:
    """A judge by name; gold_pm is that of the run."""
    from harness import scoring
    from harness.errors import UserError
    from suites import judge_open

    if name != GOLD:
        return judge_open.renamed(judge_open.open_judge(name, engine=engine), scoring.label(name))
    if run is None:
        raise UserError("gold_pm: which run's? add --run RUN")

    def scorer(kind: str) -> Any:
        from harness.models.scorer import PreferenceModel

        found = sorted((run / "stages" / f"gold.{kind}").glob("*/model"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UserError(f"--run {run}: it has no gold PM for {kind} prompts; run `cai run` to its end")
        return PreferenceModel.load(found[-1]).score

    return judge_open.of_scores("gold PM", scorer)


def _show(console: Any, found: Report) -> None:
    from rich.table import Table

    from harness.cli.console import styled
    from suites import judge_report
    from suites.judge_quality import WORDS

    table = Table("judge", "prompts", "test", "right", "95 %", "pairs", "passed")
    for row in found.tests.to_dict("records"):
        passed = styled("yes", "green") if row["passed"] else styled("no", "red")
        said = WORDS.get(row["metric"], "prefers the non-evasive of two of the answers given")
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        table.add_row(row["judge"], row["kind"], said, f"{row['estimate']:.2f}", interval, str(row["n"]), passed)
    console.print(table)
    for row in found.agreement.to_dict("records"):
        value = f"{row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        console.print(
            f"{row['judge_a']} and {row['judge_b']}: {row['metric'].replace('_', ' ')} {value}, n = {row['n']}"
        )
    for row in found.published.to_dict("records"):
        value = f"{row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        console.print(f"{row['judge']} and the paper's own PM scores: rank correlation {value}, n = {row['n']}")
    for line in judge_report.words(found):
        console.print(f"- {line}")
