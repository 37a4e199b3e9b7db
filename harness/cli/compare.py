"""`cai compare`: the regression gate, for a person and for CI (its exit code says what it found)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd


def compare(
    baseline: Annotated[str, typer.Argument(help="RUN:ARM, a response file, folder or glob (FILES:ARM), or a model.")],
    candidate: Annotated[str, typer.Argument(help="The same. A model is sampled on the baseline's held-out prompts.")],
    gate_file: Annotated[Path | None, typer.Option("--gate", help="Margins (default: the shipped gate.yaml).")] = None,
    judge: Annotated[str | None, typer.Option("--judge", help="For pm_score: pm:FOLDER or column:NAME.")] = None,
    ratings: Annotated[Path | None, typer.Option("--ratings", help="Harm ratings, to judge harmfulness by.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for junit.xml, summary.md and the tables.")] = Path(
        "compare"
    ),
    seed: Annotated[int, typer.Option(help="Seed of sampling and bootstrap.")] = 0,
) -> None:
    """Judge a candidate against a baseline. Exit code: 0 all clear, 1 regression, 2 could not judge.

    Examples:

    `cai compare runs/demo:rl_cai my-model-folder`

    `cai compare runs/demo:hh_rlhf runs/demo:rl_cai --gate gate.yaml`

    `cai compare baseline.jsonl candidate.jsonl`
    """
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from harness import store
    from suites import evaluate, gate

    rules = gate.load(gate_file)
    old = responses_of(baseline, None, seed)
    new = responses_of(candidate, (baseline, old), seed)
    old, new = gate.equal_sizes(old, new)
    both = pd.concat([old.assign(arm="baseline"), new.assign(arm="candidate")], ignore_index=True)
    suites = ["evasiveness", "goodharting", *(["pm_score"] if judge else []), *(["harmfulness"] if ratings else [])]
    console = Console()
    with console.status(f"{len(both)} responses: {', '.join(suites)}"):
        results = evaluate.measure(both, suites, judge=judge, ratings=ratings, seed=seed)
    judged = gate.judge(results, rules, seed=seed)
    with store.disk_space(out):
        store.write_text(out / "junit.xml", gate.junit(judged, candidate))
        store.write_text(out / "summary.md", gate.markdown(judged, baseline, candidate))
        store.write_table(out / "compare.parquet", gate.frame(judged))
        store.write_table(out / "responses.parquet", both)
    colours = dict.fromkeys(gate.PASSES, "green") | {"worse": "red", "differs": "yellow", "cannot tell": "yellow"}
    table = Table("metric", "verdict", "baseline", "candidate", "difference", "margin", "prompts")
    for row in judged:
        colour = colours.get(row.verdict, "dim")
        numbers = [
            f"{row.baseline:.3f}",
            f"{row.candidate:.3f}",
            f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]",
        ]
        shown = numbers if row.verdict != "not measured" else ["", "", ""]
        table.add_row(row.metric, f"[{colour}]{row.verdict}[/]", *shown, f"{row.margin:g}", str(row.n))
    code = gate.exit_code(judged)
    console.print(table)
    console.print(("all clear", "regression", "could not judge")[code], f"({out / 'summary.md'}, {out / 'junit.xml'})")
    raise typer.Exit(code)


def responses_of(spec: str, baseline: tuple[str, pd.DataFrame] | None, seed: int) -> pd.DataFrame:
    """Final-model responses that `spec` names; a model is sampled on the baseline's prompts, under its settings.

    Raises UserError when it names nothing, or an arm that is not there.
    """
    import glob

    import pandas as pd

    from harness.cli.evaluate import heldout_prompts, sample
    from harness.errors import UserError
    from suites.responses import load_responses

    place, arm = _split(spec)
    path = Path(place)
    if (path / "results" / "responses.parquet").is_file():
        table = pd.read_parquet(path / "results" / "responses.parquet")
    elif path.is_file() or glob.glob(place) or (path.is_dir() and not (path / "config.json").is_file()):
        table = load_responses([path])
    else:
        asked = heldout_prompts(None) if baseline is None else _asked(baseline[1])
        tokens = 64 if baseline is None else _max_new_tokens(baseline[0])
        return sample(place, asked, max_new_tokens=tokens, seed=seed, arm="model")
    final = table[table["step"].isna()] if "step" in table else table
    arms = sorted(final["arm"].unique())
    if arm is None and len(arms) > 1:
        raise UserError(f"{spec}: it holds several arms; name one as {place}:ARM, one of {', '.join(arms)}")
    if arm is not None and arm not in arms:
        raise UserError(f"{spec}: no arm {arm!r} there; choose from {', '.join(arms)}")
    return final[final["arm"] == (arm or arms[0])].reset_index(drop=True)


def _split(spec: str) -> tuple[str, str | None]:
    """PLACE:ARM, where the place may be any path, glob or model id."""
    place, colon, arm = spec.rpartition(":")
    return (place, arm) if colon and place and "/" not in arm and "\\" not in arm else (spec, None)


def _asked(table: pd.DataFrame) -> pd.DataFrame:
    columns = ["prompt", *(["kind"] if "kind" in table else [])]
    asked = table[columns].drop_duplicates()
    return asked if "kind" in asked else asked.assign(kind=None)


def _max_new_tokens(baseline: str) -> int:
    about = Path(_split(baseline)[0]) / "run.json"
    scale = json.loads(about.read_text()).get("scale", {}) if about.is_file() else {}
    return int(scale.get("max_new_tokens", 128))
