"""The static report: RUN/report/index.html, one file with its figures inside that needs no network, and the same as
Markdown, LaTeX, JSON and SVG. No browser is needed to make it.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness import store, text
from reports import figures, figures_matched, figures_training, judging, opening, reading, tables
from reports.exhibit import Draw, Exhibit
from reports.load import Missing, RunData

CHAPTERS: Sequence[tuple[str, Sequence[Draw]]] = (
    ("Helpfulness and harmlessness", (figures.frontier, figures_matched.frontier_matched_kl, figures.elo_along,
                                      figures.win_rates, figures.pm_score, figures.harmfulness)),
    ("Evasiveness", (figures.evasiveness, figures.evasiveness_along)),
    ("Boilerplate and over-optimisation", (figures.boilerplate, figures.boilerplate_along, figures.phrases,
                                           figures_training.overoptimisation)),
    ("Revisions", (figures_training.revisions, figures_training.principles)),
    ("AI feedback", (figures_training.ai_labels, figures_training.position_bias, figures_training.hhh_accuracy,
                     figures_training.calibration)),
    ("Training", (figures_training.pm_quality, figures_training.training)),
)  # fmt: skip
METHOD = (
    "Constitutional AI (Bai et al. 2022, arXiv:2212.08073) trains a harmless model without human labels of harm. A "
    "helpful-only model answers red-team prompts, criticises its answers by written principles and revises them; the "
    "pretrained model is fine-tuned on the revisions (sl_cai). A feedback model then says which of two sl_cai answers "
    "a principle prefers; a preference model (PM) learns from these labels and from human labels of helpfulness, and "
    "RL against it gives rl_cai (rl_cai_cot: the feedback model reasons first). hh_rlhf is the same RL with human "
    "labels of harm. Every arm answers the same held-out prompts; a gold PM that no arm was trained on, or a model, "
    "judges. Intervals are 95 %, by bootstrap over prompts."
)


def render(run: Path, folder: Path | None = None) -> Path:
    """Write the report of `run` into `folder`, by default RUN/report, and return its index.html."""
    data = RunData(run)
    folder = folder or run / "report"
    shutil.rmtree(folder / "figures", ignore_errors=True)
    (folder / "figures").mkdir(parents=True)
    chapters = [(title, [draw(data) for draw in draws]) for title, draws in CHAPTERS]
    for _, shown in chapters:
        for item in shown:
            if item.figure is not None:
                store.write_text(folder / "figures" / f"{item.name}.svg", item.svg)
    content = _content(data, chapters)
    page = folder / "index.html"
    store.write_text(page, filled("template.html", content))
    store.write_text(folder / "report.md", markdown(content, figures_too=True))
    store.write_text(folder / "summary.md", markdown(content, figures_too=False))
    store.write_json(folder / "summary.json", _summary(data, content))
    store.write_text(folder / "scoreboard.tex", latex(content["scoreboard"], data.name))
    return page


def filled(template: str, content: Mapping[str, Any]) -> str:
    """A page of this folder with its content, every text escaped."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    environment.filters["data_uri"] = _data_uri
    environment.filters["anchor"] = lambda text: re.sub(r"\W+", "-", text.lower())
    return environment.get_template(template).render(content)


def _content(data: RunData, chapters: list[tuple[str, list[Exhibit]]]) -> dict[str, Any]:
    missing: dict[str, tuple[Any, Missing | None]] = {}
    for key, view in (("claims", tables.claims), ("prompts", tables.side_by_side)):
        try:
            missing[key] = (view(data), None)
        except Missing as error:
            missing[key] = (None, error)
    claims, no_claims = missing["claims"]
    prompts, no_prompts = missing["prompts"]
    return {
        "name": data.name,
        "about": data.about,
        "opening": list(opening.of(data)),
        "learned": opening.table(data),
        "learned_said": opening.sentences(data),
        "method": METHOD,
        "scoreboard": tables.scoreboard(data),
        "judges": judging.tests(data),
        "agreement": judging.agreement(data),
        "five_rows": tables.five_rows(data),
        "claims": claims,
        "no_claims": no_claims,
        "claims_reading": "" if claims is None else f"{reading.counts(claims['verdict'].tolist())}; {_scope(data)}",
        "verdicts": tables.VERDICTS,
        "chapters": chapters,
        "prompts": prompts or [],
        "no_prompts": no_prompts,
        "arms": data.arms,
        "notes": [(suite, data.notes(suite)) for suite in data.suites if data.notes(suite)],
        "scale": tables.beside_paper(data),
        "limits": limits(data),
        "missing": data.missing(),
        "problems": data.problems,
        "provenance": tables.provenance(data),
        "rerun": _rerun(data),
    }


