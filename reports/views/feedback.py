"""Feedback: are AI labels any good? HHH accuracy, calibration, the clamp, position bias, the PMs learned from them."""

import streamlit as st

from reports import dashboard, figures_training
from reports.load import Missing

run = dashboard.begin("Feedback")
for draw in (figures_training.hhh_accuracy, figures_training.calibration, figures_training.ai_labels,
             figures_training.position_bias, figures_training.pm_quality, figures_training.training):  # fmt: skip
    dashboard.show(run, draw)

st.subheader("One label")
try:
    columns = ["prompt", "response_a", "response_b", "principle", "p_a", "p_a_forward", "p_a_swapped", "mode"]
    labels = run.need("feedback", columns)
    extra = run.table("feedback", ["reasoning"])
    labels = labels.join(extra) if extra is not None else labels
    blurred = not dashboard.uncovered()
    number = st.number_input(f"Label, of {len(labels)}", 1, len(labels), 1, key="label_number", bind="query-params")
    row = labels.iloc[int(number) - 1]
    said = f"P(A) {row['p_a']:.2f}; A shown first {row['p_a_forward']:.2f}, A shown second {row['p_a_swapped']:.2f}"
    st.write(f"{said}; {row['mode']}, principle {dashboard.plain(row['principle'])}")
    dashboard.model_text(str(row["prompt"]), blurred=blurred)
    for column, name in zip(st.columns(2), "ab", strict=True):
        with column.container(border=True):
            st.markdown(f"**{name.upper()}**")
            dashboard.model_text(str(row[f"response_{name}"]), blurred=blurred)
    if isinstance(row.get("reasoning"), str) and row["reasoning"]:
        st.markdown("**Reasoning**")
        dashboard.model_text(row["reasoning"], blurred=blurred)
except Missing as missing:
    dashboard.not_measured(missing)
