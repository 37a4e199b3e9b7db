"""`cai verify`: hash everything that a run has finished, and say what is not as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `cai run` wrote.")]) -> None:
    """Check every artefact of a run against its manifest by content. Exit code: 0 all whole, 1 something is damaged.

    `cai run` trusts files whose size, times and inode have not changed; this command trusts nothing. What it finds is
    made again by `cai run`.

    Example: `cai verify runs/demo`
    """
    from harness import manifest, store
    from harness.cli.console import Terminal
    from harness.errors import UserError

    folders = [path for path in (*sorted(run.glob("stages/*/*")), run / "results", run / "report") if path.is_dir()]
    finished = [folder for folder in folders if not folder.name.endswith(".partial")]
    if not any((folder / manifest.NAME).is_file() for folder in finished):
        raise UserError(f"{run}: no finished stage here; give a folder that `cai run` wrote")
    console = Terminal(soft_wrap=True)
    with store.locked(run):
        record = manifest.Record.of(run)
        problems, files, size = [], 0, 0
        for folder in finished:
            found = manifest.read(folder)
            if found is None:
                problems.append(f"{folder}: {manifest.NAME} is missing or not whole")
                continue
            files, size = files + len(found["artefacts"]), size + sum(e["size"] for e in found["artefacts"].values())
            problems += [f"{folder}: {line}" for line in record.damage(folder, found["artefacts"], anew=True)]
            problems += _other_inputs(run, folder, found["inputs"])
        record.save()
    for line in problems:
        console.print(f"damaged: {line}")
    whole = f"{len(finished)} stages, {files} files, {size / 2**20:,.0f} MiB"
    if problems:
        console.print(f"{len(problems)} of {whole} damaged; `cai run` makes them again")
        raise typer.Exit(1)
    console.print(f"{whole}: all as they were written")


def _other_inputs(run: Path, folder: Path, inputs: dict[str, dict[str, str]]) -> list[str]:
    """Inputs that are there with other artefacts than those which the stage in `folder` was made from."""
    from harness import manifest

    problems = []
    for role, entry in inputs.items():
        found = manifest.read(run / entry["folder"])
        if found is not None and manifest.digest(found["artefacts"]) != entry["artefacts"]:
            problems.append(f"{folder}: made from other artefacts of {entry['folder']} ({role}) than lie there")
    return problems
