"""`cai constitutions`: list, show, validate and import the principles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from constitutions import ComparisonPrinciple, Constitution, CritiquePrinciple

app = typer.Typer(help="List, show, check and import constitutions.", no_args_is_help=True)


@app.command("list", epilog="Example: cai constitutions list")
def list_() -> None:
    """List the shipped constitutions."""
    from rich.table import Table

    from constitutions import load, shipped
    from harness.cli.console import Terminal

    table = Table("name", "revision", "comparison", "examples", "description")
    for name in shipped():
        it = load(name)
        counts = str(len(it.critique_revision)), str(len(it.comparison)), str(_examples(it))
        table.add_row(it.name, *counts, it.description)
    Terminal().print(table)


@app.command(epilog="Example: cai constitutions show default")
def show(
    name: Annotated[str, typer.Argument(help="A shipped name or a YAML file.")],
) -> None:
    """Print the principles of one constitution."""
    from rich.table import Table

    from constitutions import load
    from harness.cli.console import Terminal, styled

    it = load(name)
    revision = Table("principle", "critique request", "revision request", title="critique and revision")
    for pair in it.critique_revision:
        revision.add_row(_label(pair), pair.critique, pair.revision, end_section=True)
    comparison = Table("principle", "question", title="comparison")
    for principle in it.comparison:
        comparison.add_row(_label(principle), principle.question)
    console = Terminal()
    console.print(styled(f"{it.name}:", "bold"), f"{it.description} Licence: {it.license}.")
    console.print(revision)
    console.print(comparison)
    console.print(_summary(it))


@app.command(epilog="Example: cai constitutions validate mine.yaml")
def validate(
    path: Annotated[str, typer.Argument(help="A YAML file, or a shipped name.")],
) -> None:
    """Check a constitution file; the first fault is reported with its key or line."""
    from constitutions import load
    from harness.cli.console import Terminal

    Terminal(soft_wrap=True).print(f"{path}: valid; {_summary(load(path))}")


@app.command(epilog="Example: cai constitutions template principles")
def template(
    name: Annotated[str, typer.Argument(help="principles, or critiques: those of an llm-swarm file.")] = "principles",
) -> None:
    """Print a template by which `import` writes requests, to be edited and handed to it with --template."""
    from constitutions.plain import TEMPLATES
    from harness.errors import UserError

    names = sorted(path.stem for path in TEMPLATES.glob("*.yaml"))
    if name not in names:
        raise UserError(f"no template {name!r}; choose from {', '.join(names)}")
    typer.echo((TEMPLATES / f"{name}.yaml").read_text(encoding="utf-8"), nl=False)


@app.command("import", epilog="Example: cai constitutions import principles.txt --out mine.yaml")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="Plain principles, a line each (.txt) or under `principle` (.csv); llm-swarm's .json; or the folder "
            "with the paper's prompts as JSON."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The YAML file to write.")],
    template: Annotated[
        Path | None,
        typer.Option(help="How requests are written; `cai constitutions template` prints the shipped ones."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Turn principles of another form into a constitution file, to be read and edited."""
    from constitutions import dump, import_llm_swarm, import_paper, import_principles
    from harness.cli.console import Terminal
    from harness.errors import UserError

    if out.exists() and not force:
        raise UserError(f"{out}: exists already; choose another name or add --force")
    if source.suffix in (".txt", ".csv"):
        constitution = import_principles(source, template)
    elif source.suffix == ".json":
        constitution = import_llm_swarm(source, template)
    elif source.is_file():
        raise UserError(f"{source}: of no known kind; give a .txt, .csv or .json file, or the paper's folder")
    elif template is not None:
        raise UserError("--template: the paper's prompts have all requests; leave it out")
    else:
        constitution = import_paper(source)
    dump(constitution, out)
    Terminal(soft_wrap=True).print(f"wrote {out}: {_summary(constitution)}")


def _label(principle: CritiquePrinciple | ComparisonPrinciple) -> Text:
    """The principle's id, its tags beneath."""
    from harness.cli.console import styled

    return styled(principle.id) + styled("".join(f"\n{tag}" for tag in [", ".join(principle.tags)] if tag), "dim")


def _examples(constitution: Constitution) -> int:
    shots = constitution.few_shot
    return len(shots.critique_revision) + len(shots.comparison) + len(shots.cot) if shots else 0


def _summary(constitution: Constitution) -> str:
    return (
        f"{len(constitution.critique_revision)} critique-revision pairs, {len(constitution.comparison)} comparison "
        f"questions, {_examples(constitution)} worked examples"
    )
