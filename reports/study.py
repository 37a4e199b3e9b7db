"""The report of a study: each claim over all seeds, beside what each run alone says; of several sizes, size by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from harness import files, store, text
from reports import figures_sizes
from suites import claims

Cells = Mapping[str, Mapping[int, Path]]  # run folders by base model, then by seed


def judge(cells: Cells) -> dict[str, pd.DataFrame]:
    """The claims over the seeds of each base model; claim 14 compares the base models, seed by seed."""
    verdicts = {}
    for base, runs in cells.items():
        others = [[cells[other][seed] / "results" for other in cells if other != base] for seed in runs]
        results = [run / "results" for run in runs.values()]
        verdicts[base] = claims.judge(results, seed=next(iter(runs)), sizes=others if len(cells) > 1 else ())
    return verdicts


def table(verdicts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All verdicts below one another, with a column base where there are several."""
    if len(verdicts) == 1:
        return next(iter(verdicts.values()))
    return pd.concat([judged.assign(base=base) for base, judged in verdicts.items()], ignore_index=True)


def write(folder: Path, verdicts: Mapping[str, pd.DataFrame], cells: Cells) -> None:
    """summary.md and, of several base models, figures/*.svg with their size as an axis."""
    parts = [summary(verdicts[base], list(runs.values()), base if len(cells) > 1 else "")
             for base, runs in cells.items()]  # fmt: skip
    if len(cells) > 1:
        parts = [by_base(verdicts), *parts, "# By base model", figures_sizes.CAVEAT]
        (folder / "figures").mkdir(exist_ok=True)
        for item in figures_sizes.exhibits(cells):
            parts.append(f"## {item.title}")
            if item.missing is not None:
                parts.append(text.markdown(str(item.missing)))
                continue
            store.write_text(folder / "figures" / f"{item.name}.svg", item.svg)
            image = f"![{text.markdown(item.alt)}](figures/{item.name}.svg)"
            parts += [image, text.markdown(item.reading), f"*The paper.* {text.markdown(item.paper)}"]
    store.write_text(folder / "summary.md", "\n\n".join(part.rstrip() for part in parts) + "\n")


def by_base(verdicts: Mapping[str, pd.DataFrame]) -> str:
    """Markdown: a row a claim, its verdict by each base model."""
    lines = [
        "# The claims by base model",
        "",
        _row(["claim", "statement", *verdicts]),
        f"|{'---|' * (2 + len(verdicts))}",
    ]
    columns = [judged.set_index("id")["verdict"] for judged in verdicts.values()]
    for row in next(iter(verdicts.values())).to_dict("records"):
        own = [str(column[row["id"]]) for column in columns]
        lines.append(_row([str(row["id"]), str(row["statement"]), *own]))
    return "\n".join(lines)


def summary(over_all: pd.DataFrame, runs: Sequence[Path], base: str = "") -> str:
    """Markdown: a row a claim, its verdict over `runs` with scope and effect, and each run's own verdict."""
    alone = [files.read_parquet(run / "results" / "claims.parquet").set_index("id")["verdict"] for run in runs]
    head = ["claim", "statement", "over all runs", "scope", "effect [95 %]", "n", *(run.name for run in runs)]
    title = f"# {text.markdown(base)}: {len(runs)} runs" if base else f"# {len(runs)} runs of one experiment"
    lines = [title, "", _row(head), f"|{'---|' * len(head)}"]
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
