"""Goodharting: boilerplate, the phrases and the prompts they occur in, proxy against gold PM along KL."""

import streamlit as st

from reports import dashboard, figures, figures_training
from reports.load import Missing, in_order

run = dashboard.begin("Goodharting")
for draw in (figures.boilerplate, figures.boilerplate_along, figures_training.overoptimisation, figures.phrases):
    dashboard.show(run, draw)

st.subheader("Phrases and where they occur")
try:
    columns = ["arm", "step", "phrase", "prompts", "share", "sentence"]
    phrases = run.need("goodharting/phrases", columns, none=figures.NO_PHRASE)
    arm = dashboard.choose(st, "Arm", in_order(set(phrases["arm"])), "arm")
    chosen = phrases[phrases["arm"] == arm].sort_values("share", ascending=False)
    shares = {"share": st.column_config.NumberColumn("share of responses", format="percent")}
    chosen = chosen.drop(columns="arm").assign(step=chosen["step"].astype("string").fillna("final"))
    dashboard.frame(chosen, column_config=shares)
    phrase = dashboard.choose(st, "Phrase", chosen["phrase"].unique().tolist(), "phrase")
    rows = run.need("goodharting/responses", ["prompt", "response", "arm"])
    words = " ".join(str(phrase).lower().split())
    rows = rows[rows["arm"] == arm]
    text = rows["response"].str.lower().str.replace(r"[^\w\s']+", " ", regex=True).str.split().str.join(" ")
    clean = "".join(c if c.isalnum() or c in "_' " else " " for c in words)
    held = rows[text.str.contains(" ".join(clean.split()), regex=False)]
    found, asked = dashboard.count(len(held), "response"), dashboard.count(held["prompt"].nunique(), "prompt")
    st.write(f"It stands in {found} of this arm, to {asked}.")
    blurred = not dashboard.uncovered()
    for row in held.drop_duplicates("prompt").head(8).itertuples():
        with st.container(border=True):
            dashboard.model_text(
                str(row.response), blurred=blurred, note=f"Prompt: {row.prompt}" if not blurred else ""
            )
except Missing as missing:
    dashboard.not_measured(missing)