def _scope(data: RunData) -> str:
    """Whose result the verdicts are; a folder that does not say is of one run."""
    table = data.table("claims", ["scope"])
    found = set() if table is None or "scope" not in table else set(table["scope"].dropna())
    return f"all verdicts are {' and '.join(sorted(found)) or 'of these checkpoints'}, not of the method in general"


def limits(data: RunData) -> list[str]:
    """What this run's scale can and cannot show, from its own numbers."""
    said = []
    final = data.summary[data.summary["step"].isna() & (data.summary["suite"] != "hhh")]
    if not final.empty:
        low, high = int(final["n"].min()), int(final["n"].max())
        span = str(low) if low == high else f"{low} to {high}"
        said.append(
            f"Arms are compared on {span} prompts. At 100 prompts a rate is known to about ten points and an Elo to "
            "about 60; a smaller difference than the interval cannot be told from chance here, and that an interval "
            "holds zero is no proof of equality."
        )
    base = (data.about.get("models") or {}).get("base") if isinstance(data.about.get("models"), dict) else None
    if base:
        said.append(
            f"One base model ({base}) and one seed: an interval holds the choice of prompts, not of the seed, nor what "
            "a larger model would do. The paper's models are of 52 billion parameters; claims about size need runs of "
            "several sizes."
        )
    said.append(
        "The judge is a model, not people. Its tests stand below the scoreboard; a column marked 'judge cannot tell' "
        "says nothing, whatever its intervals are."
    )
    said += [f"{note[0].upper()}{note[1:]}." for note in data.notes("elo") if note.startswith("circular:")]
    said.append(
        "Where a verdict is underpowered, this run neither confirms nor refutes the paper: it shows that every stage "
        "works and in which direction a measure leans, no more."
    )
    return said


def _rerun(data: RunData) -> list[str]:
    if data.about.get("kind") == "eval":
        suites = " ".join(f"--suite {suite}" for suite in data.about.get("suites") or [])
        return [f"cai eval RESPONSES {suites} --seed {data.about.get('seed', 0)} --out {data.folder.name}"]
    file = "experiment.yaml" if (data.folder / "experiment.yaml").is_file() else "experiments/demo.yaml"
    again = f"{data.folder.name}/{file}" if file == "experiment.yaml" else file
    return [f"cai run {again}", f"cai report {data.folder.name}", f"cai dashboard {data.folder.name}"]


def _summary(data: RunData, content: dict[str, Any]) -> dict[str, Any]:
    """The numbers for programs: every summary row, the claims, what was not measured."""
    claims = data.table("claims")
    exhibits = [item for _, shown in content["chapters"] for item in shown]
    return {
        "name": data.name,
        "about": data.about,
        "metrics": json.loads(data.summary.to_json(orient="records")),
        "claims": [] if claims is None else json.loads(claims.to_json(orient="records")),
        "hh_rlhf_and_rl_cai": content["five_rows"].to_dict("records"),
        "readings": {e.name: e.reading or str(e.missing) for e in exhibits if not (e.missing and e.missing.command)},
        "not_measured": {e.name: str(e.missing) for e in exhibits if e.missing and e.missing.command},
        "problems": data.problems,
        "opening": content["opening"],
        "learned": content["learned"].to_dict("records"),
        "limits": content["limits"],
    }


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


# ---------------------------------------------------------------- Markdown and LaTeX


