"""What the dashboard's pages share: the run picker, cached figures with downloads, tables and model text as text."""

from __future__ import annotations

import html
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from harness.text import cells, csv, markdown
from reports import tables
from reports.load import Missing, RunData, find_runs

PIXELS, WIDE = 100, 720  # of a figure's inch; figures wider than WIDE pixels have their words below, not beside
DOWNLOAD = ":material/download:"


def begin(title: str) -> RunData:
    """Title and run picker; the chosen run. Ends the page with a plain word where there is no run, or no result yet."""
    run = pick(title)
    if not run.arms:
        st.warning("This folder holds no results yet. A run under way writes them at its end; what is missing:")
        for item in run.missing():
            st.write(f"- {plain(item.what)}: `{item.command}`")
        problems(run)
        st.stop()
    problems(run)
    return run


def pick(title: str) -> RunData:
    """Title and run picker; the chosen run, whatever it holds. Ends the page with a plain word where there is none."""
    st.title(title)
    root = Path(os.environ.get("CAI_RUNS_DIR", "runs"))
    runs = find_runs(root)
    if not runs:
        there = f"{plain(root)} holds no run" if root.is_dir() else f"{plain(root)} is no folder"
        st.warning(
            f"{there}: a run is a folder with run.json and results/, as `cai run` and `cai eval --out` write it."
        )
        st.code(f"cai run experiments/demo.yaml\ncai dashboard {root}", language=None)
        st.stop()
    names = [run.name for run in runs]
    kept = st.session_state.get("run_name")
    # By key, not by index: another index makes another widget, which forgets what was picked in it.
    if st.session_state.get("run_picker") not in names:
        st.session_state["run_picker"] = kept if kept in names else names[0]
    chosen = st.sidebar.selectbox("Run", names, key="run_picker")
    st.session_state["run_name"] = chosen
    return open_run(runs[names.index(str(chosen))])


def open_run(folder: Path) -> RunData:
    """The run, read anew when its results change."""
    return _open(str(folder), stamp(folder))


@st.cache_resource(max_entries=6, show_spinner=False)
def _open(folder: str, stamp: float) -> RunData:
    return RunData(Path(folder))


def stamp(folder: Path) -> float:
    """When the results last changed, in seconds."""
    results = folder / "results"
    paths = [folder / "run.json", results, *(results.iterdir() if results.is_dir() else [])]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def problems(run: RunData) -> None:
    for problem in run.problems:
        st.warning(plain(problem))


# ---------------------------------------------------------------- figures


@st.cache_data(max_entries=200, show_spinner=False)
def _drawn(folder: str, stamp: float, module: str, name: str) -> dict[str, Any]:
    found = getattr(importlib.import_module(module), name)(_open(folder, stamp))
    files = {} if found.figure is None else {"svg": found.svg, "csv": to_csv(found.table)}
    missing = None if found.missing is None else (found.missing.what, found.missing.command)
    width = 0 if found.figure is None else int(PIXELS * found.figure.get_figwidth())
    words = {"title": found.title, "paper": found.paper, "reading": found.reading, "alt": found.alt}
    return {"name": found.name, "width": width, "missing": missing, **words, **files}


def show(run: RunData, draw: Callable[[RunData], Any]) -> None:
    """An exhibit: figure, reading, what the paper found beside it, downloads; or how to measure it."""
    shown = _drawn(str(run.folder), stamp(run.folder), draw.__module__, draw.__name__)
    st.subheader(shown["title"])
    if shown["missing"] is not None:
        not_measured(Missing(*shown["missing"]))
        st.caption(f"**The paper.** {plain(shown['paper'])}")
        return
    beside = st.columns([3, 2], gap="medium") if shown["width"] <= WIDE else (st.container(), st.container())
    beside[0].image(shown["svg"][shown["svg"].index("<svg") :], width=shown["width"], alt=shown["alt"])
    beside[1].markdown(plain(shown["reading"]))
    beside[1].caption(f"**The paper.** {plain(shown['paper'])}")
    with beside[1].container(horizontal=True):
        kinds = (("svg", "SVG", "image/svg+xml", shown["svg"]), ("png", "PNG", "image/png", lambda: draw(run).png()),
                 ("csv", "Numbers (CSV)", "text/csv", shown["csv"]))  # fmt: skip
        for kind, label, mime, content in kinds:
            st.download_button(label, content, f"{shown['name']}.{kind}", mime, key=f"{shown['name']}-{kind}",
                               on_click="ignore", type="tertiary", icon=DOWNLOAD)  # fmt: skip


