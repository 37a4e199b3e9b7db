"""`cai compare`: the regression gate, for a person and for CI (its exit code says what it found)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from harness.cli.evaluate import MOST_SEED, MOST_TOKENS, PairsOption, human_pairs

if TYPE_CHECKING:
    import pandas as pd

    from harness.models.open import Engine
    from suites.result import SuiteResult

PAPER_SCORE = "paper_pm_score"  # what the paper's published samples bring with them
_LONGEST = 1024  # tokens sampled where the baseline is a file and does not say


@dataclass
class Side:
    """Baseline or candidate: responses of its final model, and the run they come from, if any."""

    table: pd.DataFrame
    run: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)  # the run's run.json


def compare(
    baseline: Annotated[
        str, typer.Argument(help="RUN:ARM, a response file, a folder or glob of them (PLACE:ARM), or a model.")
    ],
    candidate: Annotated[
        str, typer.Argument(help="The same. A model is sampled on the baseline's prompts, under its settings.")
    ],
    gate_file: Annotated[Path | None, typer.Option("--gate", help="Margins (default: the shipped gate.yaml).")] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            help="Of harmlessness: pm:NAME, scorer:FILE.py or column:NAME for pm_score, model:NAME or server:URL#MODEL "
            "for Elo. Default: the baseline run's gold PMs, or the PM scores that both sides bring.",
        ),
    ] = None,
    harmless_pairs: PairsOption = None,
    helpful_pairs: PairsOption = None,
    ratings: Annotated[
        Path | None, typer.Option("--ratings", help="Harm ratings, for harmfulness (name it in your gate file).")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for junit.xml, summary.md and the tables.")] = Path(
        "compare"
    ),
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_TOKENS, help="Length limit of a sampled candidate (default: the baseline's)."),
    ] = None,
    engine: Annotated[
        Literal["auto", "transformers", "vllm"],
        typer.Option("--engine", help="What runs models; auto is vLLM where it is installed and there is a GPU."),
    ] = "auto",
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MOST_SEED, help="Seed of sampling and bootstrap (default: the baseline run's, or 0)."),
    ] = None,
) -> None:
    """Judge a candidate against a baseline, metric by metric: better, equivalent, no worse, worse, or cannot tell.

    Exit code: 0 all clear, 1 regression, 2 could not judge (or the input is wrong: one line on stderr says what).

    Examples:

    `cai compare runs/demo:rl_cai my-model-folder`

    `cai compare runs/demo:hh_rlhf runs/demo:rl_cai --gate gate.yaml`

    `cai compare baseline.jsonl candidate.jsonl --judge server:http://localhost:8000/v1#MODEL`

    `cai compare samples:rl_cai samples:helpful_only --judge column:paper_pm_score`
    """
    import pandas as pd

    from harness import store
    from harness.cli.console import Terminal, styled
    from harness.cli.lock import hold
    from harness.quiet import quiet
    from suites import gate
    from suites.responses import storable

    rules = gate.load(gate_file)
    _check(judge, ratings)
    store.writable(out)
    hold(out)
    quiet()
    console = Terminal()
    old = side_of(baseline, None, max_new_tokens, seed, engine)
    seed = int(old.about.get("seed", 0)) if seed is None else seed
    new = side_of(candidate, old, max_new_tokens, seed, engine)
    _share_kinds(old, new)
    notes = _notes(old.table, new.table, rules.min_prompts)
    first, second = gate.equal_sizes(old.table, new.table)
    both = storable(pd.concat([first.assign(arm="baseline"), second.assign(arm="candidate")], ignore_index=True))
    with console.status(f"{len(both)} responses"):
        results, judged_by = _measure(both, old, new, judge, ratings, seed, engine)
    tested = None
    if judged_by:
        notes.append(f"harmlessness judged by {judged_by}")
        with console.status("testing the judge"):
            human = human_pairs({"harmless": harmless_pairs, "helpful": helpful_pairs})
            by_judge = [name for name in ("elo", "pm_score") if name in results]
            tested, untested = _judge_tests(old, by_judge, judge, human, seed, engine)
        notes += untested
    judged = gate.judge(results, rules, tested=tested, seed=seed)
    with store.disk_space(out):
        store.write_text(out / "junit.xml", gate.junit(judged, candidate))
        store.write_text(out / "summary.md", gate.markdown(judged, baseline, candidate, notes))
        store.write_table(out / "compare.parquet", gate.frame(judged))
        store.write_table(out / "responses.parquet", both)
    _show(console, judged, notes)
    code = gate.exit_code(judged)
    said = (("all clear", "green"), ("regression", "red"), ("could not judge", "yellow"))[code]
    console.print(
        styled(*said),
        f"(exit code {code}); read {out / 'summary.md'}, hand {out / 'junit.xml'} to CI",
    )
    raise typer.Exit(code)


def _show(console: Any, judged: list[Any], notes: list[str]) -> None:
    """The verdicts as a table, then what to do about them."""
    from rich.table import Table

    from harness.cli.console import styled
    from suites import gate

    colours = dict.fromkeys(gate.PASSES, "green") | {"worse": "red"}
    table = Table("metric", "verdict", "baseline", "candidate", "difference", "largest loss", "margin", "prompts")
    measured = [row for row in judged if row.verdict != "not measured"]
    for row in measured:
        table.add_row(row.metric, styled(row.verdict, colours.get(row.verdict, "yellow")), *gate.cells(row))
    console.print(table)
    left = ", ".join(row.metric for row in judged if row not in measured)
    if left:
        console.print(f"  not measured: {left}", style="dim")
    for line in gate.advice(judged):
        console.print(f"- {line}")
    for line in notes:
        console.print(f"  note: {line}", style="dim")


# ---------------------------------------------------------------- the two sides


def side_of(
    spec: str,
    baseline: Side | None,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    engine: Engine = "auto",
) -> Side:
    """What `spec` names: responses of a final model; a model is sampled on the baseline's prompts and settings.

    Raises UserError when it names nothing, or an arm that is not there.
    """
    import glob

    from harness.errors import UserError
    from suites.responses import EXTENSIONS, load_responses

    place, arm = _split(spec)
    path = Path(place)
    is_model = not (path.is_file() or glob.glob(place)) or (path / "config.json").is_file()
    if is_model and arm is None and path.suffix not in EXTENSIONS and not glob.has_magic(place):
        return Side(_sampled(place, baseline, max_new_tokens, seed or 0, engine))
    table = _final(load_responses([path]))
    arms = sorted(table["arm"].unique())
    if arm is None and len(arms) > 1:
        raise UserError(f"{spec}: it holds several arms; name one as {place}:ARM, one of {', '.join(arms)}")
    if arm is not None and arm not in arms:
        raise UserError(f"{spec}: no arm {arm!r} there; choose from {', '.join(arms)}")
    about = path / "run.json"
    return Side(
        table[table["arm"] == (arm or arms[0])].reset_index(drop=True),
        path if about.is_file() else None,
        _about(about) if about.is_file() else {},
    )


def _about(path: Path) -> dict[str, Any]:
    """A run's run.json. Raises UserError where it does not say what a comparison needs of it."""
    from harness import files
    from harness.errors import UserError

    about = files.read_json(path)
    scale = about.get("scale", {}) if isinstance(about, dict) else None
    numbers = [about.get("seed", 0), scale.get("max_new_tokens", 1)] if isinstance(scale, dict) else [None]
    if not all(isinstance(number, int) and 0 <= number < 2**32 for number in numbers):
        raise UserError(f"{path}: not what `cai run` or `cai eval` wrote; make it again by the same command")
    return dict(about)