def markdown(content: dict[str, Any], *, figures_too: bool) -> str:
    """The report as Markdown: the whole (`report.md`) or what fits a comment (`summary.md`)."""
    parts = [f"# {_plain(content['name'])}", *map(_plain, content["opening"])]
    parts += [content["method"] if figures_too else ""]
    if len(content["learned"]):
        parts += ["## Did training move what it optimises?", markdown_table(content["learned"])]
        parts += ["\n".join(f"- {_plain(line)}" for line in content["learned_said"])] if figures_too else []
    parts += ["## Scoreboard of arms", markdown_table(content["scoreboard"])]
    judged = [markdown_table(content[name]) for name in ("judges", "agreement") if len(content[name])]
    parts += ["## Could the judges tell?", *judged] if judged else []
    parts += ["## hh_rlhf beside rl_cai", markdown_table(content["five_rows"]), "## Claims"]
    if content["claims"] is None:
        parts.append(_plain(content["no_claims"]))
    else:
        parts += [
            f"{content['claims_reading']}.",
            markdown_table(content["claims"] if figures_too else _brief(content)),
        ]
    for title, shown in content["chapters"]:
        parts.append(f"## {title}")
        for item in shown:
            if item.missing is not None:
                parts.append(f"**{item.title}.** {_plain(item.missing)}")
            elif figures_too:
                image = f"![{_plain(item.alt)}](figures/{item.name}.svg)"
                parts += [f"### {item.title}", image, _plain(item.reading), f"*The paper.* {_plain(item.paper)}"]
            else:
                parts.append(f"**{item.title}.** {_plain(item.reading)}")
    if figures_too:
        parts.append("## Responses side by side")
        parts += [_plain(content["no_prompts"])] if content["no_prompts"] else []
        for entry in content["prompts"]:
            parts.append("Prompt:\n\n" + _block(entry["prompt"]))
            parts += [f"{_plain(arm)}:\n\n{_block(text)}" for arm, text in entry["responses"].items()]
        parts += ["## Notes of the suites"] if content["notes"] else []
        parts += ["\n".join(f"- {suite}: {_plain(note)}" for note in notes) for suite, notes in content["notes"]]
    if len(content["scale"]):
        parts += ["## The paper's scale and this run's", markdown_table(content["scale"])]
    parts += ["## What this run can and cannot show", "\n".join(f"- {_plain(line)}" for line in content["limits"])]
    parts += [f"- {_plain(problem)}" for problem in content["problems"]]
    parts += ["## Provenance", "\n".join(f"- {what}: {_plain(value)}" for what, value in content["provenance"])]
    parts += ["## Rerun", _block("\n".join(content["rerun"]))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _brief(content: dict[str, Any]) -> pd.DataFrame:
    return content["claims"][["id", "statement", "verdict", "effect"]]


def _plain(value: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    return text.markdown(value)


def _block(text: str) -> str:
    """A code block whose fence is longer than any run of backticks within."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def markdown_table(table: pd.DataFrame) -> str:
    """`table` as Markdown, its texts shown as they are."""
    lines = ["| " + " | ".join(map(_plain, table.columns)) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(map(_plain, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def latex(scoreboard: pd.DataFrame, name: str) -> str:
    """The scoreboard as a booktabs table."""
    head = " & ".join(_tex(column) for column in scoreboard.columns)
    body = [" & ".join(_tex(cell) for cell in row) + r" \\" for row in scoreboard.itertuples(index=False)]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_tex(name)}: scoreboard of arms, with 95\,\% intervals by bootstrap over prompts.}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(scoreboard.columns) - 1)}}}",
            r"    \toprule",
            f"    {head} \\\\",
            r"    \midrule",
            *(f"    {line}" for line in body),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def _tex(value: object) -> str:
    shown = re.sub(r"([\\~^])|([&%$#_{}])", lambda m: _TEX[m[1]] if m[1] else "\\" + m[2], text.line(value))
    # A minus sign before a number; a bracket at the start of a cell would be read as an option of the line break.
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", shown)
