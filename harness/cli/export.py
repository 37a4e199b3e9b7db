"""`cai export`: a run's answers and measures for another tool's viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.view import RunFolder, must_hold_results


def export(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write (default: RUN/inspect).")] = None,
) -> None:
    """Write the answers and measures of a run as logs of inspect_ai, one for each arm and snapshot.

    `inspect view --log-dir runs/demo/inspect` shows them; `inspect_ai.analysis.samples_df` reads them as a data frame.

    Example: `cai export runs/demo`
    """
    from harness import store
    from harness.cli.console import Terminal
    from reports import inspect_log
    from reports.load import RunData

    must_hold_results(run)
    folder = out or run / "inspect"
    with store.disk_space(folder):
        written = inspect_log.write(RunData(run), folder)
    Terminal(soft_wrap=True).print(f"wrote {len(written)} logs; see them with: inspect view --log-dir {folder}")