def not_measured(missing: Missing) -> None:
    if not missing.command:
        st.info(plain(missing))
        return
    st.info(f"Not measured: {plain(missing.what)}. To measure it:")
    st.code(missing.command, language=None)


# ---------------------------------------------------------------- text and tables


def to_csv(table: pd.DataFrame | None) -> str:
    return "" if table is None else csv(table)


def count(number: int, what: str) -> str:
    """ "1 vote", "1,200 votes"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def plain(text: object) -> str:
    """`text` for a Markdown place, with nothing in it rendered."""
    return markdown(text)


def frame(table: pd.DataFrame, **options: Any) -> None:
    """A table to sort and search; its own download, which Streamlit makes of what is shown, holds no formula."""
    st.dataframe(cells(table), hide_index=True, **options)


def model_text(text: str, *, blurred: bool = False, note: str = "") -> None:
    """A model's or a person's words, escaped; blurred until asked for."""
    look = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:0.9rem;margin:0"
    if blurred:
        look += ";filter:blur(6px);user-select:none"
    hidden = ' aria-hidden="true"' if blurred else ""
    below = f'<div style="font-size:0.8rem;opacity:0.75">{html.escape(note)}</div>' if note else ""
    st.html(f'<div{hidden} style="{look}">{html.escape(text) or "(empty response)"}</div>{below}')


def _uncover() -> None:
    st.session_state["uncovered"] = True


def uncovered() -> bool:
    """The content warning, once a session; whether responses may be read."""
    if not st.session_state.get("uncovered"):
        st.warning("Red-team prompts and model responses may be offensive. They are blurred until you ask for them.")
        st.button("Show them", type="primary", on_click=_uncover)
    return bool(st.session_state.get("uncovered"))


def html_table(table: pd.DataFrame, coloured: str = "", colours: dict[str, tuple[str, str, str]] | None = None) -> None:
    """A small table that wraps its cells; words of column `coloured` stand on their colour."""
    looks = tables.VERDICTS if colours is None else colours
    head = "".join(f'<th scope="col" style="text-align:left;padding:4px 10px 4px 0">{html.escape(str(c))}</th>'
                   for c in table.columns)  # fmt: skip
    body = []
    for row in table.to_dict("records"):
        cells = []
        for column, value in row.items():
            text = html.escape(str(value))
            if column == coloured and str(value) in looks:
                back, ink, sign = looks[str(value)]
                text = (f'<span style="background:{back};color:{ink};border:1px solid {ink};border-radius:4px;'
                        f'padding:1px 7px;white-space:nowrap;font-weight:600">{sign} {text}</span>')  # fmt: skip
            cells.append(
                f'<td style="padding:5px 10px 5px 0;vertical-align:top;border-top:1px solid #cccccc88">{text}</td>'
            )
        body.append(f"<tr>{''.join(cells)}</tr>")
    st.html(f'<div style="overflow-x:auto"><table style="border-collapse:collapse;font-size:0.88rem"><thead><tr>{head}'
            f"</tr></thead><tbody>{''.join(body)}</tbody></table></div>")  # fmt: skip


def download(table: pd.DataFrame, name: str, label: str = "Numbers (CSV)") -> None:
    st.download_button(label, lambda: to_csv(table), f"{name}.csv", "text/csv", key=f"csv-{name}", on_click="ignore",
                       type="tertiary", icon=DOWNLOAD)  # fmt: skip


def whole(run: RunData, needed: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """Columns of responses.parquet, those of `optional` where they are there. Ends the page where needed are not."""
    try:
        rows = run.need("responses", needed)
    except Missing as missing:
        not_measured(missing)
        st.stop()
    extra = run.table("responses", optional)
    return rows if extra is None or not len(extra.columns) else rows.join(extra)
