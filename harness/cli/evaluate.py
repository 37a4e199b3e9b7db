"""`cai eval`: suites on any responses, ours or a stranger's, or on a model that is sampled first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from suites.result import SuiteResult


def evaluate(
    responses: Annotated[
        list[Path] | None, typer.Argument(metavar="RESPONSES...", help="JSONL, CSV or Parquet files.")
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option("--suite", help="A suite; may be given again. Default: all that need no judge.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Sample this model (folder, hub id, 'embedded') first.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Prompts for --model (default: the shipped held-out ones).")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", help="pm:FOLDER, column:NAME, model:NAME, votes:FILE or server:URL#MODEL.")
    ] = None,
    anchor: Annotated[str | None, typer.Option("--anchor", help="The arm whose Elo is 0.")] = None,
    ratings: Annotated[Path | None, typer.Option("--ratings", help="Harm ratings, for the harmfulness suite.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for Parquet tables, figures and the report.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON rows on standard output.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Length limit of the answers that --model gives.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of sampling and bootstrap.")] = 0,
) -> None:
    """Measure responses (prompt, response, arm; optional step, sample, kind) or a model.

    Examples:

    `cai eval answers.jsonl --suite evasiveness`

    `cai eval samples/*.jsonl --suite goodharting --suite evasiveness --out results --json`

    `cai eval --model runs/demo/stages/rl_cai/KEY/model --judge pm:PM_FOLDER --suite pm_score`
    """
    from rich.console import Console

    from harness import store
    from harness.errors import UserError
    from suites import evaluate as suites

    console = Console(stderr=as_json)
    names = suite or list(suites.WITHOUT_JUDGE[:2])
    table = _gather(responses or [], model or [], prompts, max_new_tokens, seed)
    if table.empty:
        raise UserError("nothing to measure; name response files, or a model with --model")
    with console.status(f"{len(table)} responses: {', '.join(names)}"):
        results = suites.measure(table, names, judge=judge, anchor=anchor, ratings=ratings, seed=seed)
    if out is not None:
        with store.disk_space(out):
            _write(table, results, out, seed)
    if as_json:
        typer.echo(as_rows(results))
    else:
        show(console, results)
        if out is not None:
            console.print(f"Tables: {out / 'results'}; report: [bold]{out / 'report' / 'index.html'}[/]")


def _gather(files: list[Path], models: list[str], prompts: Path | None, max_new_tokens: int, seed: int) -> pd.DataFrame:
    import pandas as pd

    from suites.responses import load_responses

    tables = [load_responses(files)] if files else []
    if models:
        asked = heldout_prompts(prompts)
        tables += [sample(name, asked, max_new_tokens=max_new_tokens, seed=seed) for name in models]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def heldout_prompts(path: Path | None) -> pd.DataFrame:
    """Prompts with their kind: those of a file, or the shipped held-out ones."""
    import pandas as pd

    from harness import data, store

    if path is not None:
        return pd.DataFrame({"prompt": data.read_prompts(path)}).assign(kind=None)
    parts = []
    for kind, name in (("harmless", "redteam"), ("helpful", "helpful")):
        rows = pd.DataFrame(store.read_jsonl(data.SHIPPED / f"{name}.jsonl"))
        parts.append(rows.loc[rows["split"] == "heldout", ["prompt"]].assign(kind=kind))
    return pd.concat(parts, ignore_index=True)


def sample(name: str, asked: pd.DataFrame, *, max_new_tokens: int, seed: int, arm: str | None = None) -> pd.DataFrame:
    """One response of the model `name` to each prompt of `asked` (prompt, kind), as a response table."""
    import pandas as pd

    from harness.generation import Generator
    from harness.models import load_policy

    generator = Generator(*load_policy(name))
    keys = [f"{prompt}/0" for prompt in asked["prompt"]]
    texts = generator.sample(asked["prompt"].tolist(), max_new_tokens=max_new_tokens, seed=seed, keys=keys)
    label = arm or (Path(name).parent.parent.name if Path(name).name == "model" else Path(name).name)
    table = asked[["prompt", "kind"]].assign(response=texts, arm=label, sample=0)
    return table.assign(step=pd.array([pd.NA] * len(table), dtype="Int64"))


def as_rows(results: dict[str, SuiteResult]) -> str:
    """The summaries as a JSON list of {suite, arm, step, metric, estimate, low, high, n}."""
    import pandas as pd

    return str(pd.concat([result.summary for result in results.values()]).to_json(orient="records", indent=1))


def show(console: Console, results: dict[str, SuiteResult]) -> None:
    """Print each suite's summary and notes."""
    import pandas as pd
    from rich.table import Table

    for name, result in results.items():
        table = Table(title=name, title_justify="left")
        for column, justify in (
            ("arm", "left"),
            ("step", "right"),
            ("metric", "left"),
            ("estimate", "right"),
            ("95 %", "right"),
            ("n", "right"),
        ):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for row in result.summary.to_dict("records"):
            step = "" if pd.isna(row["step"]) else str(row["step"])
            estimate, bounds = f"{row['estimate']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"
            table.add_row(str(row["arm"]), step, str(row["metric"]), estimate, bounds, str(row["n"]))
        console.print(table)
        for note in result.notes:
            console.print(f"  note: {note}", style="dim", markup=False)


def _write(table: pd.DataFrame, results: dict[str, SuiteResult], out: Path, seed: int) -> None:
    """A folder in the layout of a run's results, with its report."""
    import datetime

    from harness import store
    from reports import static
    from suites import claims

    for name, result in results.items():
        result.save(out / "results" / name)
    store.write_table(out / "results" / "responses.parquet", table)
    store.write_table(out / "results" / "claims.parquet", claims.judge(out / "results", seed=seed))
    about = {
        "kind": "eval",
        "name": out.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": store.versions(),
        "commit": store.commit(),
        "arms": list(dict.fromkeys(table["arm"])),
        "suites": list(results),
        "seed": seed,
    }
    store.write_json(out / "run.json", about)
    static.render(out)
