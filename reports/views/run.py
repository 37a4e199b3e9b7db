"""Run: a run as it goes. Its stages, training curves and newest samples, read from the events that it writes."""

import time

import pandas as pd
import streamlit as st

from harness import events, logs, text
from harness.errors import UserError
from harness.events import State, clock
from reports import dashboard
from reports.load import Missing, RunData

NEWEST = "at work, or the last"
EVERY = 5.0  # seconds between two looks at a run at work
CURVES = {"reward": "PM score", "kl": "KL from the start, nats a sequence", "entropy": "Entropy, nats a token",
          "length": "Length, tokens", "loss": "Loss", "policy_loss": "Policy loss"}  # fmt: skip
LOOKS = {"done": ("#e3f1e5", "#1c5c2a", "✓"), "running": ("#fdf3d8", "#6b4e00", "▶"),
         "to do": ("#eef0f3", "#4a5462", "·"),
         **dict.fromkeys(("failed", "stopped", "killed"), ("#fbe4e2", "#8c1d13", "✕"))}  # fmt: skip


def main() -> None:
    run = dashboard.pick("Run")
    try:
        state = events.read(run.folder)
    except UserError:
        file = run.about.get("experiment_file", "experiments/demo.yaml")
        what = f"{events.NAME} is missing, so nobody noted how this run went"
        dashboard.not_measured(Missing(what, "" if run.is_eval else f"cai run {file}"))
        st.stop()
    st.fragment(live, run_every=None if state.status == "done" else EVERY)(run)
    others()


def live(run: RunData) -> None:
    """All that changes while the run goes on."""
    state = events.read(run.folder)
    head(state)
    dashboard.html_table(stages(state), "status", LOOKS)
    curves(state)


def head(state: State) -> None:
    at_work = [stage for stage in state.stages.values() if stage.status == "running"]
    etas = [stage.eta for stage in at_work if stage.eta is not None]
    names = at_work[0].name if len(at_work) == 1 else f"{len(at_work)} stages" if at_work else "nothing"
    facts = [
        ("Run", state.status),
        ("Stages done", f"{state.count('done')} of {len(state.stages)}"),
        ("At work", names),
        ("ETA of the stage" if len(at_work) < 2 else "ETA of the last", clock(max(etas)) if etas else "none"),
        ("Since it began", clock((time.time() if state.status == "running" else state.heard) - state.began)),
    ]
    widths = [3 if label == "At work" else 2 for label, _ in facts]  # a stage's name is the longest
    for place, (label, value) in zip(st.columns(widths), facts, strict=True):
        place.metric(label, value)
    for stage in state.stages.values():
        if stage.status == "failed":
            st.error(f"{dashboard.plain(stage.name)} failed: {dashboard.plain(stage.error)}")
            log = logs.newest(state.folder, stage.name)
            if log is not None:
                with st.expander(f"The end of what it printed, {dashboard.plain(log.name)}"):
                    st.code(text.terminal(text.redact(logs.tail(log))), language=None)
    if state.status == "killed":
        st.warning("The run ended without a word: it was killed, or its machine went down. Run the same command again.")


def stages(state: State) -> pd.DataFrame:
    """The graph as a table: a row a stage, in the order in which they are carried out."""
    rows = []
    for stage in state.stages.values():
        at_work = stage.status == "running" and stage.total
        took, peak = (stage.seconds, stage.peak_memory_bytes) if stage.status == "done" else (None, None)
        rows.append({
            "stage": stage.name,
            "status": stage.status,
            "progress": f"{stage.done:g} of {stage.total:g}" if at_work else "",
            "ETA": clock(stage.eta) if at_work and stage.eta is not None else "",
            "time": clock(took) if took is not None else "",
            "tokens/s": f"{stage.tokens / took:,.0f}" if took and stage.tokens else "",
            "memory": f"{peak / 2**30:.1f} GiB" if peak else "",
            "device": (stage.device or "").partition(" (")[0] if took is not None else "",
            "GPU time": clock(stage.gpu_seconds) if took is not None and stage.gpu_seconds else "",
            "needs": ", ".join(stage.needs),
        })  # fmt: skip
    return pd.DataFrame(rows)


def curves(state: State) -> None:
    """Training curves of one stage, and the samples that came with its log."""
    logged = [stage.name for stage in state.stages.values() if stage.rows]
    if not logged:
        st.info("No training has written a log yet.")
        return
    at_work = [name for name in logged if state.stages[name].status in ("running", "failed")]
    rl = [name for name in logged if "reward" in state.stages[name].rows[0]]
    first = (at_work or rl or logged)[-1]
    heading = st.empty()
    chosen = dashboard.choose(st, "Stage in training", [NEWEST, *logged], "stage")
    chosen = first if chosen == NEWEST else chosen
    heading.subheader(f"Training: {dashboard.plain(chosen)}")
    rows = state.stages[chosen].rows
    table = pd.DataFrame([{name: row.get(name) for name in ("step", *CURVES)} for row in rows])
    table = table.apply(pd.to_numeric, errors="coerce").dropna(axis=1, how="all")
    shown = [name for name in CURVES if name in table]
    for place, name in zip(st.columns(2) * len(shown), shown, strict=False):
        place.caption(CURVES[name])
        place.line_chart(table, x="step", y=name, x_label="step", y_label="", height=220)
    samples([row for row in rows if row.get("samples")])


def samples(rows: list[dict]) -> None:
    """The newest answers of the arm in training beside those of its start."""
    if not rows:
        return
    st.subheader("Samples")
    blurred = not dashboard.uncovered()
    for place, row, when in zip(st.columns(2), (rows[0], rows[-1]), ("At the start", "Newest"), strict=True):
        place.markdown(f"**{when}** (step {row['step']})")
        with place:
            for sample in row["samples"]:
                dashboard.model_text(str(sample["prompt"]), blurred=blurred, note="asked")
                dashboard.model_text(str(sample["response"]), blurred=blurred, note=f"PM score {sample['score']:+.2f}")


def others() -> None:
    """Every run that keeps events, the newest first."""
    rows = []
    for name, folder in list(dashboard.found_runs().items())[:20]:
        try:
            state = events.read(folder)
        except UserError:
            continue
        at_work = [stage.name for stage in state.stages.values() if stage.status in ("running", "failed")]
        done = f"{state.count('done')} of {len(state.stages)}"
        rows.append({"run": name, "status": state.status, "stages done": done, "at": ", ".join(at_work)})
    if len(rows) > 1:
        st.subheader("All runs")
        dashboard.html_table(pd.DataFrame(rows), "status", LOOKS)


main()
