"""What the dashboard's pages share: the run picker, cached figures with downloads, tables and model text as text."""

from __future__ import annotations

import hashlib
import html
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.errors import StreamlitPageNotFoundError

from harness.text import cells, csv, markdown
from reports import study, tables
from reports.exhibit import Exhibit
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
    runs = found_runs()
    names = list(runs)
    if not names:
        there = f"{plain(root())} holds no run" if root().is_dir() else f"{plain(root())} is no folder"
        st.warning(
            f"{there}: a run is a folder with run.json and results/, as `cai run` and `cai eval --out` write it."
        )
        st.code(f"cai run experiments/demo.yaml\ncai dashboard {root()}", language=None)
        st.stop()
    return open_run(runs[choose(st.sidebar, "Run", names, "run")])


def root() -> Path:
    """The folder that the dashboard was opened on."""
    return Path(os.environ.get("CAI_RUNS_DIR", "runs"))


def found_runs() -> dict[str, Path]:
    """Every run by its name here, the newest first: its folder, of a study with the study's before it."""
    return {named(run): run for run in find_runs(root())}


def named(run: Path) -> str:
    return run.relative_to(root()).as_posix() if run != root() else run.resolve().name


def choose(place: Any, label: str, options: Sequence[str], key: str, first: int = 0, **look: Any) -> str:
    """A select box whose choice stands in the address as `key`, the first one as well, so that it can be sent.

    It is kept from page to page. A link to what is gone is told so; the `first` option stands in its place.
    """
    if st.session_state.get(key) not in options:  # a new page, or other options
        asked, kept = st.query_params.get(key), st.session_state.get(f"kept {key}")
        if asked is not None and asked not in options:
            place.caption(f"{plain(asked)} is not here.")
        st.session_state[key] = next((value for value in (asked, kept) if value in options), options[first])
    chosen = str(place.selectbox(label, options, key=key, **look))
    st.session_state[f"kept {key}"] = chosen
    _address(key, chosen)
    return chosen


def step_through(place: Any, label: str, texts: Sequence[str], key: str) -> str:
    """A number that steps through `texts`. The address names the text itself, so that a link finds it among others."""
    number = f"{key}-number"
    if number not in st.session_state:
        asked = st.query_params.get(key)
        places = [at for at, text in enumerate(texts, start=1) if digest(text) == asked] if asked else []
        if asked and not places:
            place.caption("What this link names is not among these.")
        st.session_state[number] = places[0] if places else 1
    st.session_state[number] = min(st.session_state[number], len(texts))
    chosen = texts[int(place.number_input(f"{label}, of {len(texts)}", 1, len(texts), key=number)) - 1]
    _address(key, digest(chosen))
    return chosen


def _address(key: str, value: str) -> None:
    """Put a selection into the address; each time that it is put there the browser counts a page to go back to."""
    if not value:
        st.query_params.pop(key, None)
    elif st.query_params.get(key) != value:
        st.query_params[key] = value


def digest(text: str) -> str:
    """A short name of a text for an address."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def link(page: str, label: str, **selection: str) -> None:
    """A link to another page with its selection; its label alone where a page is run by itself, without the others."""
    try:
        st.page_link(f"views/{page}.py", label=plain(label), query_params=selection)
    except StreamlitPageNotFoundError:
        st.markdown(plain(label))


def open_run(folder: Path) -> RunData:
    """The run, read anew when its results change."""
    return _open(str(folder), stamp(folder))


@st.cache_resource(max_entries=12, show_spinner=False)
def _open(folder: str, stamp: float) -> RunData:
    return RunData(Path(folder))


def studies() -> dict[str, study.Study]:
    """Every study by name; found anew when a run's results change."""
    runs = found_runs().values()
    found = _studies(str(root()), tuple(sorted((str(run), stamp(run)) for run in runs)))
    return {f"{each.name} ({place})" if [s.name for s in found].count(each.name) > 1 else each.name: each
            for place, each in enumerate(found, start=1)}  # fmt: skip


@st.cache_data(max_entries=4, show_spinner=False)
def _studies(folder: str, stamps: tuple[tuple[str, float], ...]) -> list[study.Study]:
    return study.find(Path(folder))


