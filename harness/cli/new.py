"""`cai new`: a commented file to begin with, which runs as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

TEMPLATES = Path(__file__).parent / "templates"
NEXT = {  # what to do with it, by the kind of file
    "method": "name it in an experiment: methods: [{file}], arms: [..., {name}]",
    "suite": "try it: cai eval answers.jsonl --suite {file}",
    "constitution": "check it: cai constitutions validate {file}",
    "experiment": "look at its stages: cai plan {file}",
}


def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="method, suite, constitution or experiment.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called; the file is NAME.py or NAME.yaml.")],
    folder: Annotated[Path, typer.Option("--in", help="The folder to write it into.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a commented method, suite, constitution or experiment that runs as it is.

    Examples:

    `cai new method my_method`

    `cai new experiment first_try`
    """
    from harness import store
    from harness.cli.console import Terminal
    from harness.errors import UserError

    if kind not in NEXT:
        raise UserError(f"no kind {kind!r}; choose from {', '.join(NEXT)}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,59}", name):
        raise UserError(f"{name!r}: a name is 1 to 60 letters, digits and '_', beginning with a letter; choose another")
    (template,) = TEMPLATES.glob(f"{kind}.*")
    file = folder / f"{name}{template.suffix}"
    if file.exists() and not force:
        raise UserError(f"{file}: exists already; choose another name or add --force")
    store.writable(folder)
    store.write_text(file, template.read_text(encoding="utf-8").replace(f"my_{kind}", name))
    Terminal(soft_wrap=True).print(f"wrote {file}; {NEXT[kind].format(file=file, name=name)}")
