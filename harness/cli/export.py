"""`cai export`: a run's answers and measures for another tool's viewer, or an arm's RL for another trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.view import RunFolder, must_hold_results


def export(
    run: RunFolder,
    rl: Annotated[
        str, typer.Option("--rl", metavar="ARM", help="Write what OpenRLHF or verl need to train this arm.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder to write (default: RUN/inspect or RUN/handover/ARM).")
    ] = None,
) -> None:
    """Write the answers and measures of a run as logs of inspect_ai, one for each arm and snapshot.

    `inspect view --log-dir runs/demo/inspect` shows them; `inspect_ai.analysis.samples_df` reads them as a data frame.

    With `--rl ARM`: the policy that RL starts from, its PM and its prompts, with the commands that train it in OpenRLHF
    or verl, for policies that are too large for RL here.

    Examples:

    `cai export runs/demo`

    `cai export runs/demo --rl rl_cai`
    """
    from harness import store
    from harness.cli.console import Terminal
    from harness.cli.publish import stage_of
    from harness.quiet import quiet
    from pipelines import handover
    from reports import inspect_log
    from reports.load import RunData

    console = Terminal(soft_wrap=True)
    if rl:
        stage, folder = stage_of(run, rl), out or run / "handover" / rl
        quiet()
        store.writable(folder.parent)
        with store.disk_space(folder):
            prompts = handover.write(run, stage, folder)
        console.print(f"wrote {prompts} prompts, the policy and its PM; the commands are in {folder / 'README.md'}")
        return
    must_hold_results(run)
    folder = out or run / "inspect"
    with store.disk_space(folder):
        written = inspect_log.write(RunData(run), folder)
    console.print(f"wrote {len(written)} logs; see them with: inspect view --log-dir {folder}")
