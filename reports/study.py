"""The report of a study: each claim over all seeds, beside what each run alone says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from harness import files, text
from suites import claims


def summary(over_all: pd.DataFrame, runs: Sequence[Path]) -> str:
    """Markdown: a row a claim, its verdict over `runs` with scope and effect, and each run's own verdict."""
    alone = [files.read_parquet(run / "results" / "claims.parquet").set_index("id")["verdict"] for run in runs]
    head = ["claim", "statement", "over all runs", "scope", "effect [95 %]", "n", *(run.name for run in runs)]
    lines = [f"# {len(runs)} runs of one experiment", "", _row(head), f"|{'---|' * len(head)}"]
    for row in over_all.to_dict("records"):
        weighed = row["verdict"] in claims.WEIGHED
        effect = f"{row['effect']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]" if weighed else str(row["note"] or "")
        told = [row["scope"] if weighed else "", effect, str(int(row["n"])) if weighed else ""]
        own = [str(verdicts.get(row["id"], claims.NOT_MEASURED)) for verdicts in alone]
        lines.append(_row([str(row["id"]), str(row["statement"]), str(row["verdict"]), *told, *own]))
    said = f"A verdict of the method needs {claims.SEEDS} runs or more; seeds and prompts are resampled together."
    return "\n".join([*lines, "", said, ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(text.markdown, cells))} |"
