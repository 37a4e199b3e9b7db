"""`cai eval`: suites on any responses, ours or a stranger's, or on a model that is sampled first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import pandas as pd

    from harness.cli.console import Terminal
    from harness.models.open import Engine
    from suites.result import SuiteResult

MOST_SEED = 2**32 - 1
MOST_TOKENS = 2**20
# Options and what a suite needs (`suites.registry.NEEDS`) to read them.
_READ_BY = {
    "--anchor": {"anchor"},
    "--judge": {"compare", "score_column", "scorer"},
    "--ratings": {"ratings"},
    "--limit": {"comparisons"},
    "--cot": {"reasoning"},
}


PairsOption = Annotated[
    Path | None, typer.Option(help="Folder with train and test files of human pairs, to test the judge on (HH-RLHF).")
]


def evaluate(
    responses: Annotated[
        list[Path] | None, typer.Argument(metavar="RESPONSES...", help="JSONL, CSV or Parquet files.")
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", help="A suite, or a Python file with one. Default: evasiveness, goodharting."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Sample this model (folder, hub id, 'embedded') first; for hhh, ask it."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Prompts for --model (default: the shipped held-out ones).")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", help="pm:NAME, scorer:FILE.py, model:NAME, server: or words:URL#MODEL, column:NAME, votes:FILE."
        ),
    ] = None,
    harmless_pairs: PairsOption = None,
    helpful_pairs: PairsOption = None,
    anchor: Annotated[str | None, typer.Option("--anchor", help="The arm whose Elo is 0.")] = None,
    ratings: Annotated[Path | None, typer.Option("--ratings", help="Harm ratings, for the harmfulness suite.")] = None,
    hhh: Annotated[
        Path | None, typer.Option("--hhh", help="HHH comparisons: the published JSONL, or BIG-bench's layout.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Ask only so many HHH comparisons, at random.", min=1)
    ] = None,
    cot: Annotated[
        int, typer.Option("--cot", help="HHH: chains of thought to average (5 in the paper).", min=0, max=1000)
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for Parquet tables, figures and the report.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON rows on standard output.")] = False,
    max_new_tokens: Annotated[
        int, typer.Option(help="Length limit of what --model writes.", min=1, max=MOST_TOKENS)
    ] = 64,
    engine: Annotated[
        Literal["auto", "transformers", "vllm"],
        typer.Option("--engine", help="What runs models; auto is vLLM where it is installed and there is a GPU."),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of sampling and bootstrap.", min=0, max=MOST_SEED)] = 0,
) -> None:
    """Measure responses (prompt, response, arm; optional step, sample, kind) or a model.

    Examples:

    `cai eval answers.jsonl --suite evasiveness`

    `cai eval samples/*.jsonl --suite goodharting --suite evasiveness --out results --json`

    `cai eval --model runs/demo/stages/rl_cai/KEY/model --judge pm:PM_FOLDER --suite pm_score`

    `cai eval --suite hhh --model embedded --hhh 438HHHEvaluations.jsonl --limit 50`
    """
    import pandas as pd

    from harness import store
    from harness.cli.console import Terminal, styled
    from harness.cli.lock import hold
    from harness.cli.progress import Bars
    from harness.errors import UserError
    from harness.quiet import quiet
    from suites import evaluate as suites

    console = Terminal(stderr=as_json)
    names = list(dict.fromkeys(suite or ["evasiveness", "goodharting"]))
    models = _labelled(model or [])
    suites.check(names, judge)
    _check_read(names, {"--anchor": anchor, "--judge": judge, "--ratings": ratings, "--limit": limit, "--cot": cot})
    _check(names, responses or [], models, hhh, judge, out)
    if prompts is not None and not (models and _needs_responses(names, judge)):
        raise UserError(f"--prompts {prompts}: nothing is asked them; name a model with --model, and a suite")
    if ratings is not None and not ratings.is_file():
        raise UserError(f"--ratings {ratings}: file not found; check the path")
    comparisons = _comparisons(hhh, limit, seed)
    if out is not None:
        store.writable(out)
        hold(out)
    quiet()
    of_responses = [name for name in names if name != "hhh"]
    table, chains, results = pd.DataFrame(), None, {}
    if _needs_responses(names, judge):
        table, chains = _gather(responses or [], models, prompts, max_new_tokens, seed, engine)
    if chains is not None and "pm_score" in names:
        with console.status(f"{len(chains)} revisions: PM score"):
            chains = suites.score_chains(chains, judge)
    if of_responses:
        with Bars(Terminal(stderr=True)) as bars:
            results = suites.measure(
                table,
                of_responses,
                judge=judge,
                anchor=anchor,
                ratings=ratings,
                chains=chains,
                progress=bars,
                seed=seed,
                engine=engine,
            )
    if comparisons is not None:
        with console.status(f"{len(comparisons)} HHH comparisons: {', '.join(models)}"):
            results |= suites.measure(
                table, ["hhh"], models=models, comparisons=comparisons, reasoning=(cot, max_new_tokens), seed=seed
            )
    if out is not None:
        with console.status("testing the judge"):
            human = human_pairs({"harmless": harmless_pairs, "helpful": helpful_pairs})
            tested = suites.judge_tests(table, names, judge, human, seed, engine)
        with store.disk_space(out):
            tables = {"responses": table, "chains": chains, "judges": tested}
            verdicts = _write(results, tables, out, {"seed": seed, "models": models})
    if as_json:
        typer.echo(as_rows(results))
    else:
        show(console, results)
        if out is not None:
            console.print(f"Tables: {out / 'results'}; report:", styled(out / "report" / "index.html", "bold"))
            console.print(f"The paper's claims: {verdicts}; see `cai claims {out}`")


def human_pairs(folders: dict[str, Path | None]) -> dict[str, pd.DataFrame]:
    """Held-out pairs (prompt, chosen, rejected) of folders with train and test files, by kind of prompts."""
    from harness import hh_layout

    read = {kind: hh_layout.read_hh_folder(folder, kind, 0) for kind, folder in folders.items() if folder is not None}
    return {kind: pairs[pairs["split"] == "heldout"] for kind, pairs in read.items()}


def _labelled(models: list[str]) -> dict[str, str]:
    """Models by what they are called in tables. Raises UserError where two would go by one name."""
    from harness.errors import UserError

    labels: dict[str, str] = {}
    for name in models:
        if (label := _label(name)) in labels:
            raise UserError(f"--model {name}: it would be called '{label}', as {labels[label]} is; rename one folder")
        labels[label] = name
    return labels


def _label(name: str) -> str:
    from harness.models.server import address, is_server

    path = Path(address(name)[1] if is_server(name) else name)
    return path.parent.parent.name if path.name == "model" else path.name  # a run's stages/NAME/KEY/model


def _needs_responses(names: list[str], judge: str | None) -> bool:
    votes = judge is not None and judge.startswith("votes:")
    return any(name != "hhh" and not (name == "elo" and votes) for name in names)


def _check_read(names: list[str], options: Mapping[str, object]) -> None:
    """Raises UserError for an option that no suite of `names` reads: it was meant to do something."""
    from harness.errors import UserError
    from suites import registry

    needed = {need for name in names for need in registry.find(name, "--suite").needs}
    for option, value in options.items():
        needs = _READ_BY[option]
        if option == "--judge" and not str(value).startswith("pm:"):
            needs = needs - {"scorer"}
        if value and not needs & needed:
            readers = " or ".join(suite.name for suite in registry.SUITES if needs & set(suite.needs))
            raise UserError(f"{option} {value}: no suite reads it here; add --suite {readers}")


def _comparisons(file: Path | None, limit: int | None, seed: int) -> pd.DataFrame | None:
    from suites.hhh import draw, load

    if file is None:
        return None
    return load(file) if limit is None else draw(load(file), limit, seed)


def _check(
    names: list[str], files: list[Path], models: dict[str, str], hhh: Path | None, judge: str | None, out: Path | None
) -> None:
    """Raises UserError for options that do not go together, before anything is sampled."""
    from harness.errors import UserError
    from harness.files import read_json

    if "hhh" in names and (hhh is None or not models):
        raise UserError("suite hhh: it asks a model about comparisons; give --model NAME and --hhh FILE")
    if hhh is not None and "hhh" not in names:
        raise UserError(f"--hhh {hhh}: no suite reads it; add --suite hhh")
    if _needs_responses(names, judge):
        if not files and not models:
            raise UserError("nothing to measure; name response files, or a model with --model")
    elif files:
        raise UserError(f"{files[0]}: suite {', '.join(names)} reads no response files; leave them out or add a suite")
    if out is not None and (out / "results").exists():
        about = read_json(out / "run.json") if (out / "run.json").is_file() else None
        if not isinstance(about, dict) or about.get("kind") != "eval":
            raise UserError(f"--out {out}: it holds results that `cai eval` did not write; choose another folder")


def _gather(
    files: list[Path], models: dict[str, str], prompts: Path | None, max_new_tokens: int, seed: int, engine: Engine
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The responses of files and models, and the critique-revision chains where files hold some."""
    import pandas as pd

    from harness.errors import UserError
    from suites.responses import load_chains, load_responses

    tables = [load_responses(files)] if files else []
    taken = set(tables[0]["arm"]) if files else set()
    if both := sorted(taken & set(models)):
        raise UserError(f"--model {models[both[0]]}: the files hold an arm '{both[0]}' already; rename one")
    if models:
        asked = heldout_prompts(prompts)
        tables += [sample(name, asked, engine, max_new_tokens=max_new_tokens, seed=seed) for name in models.values()]
    return pd.concat(tables, ignore_index=True), load_chains(files) if files else None


