"""What a person looks at: figures, the static report and the Streamlit dashboard."""