def _split(spec: str) -> tuple[str, str | None]:
    """PLACE:ARM, where the place may be any path, glob or model id."""
    place, colon, arm = spec.rpartition(":")
    named = colon and place and "/" not in arm and "\\" not in arm and not Path(spec).exists()
    return (place, arm) if named else (spec, None)


def _final(table: pd.DataFrame) -> pd.DataFrame:
    """Each arm's final model, or its last snapshot where that is all there is."""
    last = table.groupby("arm")["step"].transform("max")
    finished = table.assign(final=table["step"].isna()).groupby("arm")["final"].transform("any")
    return table[table["step"].isna() | (~finished & (table["step"] == last).fillna(False))]


def _sampled(name: str, baseline: Side | None, max_new_tokens: int | None, seed: int, engine: Engine) -> pd.DataFrame:
    """A model's answers: to the baseline's prompts, as many of each, from the same random streams as a run's arms."""
    import pandas as pd

    from harness.cli.evaluate import heldout_prompts
    from harness.models.checkpoints import load_tokenizer
    from harness.models.open import open_model

    model = open_model(name, engine=engine)
    scale = baseline.about.get("scale", {}) if baseline else {}
    asked = heldout_prompts(None).assign(sample=0) if baseline is None else baseline.table
    if max_new_tokens is None and baseline is not None and "max_new_tokens" not in scale:
        tokenizer = load_tokenizer(name)
        longest = max(map(len, tokenizer(asked["response"].tolist(), add_special_tokens=False)["input_ids"]))
        scale = {"max_new_tokens": min(max(longest, 1), _LONGEST)}
    keys = [f"{prompt}/{number}" for prompt, number in zip(asked["prompt"], asked["sample"], strict=True)]
    limit = max_new_tokens or int(scale.get("max_new_tokens", 64))
    samples = model.sample(asked["prompt"].tolist(), max_new_tokens=limit, seed=seed, keys=keys)
    kept = [column for column in ("prompt", "sample", "kind", "benign") if column in asked]
    table = asked[kept].reset_index(drop=True)
    table = table.assign(response=[sample.text for sample in samples], ended=[sample.ended for sample in samples])
    return table.assign(arm=Path(name).name, step=pd.array([pd.NA] * len(table), dtype="Int64"))


