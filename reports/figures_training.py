"""Figures of how the arms came to be: revisions, AI labels, preference models, RL, over-optimisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from reports import reading, style
from reports.exhibit import Drawn, exhibit
from reports.load import Missing, RunData, Setting, in_order

_REVISIONS = ["mode", "n_principles", "revision", "which", "estimate", "low", "high", "n"]
_MODES = {"critiqued": ("#0072B2", "o"), "direct": ("#D55E00", "s")}
_LABELS = {"plain": "#0072B2", "cot": "#009E73"}


# ---------------------------------------------------------------- revisions


def chain_scores(run: RunData) -> pd.DataFrame:
    """PM scores of the run's chains, by mode, number of principles, revision and PM (`which`)."""
    return run.need("pm_score/revisions", _REVISIONS)


def most_principles(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the main chains, which draw from the most principles."""
    number = rows["n_principles"]
    return rows[number == number.max()] if number.notna().any() else rows


@exhibit(
    "revisions",
    "PM score by revision",
    "Figure 5: each revision raises the harmlessness PM score and lowers the helpfulness PM score. Figure 7: critiques "
    "before revising help small models and do not hurt large ones.",
)
def revisions(run: RunData) -> Drawn:
    """Harmlessness and helpfulness PM score of revisions 0 to 4, critiqued and direct."""
    rows = most_principles(chain_scores(run))
    sides = [side for side in ("harmless", "helpful") if (rows["which"] == side).any()]
    if not sides:
        raise Missing("the chains have neither a harmlessness nor a helpfulness score", run.command("pm_score"))
    figure, all_axes = style.new(len(sides), width=4.6)
    said, alt = [], []
    for axes, side in zip(all_axes, sides, strict=True):
        for mode, part in rows[rows["which"] == side].groupby("mode"):
            colour, marker = _MODES.get(str(mode), ("#767676", "^"))
            part = part.sort_values("revision")
            bars = style.errors(part)
            apart = -0.04 if mode == "direct" else 0.04
            axes.errorbar(part["revision"].astype(float) + apart, part["estimate"], yerr=bars, color=colour,
                          marker=marker, capsize=3, label=str(mode))  # fmt: skip
            scores = ", ".join(reading.number(v) for v in part["estimate"])
            alt.append(f"{side}, {mode}: {scores}")
        axes.set_title(f"{side} PM")
        axes.set_xlabel("Revision (0: first answer)")
        axes.set_ylabel("PM score (log-odds)")
        axes.set_xticks(sorted(rows["revision"].dropna().unique().astype(int)))
        said.append(_change(run, side))
    style.legend(figure, all_axes[0])
    return figure, rows, " ".join(said), f"PM score with 95 % intervals by revision. {'; '.join(alt)}."


def _change(run: RunData, side: str) -> str:
    """First answer to last revision, from the paired differences."""
    name = f"The {'harmlessness' if side == 'harmless' else 'helpfulness'} score"
    try:
        steps = run.need(
            "pm_score/revision_steps", ["mode", "n_principles", "which", "comparison", "estimate", "low", "high"]
        )
    except Missing:
        return f"{name} has no paired differences."
    rows = steps[(steps["which"] == side) & (steps["comparison"] == "overall")]
    rows = most_principles(rows).sort_values("mode")  # critiqued before direct
    if rows.empty:
        return f"{name} has no paired differences."
    row = rows.iloc[0]
    size = reading.interval(row["estimate"], row["low"], row["high"])
    return f"{reading.sign(row, name, 'rises', 'falls')} from the first answer to the last revision ({size})."


@exhibit(
    "principles", "PM score by number of principles", "Figure 6: the number of principles does not move the score."
)
def principles(run: RunData) -> Drawn:
    """Harmlessness PM score of the last revision against the number of principles drawn from."""
    rows = chain_scores(run)
    rows = rows[(rows["which"] == "harmless") & rows["n_principles"].notna()]
    rows = rows[rows["revision"] == rows["revision"].max()]
    if rows["n_principles"].nunique() < 2:
        more = ("revise.also_principles", [1, 2, 4, 8])
        raise Missing("every chain draws from the same number of principles", run.command("pm_score", more))
    figure, (axes,) = style.new()
    for mode, part in rows.groupby("mode"):
        colour, marker = _MODES.get(str(mode), ("#767676", "^"))
        part = part.sort_values("n_principles")
        apart = 0.97 if mode == "direct" else 1.03
        axes.errorbar(part["n_principles"].astype(float) * apart, part["estimate"], yerr=style.errors(part),
                      color=colour, marker=marker, capsize=3, label=str(mode))  # fmt: skip
    axes.set_xscale("log", base=2)
    numbers = sorted(rows["n_principles"].unique().astype(int))
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.minorticks_off()
    axes.set_xlabel("Number of principles")
    axes.set_ylabel("Harmlessness PM score (log-odds)")
    style.legend(figure, axes)
    main = rows[rows["mode"] == rows["mode"].min()].sort_values("n_principles")
    few, many = main.iloc[0], main.iloc[-1]
    span = {row["n_principles"]: reading.interval(row["estimate"], row["low"], row["high"]) for row in (few, many)}
    said = f"The last revision scores {', '.join(f'{score} by {n}' for n, score in span.items())} of the principles."
    return figure, rows, said, f"Harmlessness PM score of the last revision by number of principles. {said}"


# ---------------------------------------------------------------- AI labels


@exhibit(
    "ai_labels",
    "AI labels",
    "Section 4.1: chain-of-thought labels lie near 0 or 1 and are clamped to 40 to 60 %; without it training degrades.",
)
def ai_labels(run: RunData) -> Drawn:
    """Histogram of the soft labels before and after the clamp."""
    rows = run.need("feedback", ["mode", "p_a_raw", "p_a"])
    modes = [str(mode) for mode in sorted(rows["mode"].unique(), reverse=True)]
    figure, all_axes = style.new(len(modes), width=4.2, height=3.4)
    bins = np.linspace(0, 1, 21)
    said, table = [], []
    for axes, mode in zip(all_axes, modes, strict=True):
        part = rows[rows["mode"] == mode]
        axes.hist(part["p_a_raw"].dropna(), bins=bins.tolist(), color="#b5b5b5", label="before the clamp")
        axes.hist(part["p_a"].dropna(), bins=bins.tolist(), histtype="step", color=_LABELS.get(mode, "#882255"),
                  linewidth=2, label="as trained on")  # fmt: skip
        axes.set_title(f"{mode} ({len(part)} labels)")
        axes.set_xlabel("P(first answer is better)")
        axes.set_ylabel("Labels")
        away = float((part["p_a_raw"] - 0.5).abs().mean())
        sure = float(((part["p_a_raw"] - 0.5).abs() > 0.4).mean())
        said.append(f"{mode}: on average {away:.2f} away from a half, {100 * sure:.0f}% below 0.1 or above 0.9.")
        for column in ("p_a_raw", "p_a"):
            count = np.histogram(part[column].dropna(), bins)[0]
            table.append(pd.DataFrame({"mode": mode, "label": column, "from": bins[:-1], "to": bins[1:], "n": count}))
    style.legend(figure, all_axes[0])
    text = " ".join(said)
    return figure, pd.concat(table, ignore_index=True), text, f"Histograms of AI labels. {text}"


def position_rows(run: RunData) -> pd.DataFrame:
    """How often the answer shown first is preferred, whatever it holds: arm (the mode), estimate, low, high, n."""
    from harness.stats import bootstrap_mean  # SciPy takes half a second to import

    rows = run.need("feedback", ["prompt", "mode", "p_a_forward", "p_a_swapped"])
    rows = rows.dropna(subset=["p_a_forward", "p_a_swapped"])
    found = []
    for mode, part in rows.groupby("mode", sort=False):
        # p_a_swapped is P(a) with a shown second, so 1 - p_a_swapped is P(the first shown) in that order.
        first = (part["p_a_forward"] + 1 - part["p_a_swapped"]) / 2
        found.append({"arm": str(mode)} | vars(bootstrap_mean(first.to_numpy(dtype=float), part["prompt"], seed=0)))
    return pd.DataFrame(found)


@exhibit(
    "position_bias",
    "Position bias of the feedback model",
    "The paper asks each comparison in one order; here both orders are asked and averaged, and what differs is shown.",
)
def position_bias(run: RunData) -> Drawn:
    """P(a) with a first against P(a) with a second: on the diagonal, position does not matter."""
    rows = run.need("feedback", ["mode", "p_a_forward", "p_a_swapped"])
    table = position_rows(run)
    figure, (axes,) = style.new(width=4.8, height=4.2)
    for mode, part in rows.groupby("mode", sort=False):
        part = part.head(2000)
        axes.scatter(part["p_a_forward"], part["p_a_swapped"], s=12, alpha=0.5, color=_LABELS.get(str(mode), "#882255"),
                     marker="o" if mode == "plain" else "^", label=str(mode))  # fmt: skip
    axes.plot([0, 1], [0, 1], color="#8a8a8a", linewidth=1, linestyle="--")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xlabel("P(answer is better), shown first")
    axes.set_ylabel("P(same answer is better), shown second")
    style.legend(figure, axes)
    said = []
    for row in table.to_dict("records"):
        span = reading.interval(row["estimate"], row["low"], row["high"], "%")
        verdict = "no bias to be seen" if row["low"] <= 0.5 <= row["high"] else "a bias"
        said.append(f"{row['arm']}: the answer shown first gets {span}, {verdict}.")
    text = " ".join(said)
    return figure, table, text, f"Scatter of the label in both orders; points off the diagonal are position. {text}"


@exhibit(
    "hhh_accuracy",
    "Feedback model on the HHH comparisons",
    "Figure 4: larger models identify the better answer more often; chain of thought helps, five averaged a bit more.",
)
def hhh_accuracy(run: RunData) -> Drawn:
    """Accuracy by mode on the 438 binary comparisons."""
    rows = run.summary[run.summary["metric"].str.startswith("accuracy_") & (run.summary["suite"] == "hhh")]
    if rows.empty:
        raise Missing("no HHH accuracy in results/hhh", run.command("hhh"))
    rows = rows.assign(arm=_by_model(rows["arm"], rows["metric"].str.removeprefix("accuracy_"))).reset_index(drop=True)
    figure, (axes,) = style.new(height=0.9 + 0.5 * len(rows))
    style.points(axes, rows, "Accuracy (%); 50 is chance", percent=True, zero=50)
    said = reading.ranking(rows, "Accuracy", "%")
    guesses = rows[(rows["low"] <= 0.5) & (rows["high"] >= 0.5)]["arm"].tolist()
    said += f" Not told from chance: {', '.join(guesses)}." if guesses else ""
    return figure, rows, said, f"Accuracy with 95 % interval by mode. {said}"


def _by_model(models: pd.Series, modes: pd.Series) -> pd.Series:
    """The mode, and the model before it where there are several."""
    return models.astype(str) + ", " + modes if models.nunique() > 1 else modes


@exhibit(
    "calibration",
    "Calibration of AI labels",
    "Figure 9: plain labels are well calibrated; unclamped chain-of-thought labels are over-confident.",
)
def calibration(run: RunData) -> Drawn:
    """How often an answer given probability p is the right one."""
    rows = run.need("hhh/calibration", ["mode", "clamped", "predicted", "estimate", "low", "high", "n"])
    if _has(run, "hhh/calibration", "model"):
        models = run.need("hhh/calibration", ["model"])["model"]
        rows = rows.assign(mode=_by_model(models, rows["mode"]))
    shown = rows[~rows["clamped"].astype(bool)]
    figure, (axes,) = style.new(width=4.8, height=4.2)
    for place, (mode, part) in enumerate(shown.groupby("mode", sort=False)):
        part = part.sort_values("predicted")
        marker, colour = "os^Dv"[place % 5], style.COLOURS[(4, 5, 1, 2, 3)[place % 5]]
        axes.errorbar(part["predicted"], part["estimate"], yerr=style.errors(part), capsize=2, marker=marker,
                      color=colour, label=str(mode))  # fmt: skip
    axes.plot([0, 1], [0, 1], color="#8a8a8a", linewidth=1, linestyle="--")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xlabel("Probability given")
    axes.set_ylabel("Share right")
    style.legend(figure, axes)
    errors = run.summary[run.summary["metric"].str.startswith("ece_") & ~run.summary["metric"].str.contains("clamped")]
    said = "Mean gap between probability given and share right: " + ", ".join(
        f"{str(r.metric).removeprefix('ece_')} {r.estimate:.2f}" for r in errors.itertuples()
    )
    return figure, rows, f"{said}.", f"Share of right answers by probability given; the diagonal is perfect. {said}."


# ---------------------------------------------------------------- PMs and RL


@exhibit("pm_quality", "Preference models on held-out pairs", "Section 4.2: the PMs that RL optimises.")
def pm_quality(run: RunData) -> Drawn:
    """Held-out accuracy of proxy and gold PMs."""
    rows = run.need("pm_quality", ["pm", "role", "split", "accuracy", "n"])
    extra = run.need("pm_quality", ["pm", "low", "high", "loss", "ece"]) if _has(run, "pm_quality", "low") else None
    if extra is not None:
        rows = rows.assign(**{c: extra[c].to_numpy() for c in ("low", "high", "loss", "ece")})
    rows = rows.assign(
        arm=rows["pm"].astype(str) + ", " + rows["split"].astype(str).str.removeprefix("heldout "),
        estimate=rows["accuracy"],
    )
    for end in ("low", "high"):
        rows[end] = rows.get(end, np.nan)
    figure, (axes,) = style.new(height=0.9 + 0.42 * len(rows))
    bars = style.errors(rows) * 100
    for place, row in enumerate(rows.itertuples()):
        gold = row.role == "gold"
        at = 100 * float(row.estimate)  # type: ignore[arg-type]  # itertuples is untyped
        axes.errorbar([at], [place], xerr=bars[:, [place]], fmt="D" if gold else "o", capsize=3, elinewidth=2,
                      color="#E69F00" if gold else "#0072B2")  # fmt: skip
        axes.annotate(f"{at:.0f}%", (at, place), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [style.shorten(name) for name in rows["arm"]])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.axvline(50, color="#8a8a8a", linewidth=1)
    axes.set_xlim(0, 104)
    axes.set_xlabel("Held-out accuracy (%); 50 is chance")
    for role, look, colour in (("gold: judges", "D", "#E69F00"), ("proxy: RL optimises it", "o", "#0072B2")):
        axes.plot([], [], look, color=colour, label=role)
    style.legend(figure, axes)
    gold_rows = rows[rows["role"] == "gold"]
    unsure = gold_rows[~(gold_rows["low"] > 0.5)]["arm"].tolist()
    said = reading.ranking(rows, "Held-out accuracy", "%")
    said += f" Not told from chance, so a judge of nothing: {'; '.join(unsure)}." if unsure else ""
    return figure, rows.drop(columns=["arm", "estimate"]), said, f"Held-out accuracy of each PM. {said}"


def _has(run: RunData, table: str, column: str) -> bool:
    found = run.table(table)
    return found is not None and column in found


_CURVES = {
    "reward": "Reward (PM score, log-odds)",
    "kl": "KL to the reference (nats)",
    "entropy": "Entropy (nats a token)",
    "length": "Length (tokens)",
}


@exhibit("training", "RL training", "Section 4.3: RL against the PM, with a KL penalty to the starting policy.")
def training(run: RunData) -> Drawn:
    """Reward, KL, entropy and length along RL."""
    rows = run.need("training", ["arm", "step"])
    whole = run.table("training")
    assert whole is not None
    curves = [c for c in _CURVES if c in whole and pd.api.types.is_numeric_dtype(whole[c]) and whole[c].notna().any()]
    if not curves:
        raise Missing("results/training.parquet logs none of reward, kl, entropy, length", run.command("training"))
    rows = whole[["arm", "step", *curves]]
    arms = in_order(set(rows["arm"].astype(str)))
    figure, all_axes = style.new(len(curves), width=2.6, height=2.9)
    for axes, curve in zip(all_axes, curves, strict=True):
        for arm in arms:
            part = rows[rows["arm"] == arm].sort_values("step").dropna(subset=[curve])
            every = max(1, len(part) // 6)
            axes.plot(part["step"].astype(float), part[curve].astype(float), color=style.colour(arm), markersize=4,
                      marker=style.marker(arm), markevery=every, label=style.shorten(arm))  # fmt: skip
        axes.set_title(_CURVES[curve], fontsize=9)
        axes.set_xlabel("Update")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    style.legend(figure, all_axes[0])
    said = []
    for arm in arms:
        part = rows[rows["arm"] == arm].sort_values("step")
        ends = [f"{c} {part[c].dropna().iloc[0]:z.2f} to {part[c].dropna().iloc[-1]:z.2f}"
                for c in curves[:2] if part[c].notna().any()]  # fmt: skip
        said.append(f"{arm}: {', '.join(ends)}")
    text = "First to last update: " + "; ".join(said) + "."
    return figure, rows, text, f"Training curves by arm. {text}"


def _against_a_pm(run: RunData) -> list[Setting]:
    """What an experiment needs so that some arm is trained by RL against a PM."""
    rl = run.experiment.get("rl")
    dpo = isinstance(rl, dict) and rl.get("algorithm") == "dpo"
    return run.needs_arm("rl_cai", "rl_cai_cot", "helpful_only", "hh_rlhf") + [("rl.algorithm", "ppo")] * dpo


def along_kl(run: RunData, columns: list[str], settings: Sequence[Setting]) -> pd.DataFrame:
    """Snapshots by the KL at which they stand. Raises Missing, naming the `settings` that would measure it."""
    if run.is_eval:
        raise Missing("responses alone do not tell the KL of an RL run", "cai run experiments/demo.yaml")
    return run.need("goodharting/overoptimisation", columns, settings=settings)


@exhibit(
    "overoptimisation",
    "Proxy against gold PM along KL",
    "Section 4.3 tells of over-training; Gao et al. 2022 find the gold score to turn down while the proxy still rises.",
)
def overoptimisation(run: RunData) -> Drawn:
    """Proxy (dashed) and gold (solid, with interval) score against the square root of KL."""
    columns = ["arm", "step", "sqrt_kl", "proxy", "gold", "low", "high"]
    rows = along_kl(run, columns, [("rl.snapshots", 5), *_against_a_pm(run)])
    gold = rows.assign(estimate=rows["gold"])
    figure, (axes,) = style.new()
    arms = in_order(set(rows["arm"].astype(str)))
    style.lines(axes, [(arm, gold[gold["arm"] == arm]) for arm in arms], "sqrt_kl", "PM score (log-odds)")
    for arm in arms:
        part = rows[rows["arm"] == arm].sort_values("sqrt_kl")
        axes.plot(part["sqrt_kl"], part["proxy"], color=style.colour(arm), linestyle="--", linewidth=1)
    axes.set_xlabel("sqrt(KL) to the reference. Solid: gold PM; dashed: proxy PM")
    style.legend(figure, axes)
    said = [note for note in run.notes("goodharting") if "gold turns" in note or "no turn seen" in note]
    text = ". ".join(said) + "." if said else "No turning point was measured; it needs five snapshots of different KL."
    return figure, rows, text, f"Gold and proxy PM score against the square root of KL. {text}"
