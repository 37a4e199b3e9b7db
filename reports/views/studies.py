"""Studies: several runs of one experiment together; verdicts with their scope, sizes as an axis, seeds as points."""

import streamlit as st

from reports import dashboard, differences, figures_seeds, figures_sizes, reading, study, study_report, tables
from reports.exhibit import Exhibit
from reports.study import Study

AT_FIRST = 3  # figures, each of which takes a good part of a second to draw
HOW = "A study is runs of one experiment that differ in seed, base model or both. In its file, in place of `seed`:"


def main() -> None:
    st.title("Studies")
    studies = dashboard.studies()
    if not studies:
        st.warning(f"{dashboard.plain(dashboard.root())} holds no study. {HOW}")
        st.code("seeds: [0, 1, 2]", language="yaml")
        st.stop()
    found = studies[dashboard.choose(st.sidebar, "Study", list(studies), "study")]
    st.markdown(dashboard.plain(study_report.opening(found.cells)))
    if found.waiting:
        names = ", ".join(dashboard.named(run) for run in found.waiting)
        st.info(f"Without results yet: {dashboard.plain(names)}. The page Run shows how they go.")
    bases = list(found.cells)
    base = bases[0]
    if len(bases) > 1:
        base = dashboard.choose(st, "Base model", bases, "base")
    verdicts(found, base)
    if len(bases) > 1:
        st.header("By base model")
        st.caption(figures_sizes.CAVEAT)
        pictures(found, "")
    if len(found.cells[base]) > 1:
        st.header("Run by run" + (f": {dashboard.plain(base)}" if len(bases) > 1 else ""))
        st.caption(figures_seeds.CAVEAT)
        pictures(found, base)
    st.header("The runs")
    dashboard.html_table(study_report.runs_table(found.cells))
    with st.container(horizontal=True):
        for run in found.runs:
            dashboard.link("overview", f"Open {dashboard.named(run)}", run=dashboard.named(run))
    st.subheader("What differs between them")
    dashboard.html_table(differences.table({run.name: dashboard.open_run(run) for run in found.runs}))


def verdicts(found: Study, base: str) -> None:
    """The claims by base model, and those of `base` with scope and each run's own verdict."""
    st.header("Claims of the paper")
    judged = found.verdicts() or st.session_state.get(f"judged-{found.folder}")
    if judged is None:
        st.info(
            "Nobody has judged the claims over these runs since they were made. `cai report` writes them down, too."
        )
        if st.button("Judge them now", help="Reads the tables of all runs; of large runs this takes a minute."):
            with st.spinner("Judging"):
                st.session_state[f"judged-{found.folder}"] = study.judge(found.cells)
            st.rerun()
        return
    st.caption(
        f"{study.SCOPE} Effects with 95 % intervals; verdicts after Holm's correction over all measured claims. The "
        "last columns are what each run says alone, of its own checkpoints: "
        f"{tables.SIGNS}."
    )
    if len(found.cells) > 1:
        dashboard.html_table(study.by_base(judged), list(found.cells))
        st.subheader(dashboard.plain(base))
    own = study.beside(judged[base], found.cells[base])
    st.write(f"{reading.counts(own['over all runs'].tolist())}.")
    dashboard.html_table(own, "over all runs", signs=[run.name for run in found.cells[base].values()])
    dashboard.download(own, "study-claims", "Verdicts (CSV)")


def pictures(found: Study, base: str) -> None:
    """Figures by size (base ""), or run by run of one base model; the first few until others are asked for."""
    items = {item.name: item for item in exhibits(found, tuple(dashboard.stamp(run) for run in found.runs), base)}
    names = list(items)
    chosen = st.pills("Figures", names, selection_mode="multi", default=names[:AT_FIRST], bind="query-params",
                      format_func=lambda name: items[name].title, key="seeds" if base else "sizes")  # fmt: skip
    for name in [name for name in names if name in chosen]:
        st.subheader(items[name].title)
        dashboard.lay_out(dashboard.picture(items[name]), items[name].png)


@st.cache_resource(max_entries=8, show_spinner="Drawing", hash_funcs={Study: str})
def exhibits(found: Study, stamps: tuple[float, ...], base: str) -> list[Exhibit]:
    runs = {name: {seed: dashboard.open_run(run) for seed, run in cells.items()} for name, cells in found.cells.items()}
    return figures_seeds.exhibits(runs[base]) if base else figures_sizes.exhibits(runs)


main()
