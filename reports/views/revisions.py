"""Revisions: PM score by revision and by number of principles; one chain read step by step."""

import difflib
import html
import re

import pandas as pd
import streamlit as st

from reports import dashboard, figures_training
from reports.load import Missing


def changes(before: str, after: str) -> str:
    """`after` as escaped HTML, words that are new or gone marked by colour and by underline or strike."""
    old, new = (re.findall(r"\s+|\S+", text) for text in (before, after))
    parts = []
    for what, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, came = html.escape("".join(old[i:j])), html.escape("".join(new[k:m]))
        if what == "equal":
            parts.append(came)
            continue
        if gone:
            parts.append(f'<del style="background:#fbdccb;color:#7a2c00">{gone}</del>')
        if came:
            parts.append(f'<ins style="background:#d5efe6;color:#00503a;margin-left:2px">{came}</ins>')
    return "".join(parts)


run = dashboard.begin("Revisions")
for draw in (figures_training.revisions, figures_training.principles):
    dashboard.show(run, draw)

st.subheader("One chain, step by step")
try:
    chains = run.need("chains", ["prompt", "revision", "critique", "response", "principle", "mode"])
    extra = run.table("chains", ["arm", "sample", "n_principles", "score_harmless", "score_helpful"])
    assert extra is not None
    chains = chains.join(extra)
    blurred = not dashboard.uncovered()
    left, right = st.columns([1, 3])
    mode = dashboard.choose(left, "Mode", sorted(chains["mode"].unique()), "mode")
    of_mode = chains[chains["mode"] == mode]
    sizes = of_mode["n_principles"].dropna().unique().tolist() if "n_principles" in of_mode else []
    if len(sizes) > 1:
        drawn_from = [f"{size:g}" for size in sorted(sizes, reverse=True)]
        size = dashboard.choose(left, "Principles drawn from", drawn_from, "principles")
        of_mode = of_mode[of_mode["n_principles"] == float(size)]
    prompt = dashboard.step_through(right, "Chain", of_mode["prompt"].unique().tolist(), "chain")
    chain = of_mode[of_mode["prompt"] == prompt]
    keys = [name for name in ("arm", "sample", "n_principles") if name in chain]
    if keys:
        chain = next(iter(chain.groupby(keys, dropna=False)))[1]
    dashboard.model_text(prompt, blurred=blurred)
    before = ""
    for row in chain.sort_values("revision").to_dict("records"):
        scores = [f"{name} PM {row[f'score_{name}']:z.2f}" for name in ("harmless", "helpful")
                  if pd.notna(row.get(f"score_{name}"))]  # fmt: skip
        with st.container(border=True):
            head = "First answer" if row["revision"] == 0 else f"Revision {row['revision']}"
            st.markdown(f"**{head}** {dashboard.plain(', '.join(scores))}")
            if pd.notna(row["critique"]) and row["critique"]:
                st.caption(f"Critique by principle {dashboard.plain(row['principle'])}")
                dashboard.model_text(str(row["critique"]), blurred=blurred)
                st.caption("Revised answer; words struck out are gone, underlined ones are new")
            if blurred or row["revision"] == 0:
                dashboard.model_text(str(row["response"]), blurred=blurred)
            else:
                st.html(
                    f'<div style="white-space:pre-wrap;font-size:0.9rem">{changes(before, str(row["response"]))}</div>'
                )
        before = str(row["response"])
except Missing as missing:
    dashboard.not_measured(missing)