def heldout_prompts(path: Path | None) -> pd.DataFrame:
    """Prompts with their kind: those of a file, or the shipped held-out ones."""
    import pandas as pd

    from harness import data, files, hh_layout

    if path is not None:
        return pd.DataFrame({"prompt": data.read_prompts(path, "--prompts")}).assign(kind=None)
    parts = []
    for kind, name in (("harmless", "redteam"), ("helpful", "helpful")):
        rows = pd.DataFrame(files.read_jsonl(hh_layout.SHIPPED / f"{name}.jsonl"))
        parts.append(rows.loc[rows["split"] == "heldout", ["prompt"]].assign(kind=kind))
    return pd.concat(parts, ignore_index=True)


def sample(
    name: str, asked: pd.DataFrame, engine: Engine, *, max_new_tokens: int, seed: int, arm: str | None = None
) -> pd.DataFrame:
    """One response of the model `name` to each prompt of `asked` (prompt, kind), as a response table."""
    import pandas as pd

    from harness.models.open import open_model

    keys = [f"{prompt}/0" for prompt in asked["prompt"]]
    samples = open_model(name, engine=engine).sample(
        asked["prompt"].tolist(), max_new_tokens=max_new_tokens, seed=seed, keys=keys
    )
    said: dict[str, Any] = {"response": [s.text for s in samples], "ended": [s.ended for s in samples]}
    table = asked[["prompt", "kind"]].assign(**said, arm=arm or _label(name), sample=0)
    return table.assign(step=pd.array([pd.NA] * len(table), dtype="Int64"))