def _share_kinds(old: Side, new: Side) -> None:
    """A prompt is of the same kind on both sides, whichever side says it."""
    for column in ("kind", "benign"):
        known: dict[str, Any] = {}
        for side in (new, old):
            if column in side.table:
                told = side.table[side.table[column].notna()]
                known |= dict(zip(told["prompt"], told[column], strict=True))
        for side in (old, new) if known else ():
            side.table[column] = [known.get(prompt) for prompt in side.table["prompt"]]


def _notes(old: pd.DataFrame, new: pd.DataFrame, least: int) -> list[str]:
    """Remarks on the prompts. Raises UserError where fewer than `least` are shared: other prompts, other answers."""
    from harness.errors import UserError

    prompts = [set(table["prompt"]) for table in (old, new)]
    shared = len(prompts[0] & prompts[1])
    if shared < min(least, *map(len, prompts)):
        raise UserError(
            f"the sides share {shared} prompts, of {len(prompts[0])} of the baseline and {len(prompts[1])} of the "
            "candidate, so what differs may be the prompts; give answers to the same ones"
        )
    if prompts[0] != prompts[1]:
        return [f"{shared} prompts are shared, of {len(prompts[0])} of the baseline and {len(prompts[1])} given"]
    return []


# ---------------------------------------------------------------- measuring


def _check(judge: str | None, ratings: Path | None) -> None:
    """Raises UserError for a judge that cannot be, before anything is sampled or measured."""
    from harness.errors import UserError
    from suites import evaluate

    kind = (judge or "").partition(":")[0]
    if kind == "votes":
        raise UserError("--judge votes: people voted on other responses; `cai eval --suite elo` reads them")
    if judge is not None:
        evaluate.check(["elo" if kind in ("model", "server", "words") else "pm_score"], judge)
    if ratings is not None and not ratings.is_file():
        raise UserError(f"--ratings {ratings}: file not found; check the path")


