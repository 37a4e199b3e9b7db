"""Overview: the arms' scoreboard, the claims' verdicts, where the numbers come from."""

import pandas as pd
import streamlit as st

from reports import dashboard, judging, opening, reading, tables
from reports.load import Missing

run = dashboard.begin("Overview")
for sentence in opening.of(run):
    st.markdown(dashboard.plain(sentence))
learned = opening.table(run)
if len(learned):
    with st.expander("Did training move what it optimises?"):
        dashboard.html_table(learned)
st.subheader("Scoreboard of arms")
board = tables.scoreboard(run)
if len(board.columns) > 1:
    dashboard.html_table(board)
    st.caption("Final models; estimate with 95 % interval by bootstrap over prompts. Elo: the anchor arm is 0.")
    dashboard.download(board, "scoreboard")
else:
    dashboard.not_measured(Missing("no suite has results in this folder", run.command("elo")))

judges = judging.tests(run)
if len(judges):
    with st.expander("Could the judges tell?"):
        dashboard.html_table(judges)
        agreement = judging.agreement(run)
        if len(agreement):
            dashboard.html_table(agreement)

st.subheader("hh_rlhf beside rl_cai")
dashboard.html_table(tables.five_rows(run))

st.subheader("Claims of the paper")
try:
    claims = tables.claims(run)
except Missing as missing:
    dashboard.not_measured(missing)
else:
    st.write(f"{reading.counts(claims['verdict'].tolist())}.")
    dashboard.html_table(claims, "verdict")
    dashboard.download(claims, "claims")

scale = tables.beside_paper(run)
if len(scale):
    st.subheader("The paper's scale and this run's")
    dashboard.html_table(scale)

st.subheader("Provenance")
dashboard.html_table(pd.DataFrame(tables.provenance(run), columns=["what", "value"]))
stages = tables.stages(run)
if len(stages):
    with st.expander("Stages"):
        dashboard.frame(stages)
missing_parts = run.missing()
if missing_parts:
    st.subheader("Not measured in this run")
    dashboard.html_table(pd.DataFrame([{"what": m.what, "command": m.command} for m in missing_parts]))
notes = [{"suite": suite, "note": note} for suite in run.suites for note in run.notes(suite)]
if notes:
    with st.expander("Notes of the suites"):
        dashboard.html_table(pd.DataFrame(notes))
found = dashboard.found_runs()
with st.expander(f"Runs found: {len(found)}"):
    about = [(name, dashboard.open_run(path).about) for name, path in list(found.items())[:50]]
    rows = [{"run": name, "kind": a.get("kind", "unfinished"), "made": a.get("created", ""),
             "arms": ", ".join(map(str, a["arms"])) if isinstance(a.get("arms"), list) else ""}
            for name, a in about]  # fmt: skip
    dashboard.html_table(pd.DataFrame(rows))