def as_rows(results: dict[str, SuiteResult]) -> str:
    """The summaries as a JSON list of {suite, arm, step, metric, estimate, low, high, n}, one row a line."""
    import pandas as pd

    rows = pd.concat([result.summary for result in results.values()]).to_json(orient="records", lines=True)
    return "[\n" + ",\n".join(rows.split("\n")[:-1]) + "\n]"


def show(console: Terminal, results: dict[str, SuiteResult]) -> None:
    """Print each suite's summary and notes."""
    import pandas as pd
    from rich.table import Table

    for name, result in results.items():
        steps = result.summary["step"].notna().any()
        table = Table(title=name, title_justify="left")
        table.add_column("arm", overflow="fold")
        if steps:
            table.add_column("step", justify="right")
        table.add_column("metric", overflow="fold")
        for column in ("estimate", "95 %", "n"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in result.summary.to_dict("records"):
            places = 0 if row["metric"].startswith("elo") else 3
            estimate, low, high = (f"{row[name]:.{places}f}" for name in ("estimate", "low", "high"))
            step = ["" if pd.isna(row["step"]) else str(row["step"])] if steps else []
            table.add_row(str(row["arm"]), *step, row["metric"], estimate, f"{low} to {high}", str(row["n"]))
        console.print(table)
        for note in result.notes:
            console.print(f"  note: {note}", style="dim")


def _write(
    results: dict[str, SuiteResult], tables: dict[str, pd.DataFrame | None], out: Path, about: dict[str, Any]
) -> str:
    """A folder in the layout of a run's results, with its report; what `cai eval` wrote there before is replaced.

    Returns the claims' verdicts in words.
    """
    import datetime
    import shutil

    from harness import store
    from reports import static
    from suites import claims

    fresh = out / "results.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, result in results.items():
        result.save(fresh / name)
    for name, table in tables.items():
        if table is not None and not table.empty:
            store.write_table(fresh / f"{name}.parquet", table)
    judged = claims.judge(fresh, seed=about["seed"])
    store.write_table(fresh / "claims.parquet", judged)
    shutil.rmtree(out / "results", ignore_errors=True)
    fresh.replace(out / "results")
    store.write_json(
        out / "run.json",
        {
            "kind": "eval",
            "name": out.resolve().name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": store.versions(),
            "commit": store.commit(),
            "arms": list(dict.fromkeys(tables["responses"].get("arm", []))) if tables["responses"] is not None else [],
            "suites": list(results),
        }
        | about,
    )
    static.render(out)
    measured = judged[judged["verdict"] != claims.NOT_MEASURED].groupby("verdict", sort=False)["id"]
    return "; ".join(f"{name} {', '.join(map(str, ids))}" for name, ids in measured) or "none measured"