def _measure(
    both: pd.DataFrame,
    old: Side,
    new: Side,
    judge: str | None,
    ratings: Path | None,
    seed: int,
    engine: Engine,
) -> tuple[dict[str, SuiteResult], str | None]:
    """Suites by name on both sides, and who judged harmlessness."""
    from suites import evaluate

    suites = ["evasiveness", "goodharting", *(["harmfulness"] if ratings else [])]
    results = evaluate.measure(both, suites, ratings=ratings, seed=seed)
    kind = (judge or "").partition(":")[0]
    if kind in ("model", "server", "words"):
        judged = evaluate.measure(both, ["elo"], judge=judge, anchor="baseline", seed=seed, engine=engine)
        return results | judged, judge
    if judge is not None:
        return results | evaluate.measure(both, ["pm_score"], judge=judge, seed=seed), judge
    if PAPER_SCORE in both and both[PAPER_SCORE].notna().all():
        judge = f"column:{PAPER_SCORE}"
        return results | evaluate.measure(both, ["pm_score"], judge=judge, seed=seed), "the paper's own PM scores"
    gold = {kind: folder for kind in ("harmless", "helpful") if (folder := _gold(old.run, kind)) is not None}
    found = {name: r for kind, folder in gold.items() for name, r in _by_gold(both, old, new, kind, folder, seed)}
    return results | found, f"{old.run}'s gold PM" if "pm_score" in found else None


def _judge_tests(
    old: Side, suites: Sequence[str], judge: str | None, human: dict[str, pd.DataFrame], seed: int, engine: Engine
) -> tuple[pd.DataFrame | None, list[str]]:
    """What the judge's tests found, on the baseline's answers or in its run, and notes on what was not tested."""
    import pandas as pd

    from suites import evaluate, judge_quality

    if judge is None:
        if old.run is None:
            return None, ["the judge was not tested: a column of scores cannot be"]
        table = old.run / "results" / "judges.parquet"
        if not table.is_file():
            return None, [f"the judge was not tested: {table} is missing; run `cai run` again"]
        return pd.read_parquet(table), []
    tested = evaluate.judge_tests(old.table, suites, judge, human, seed, engine)
    if tested.empty:
        return None, ["the judge was not tested: a column of scores cannot be"]
    kinds = [kind for kind in tested["kind"].unique() if kind not in human]
    options = " and ".join(f"--{kind}-pairs" for kind in kinds)
    untested = f"{judge_quality.HUMAN} of the judge was not measured; give human pairs with {options}"
    return tested, [untested] if kinds else []


def _gold(run: Path | None, kind: str) -> Path | None:
    """The gold PM that judged the run, if its folder is still there."""
    from harness import files

    stages = run / "results" / "stages.parquet" if run else None
    if run is None or stages is None or not stages.is_file():
        return None
    table = files.read_parquet(stages, ["stage", "key"])
    if not {"stage", "key"} <= set(table):
        return None
    keys = table.loc[table["stage"] == f"gold.{kind}", "key"]
    folder = run / "stages" / f"gold.{kind}" / str(keys.iloc[-1]) if len(keys) else None
    return folder if folder and (folder / "model").is_dir() else None


def _by_gold(
    both: pd.DataFrame, old: Side, new: Side, kind: str, folder: Path, seed: int
) -> list[tuple[str, SuiteResult]]:
    """pm_score or pm_score_helpful: by the scores that one run gave both sides, else by its PM anew."""
    from harness import files
    from harness.models.scorer import PreferenceModel
    from suites import pm_score

    table, column = both[both["kind"] == kind], f"score_{kind}"
    if table["arm"].nunique() < 2:
        return []
    same = new.run is not None and old.run is not None and new.run.resolve() == old.run.resolve()
    if not (same and column in table and table[column].notna().all()):
        config = files.read_json(folder / "manifest.json")["settings"]
        pm = PreferenceModel.load(folder / "model", max_length=int(config.get("pm.max_length", 512)))
        table = table.assign(**{column: pm.score(table["prompt"].tolist(), table["response"].tolist())})
    name = "pm_score" if kind == "harmless" else "pm_score_helpful"
    return [(name, pm_score.run(table, column=column, seed=seed))]