def stamp(folder: Path) -> float:
    """When the results last changed, in seconds."""
    results = folder / "results"
    paths = [folder / "run.json", results, *(results.iterdir() if results.is_dir() else [])]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def problems(run: RunData) -> None:
    for problem in run.problems:
        st.warning(plain(problem))


# ---------------------------------------------------------------- figures


Picture = dict[str, Any]  # an exhibit as the browser needs it: words, and where there is a figure width, svg, csv


def picture(found: Exhibit) -> Picture:
    files = {} if found.figure is None else {"svg": found.svg, "csv": to_csv(found.table)}
    missing = None if found.missing is None else (found.missing.what, found.missing.command)
    width = 0 if found.figure is None else int(PIXELS * found.figure.get_figwidth())
    words = {"title": found.title, "paper": found.paper, "reading": found.reading, "alt": found.alt}
    return {"name": found.name, "width": width, "missing": missing, **words, **files}


@st.cache_data(max_entries=200, show_spinner=False)
def _drawn(folder: str, stamp: float, module: str, name: str) -> Picture:
    return picture(getattr(importlib.import_module(module), name)(_open(folder, stamp)))


def show(run: RunData, draw: Callable[[RunData], Exhibit]) -> None:
    """An exhibit: figure, reading, what the paper found beside it, downloads; or how to measure it."""
    shown = _drawn(str(run.folder), stamp(run.folder), draw.__module__, draw.__name__)
    st.subheader(shown["title"])
    lay_out(shown, lambda: draw(run).png())


def lay_out(shown: Picture, png: Callable[[], bytes]) -> None:
    """What stands below an exhibit's title."""
    if shown["missing"] is not None:
        not_measured(Missing(*shown["missing"]))
        _paper(shown)
        return
    beside = st.columns([3, 2], gap="medium") if shown["width"] <= WIDE else (st.container(), st.container())
    draw_in(beside[0], shown)
    with beside[1]:
        st.markdown(plain(shown["reading"]))
        _paper(shown)
        with st.container(horizontal=True):
            kinds = (("svg", "SVG", "image/svg+xml", shown["svg"]), ("png", "PNG", "image/png", png),
                     ("csv", "Numbers (CSV)", "text/csv", shown["csv"]))  # fmt: skip
            for kind, label, mime, content in kinds:
                st.download_button(label, content, f"{shown['name']}.{kind}", mime, key=f"{shown['name']}-{kind}",
                                   on_click="ignore", type="tertiary", icon=DOWNLOAD)  # fmt: skip


def draw_in(place: Any, shown: Picture, *, whole: bool = False) -> None:
    """The figure alone, in its own size or over the whole width of its place."""
    place.image(shown["svg"][shown["svg"].index("<svg") :], width="stretch" if whole else shown["width"],
                alt=shown["alt"])  # fmt: skip


def _paper(shown: Picture) -> None:
    if shown["paper"]:
        st.caption(f"**The paper.** {plain(shown['paper'])}")


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


def html_table(
    table: pd.DataFrame,
    coloured: str | Sequence[str] = (),
    colours: dict[str, tuple[str, str, str]] | None = None,
    signs: Sequence[str] = (),
) -> None:
    """A small table that wraps its cells; words of columns `coloured` stand on their colour, in `signs` their sign."""
    marked = [coloured] if isinstance(coloured, str) else coloured
    looks = tables.VERDICTS if colours is None else colours
    head = "".join(f'<th scope="col" style="text-align:left;padding:4px 10px 4px 0">{html.escape(str(c))}</th>'
                   for c in table.columns)  # fmt: skip
    body = []
    for row in table.to_dict("records"):
        cells = []
        for column, value in row.items():
            text = html.escape(str(value))
            if column in (*marked, *signs) and str(value) in looks:
                back, ink, sign = looks[str(value)]
                name = f'role="img" aria-label="{text}" title="{text}"' if column in signs else ""
                text = (f'<span {name} style="background:{back};color:{ink};border:1px solid {ink};border-radius:4px;'
                        f'padding:1px 7px;white-space:nowrap;font-weight:600">{sign}'
                        f"{'' if name else f' {text}'}</span>")  # fmt: skip
            look = "padding:5px 10px 5px 0;vertical-align:top;border-top:1px solid #cccccc88"
            look += ";min-width:11rem" if len(str(value)) > 40 else ""
            cells.append(f'<td style="{look}">{text}</td>')
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
