"""The report of a study: summary.md, and report/index.html, one file with its figures inside that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness import store, text
from reports import differences, figures_seeds, figures_sizes, reading, static, study, tables
from reports.exhibit import Exhibit
from reports.load import RunData
from reports.study import Cells
from suites import claims


def write(folder: Path, name: str, cells: Cells, verdicts: Mapping[str, pd.DataFrame]) -> Path:
    """Write the report of the runs of `cells` into `folder` and return its index.html."""
    data = {base: {seed: RunData(run) for seed, run in by_seed.items()} for base, by_seed in cells.items()}
    sizes = figures_sizes.exhibits(data) if len(cells) > 1 else []
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "report").mkdir(exist_ok=True)
    for item in sizes:
        if item.figure is not None:
            store.write_text(folder / "figures" / f"{item.name}.svg", item.svg)
    store.write_text(folder / "summary.md", summary(cells, verdicts, sizes))
    content = {
        "name": name,
        "about": {},
        "opening": opening(cells),
        "scope": study.SCOPE,
        "verdicts": tables.VERDICTS,
        "by_base": study.by_base(verdicts) if len(cells) > 1 else None,
        "claims": {base: _claims(verdicts[base], runs) for base, runs in cells.items()},
        "verdict_columns": [*cells, "over all runs"],
        "run_columns": [run.name for run in _runs(cells)],
        "signs": tables.SIGNS,
        "sizes": sizes,
        "sizes_caveat": figures_sizes.CAVEAT,
        "seeds": {base: figures_seeds.exhibits(runs) for base, runs in data.items() if len(runs) > 1},
        "seeds_caveat": figures_seeds.CAVEAT,
        "runs": runs_table(cells),
        "differences": differences.table({run.name: data[b][s] for b, by_seed in cells.items()
                                          for s, run in by_seed.items()}),
        "rerun": [f"cai report {folder.name}", f"cai dashboard {folder.name}"],
    }  # fmt: skip
    page = folder / "report" / "index.html"
    store.write_text(page, static.filled("study.html", content))
    return page


def _runs(cells: Cells) -> list[Path]:
    return [run for by_seed in cells.values() for run in by_seed.values()]


def _claims(verdicts: pd.DataFrame, runs: Mapping[int, Path]) -> dict[str, Any]:
    return {"reading": reading.counts(verdicts["verdict"].tolist()), "table": study.beside(verdicts, runs)}


def opening(cells: Cells) -> str:
    """One sentence: how many runs, of which base models and seeds."""
    seeds = sorted({seed for by_seed in cells.values() for seed in by_seed})
    bases = f"base model {next(iter(cells))}" if len(cells) == 1 else f"base models {', '.join(cells)}"
    return f"{len(_runs(cells))} runs of one experiment: {bases}; seeds {', '.join(map(str, seeds))}."


def runs_table(cells: Cells) -> pd.DataFrame:
    """A row a run: run, base, seed, made, minutes, its own verdicts in words."""
    rows = []
    for base, by_seed in cells.items():
        for seed, folder in by_seed.items():
            run = RunData(folder)
            took = run.about.get("wall_seconds")
            own = run.table("claims", ["verdict"])
            rows.append({
                "run": folder.name, "base model": base, "seed": str(seed),
                "made": str(run.about.get("created", "not recorded")),
                "minutes": f"{took / 60:.1f}" if isinstance(took, int | float) else "not recorded",
                "its own verdicts": claims.NOT_MEASURED if own is None or "verdict" not in own
                else reading.counts(own["verdict"].tolist()),
            })  # fmt: skip
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- Markdown


def summary(cells: Cells, verdicts: Mapping[str, pd.DataFrame], sizes: list[Exhibit]) -> str:
    """The verdicts as Markdown and, of several base models, figures with their size as an axis."""
    parts = []
    if len(cells) > 1:
        parts += ["# The claims by base model", static.markdown_table(study.by_base(verdicts))]
    for base, runs in cells.items():
        title = f"{text.markdown(base)}: {len(runs)} runs" if len(cells) > 1 else f"{len(runs)} runs of one experiment"
        parts += [f"# {title}", static.markdown_table(study.beside(verdicts[base], runs)), study.SCOPE]
    parts += ["# By base model", figures_sizes.CAVEAT] if sizes else []
    for item in sizes:
        parts.append(f"## {item.title}")
        if item.missing is not None:
            parts.append(text.markdown(str(item.missing)))
            continue
        image = f"![{text.markdown(item.alt)}](figures/{item.name}.svg)"
        parts += [image, text.markdown(item.reading), f"*The paper.* {text.markdown(item.paper)}"]
    return "\n\n".join(parts) + "\n"
