"""The dashboard: `cai dashboard [RUNS_DIR]` runs this file with Streamlit; CAI_RUNS_DIR names the runs."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # Streamlit puts this file's folder on the path, not the project's
    sys.path.append(str(HERE.parent))

st.set_page_config(layout="wide")
# The folder is not called "pages": Streamlit would open such files by themselves where an address names one.
PAGES = (
    *("overview", "run", "frontier", "revisions", "feedback", "evasiveness", "goodharting", "responses", "search"),
    *("arena", "compare", "studies"),
)
st.navigation([
    st.Page(HERE / "views" / f"{name}.py", title=name.capitalize(), url_path=name, default=name == "overview")
    for name in PAGES
]).run()  # fmt: skip
