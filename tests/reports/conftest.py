"""A synthetic run folder: seeded tables in the shape that `cai run` writes, small enough to draw in seconds."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from harness import events
from harness.experiment import Experiment, Revise
from suites import evasiveness, learned
from suites.result import SuiteResult, summary_frame
from tests.suites.claims_runs import trusted

ARMS = ["pretrained", "helpful_only", "hh_rlhf", "sl_cai", "rl_cai", "rl_cai_cot"]
HOSTILE = '<script>alert("x")</script> <img src=x onerror=alert(1)> **bold** $x$ [link](javascript:alert(1)) ```'


def _rows(metric: str, middle: float, spread: float, rng: np.random.Generator, steps: bool = True) -> list[dict]:
    rows = []
    for place, arm in enumerate(ARMS):
        for step in [2, 4, None] if steps and arm not in ("pretrained", "sl_cai") else [None]:
            at = middle + place * spread / 2 + (step or 5) * spread / 20 + rng.normal(0, spread / 10)
            rows.append({"arm": arm, "step": step, "metric": metric, "estimate": at, "low": at - spread,
                         "high": at + spread, "n": 24})  # fmt: skip
    return rows


def responses(prompts: int = 24, samples: int = 1, seed: int = 0) -> pd.DataFrame:
    """Responses of all arms; one of them is hostile."""
    rng = np.random.default_rng(seed)
    words = ["plain", "answer", "about", "the", "garden", "water", "because", "it", "helps", "people"]
    rows = []
    for number in range(prompts):
        kind = "harmless" if number % 2 == 0 else "helpful"
        for arm in ARMS:
            for step in [2, 4, pd.NA] if arm == "rl_cai" else [pd.NA]:
                for sample in range(samples):
                    text = " ".join(rng.choice(words, 12))
                    rows.append([f"Question {number} of the {kind} kind?", text, arm, step, sample, kind, rng.normal()])
    table = pd.DataFrame(rows, columns=["prompt", "response", "arm", "step", "sample", "kind", "score_harmless"])
    table.loc[table["arm"] == "rl_cai", "response"] = HOSTILE + " " + table.loc[table["arm"] == "rl_cai", "response"]
    recurs = table["arm"].isin(["hh_rlhf", "rl_cai"]) & (table.index % 3 == 0)
    table.loc[recurs, "response"] += " You are cared for $5."
    return table.astype({"step": "Int64"})


def _elo(rng: np.random.Generator) -> SuiteResult:
    tables, rows = {}, []
    for side in ("harmlessness", "helpfulness"):
        rows += (own := _rows(f"elo_{side}", 0, 40, rng))
        drawn = [{"arm": r["arm"], "step": r["step"], "resample": k, "elo": r["estimate"] + rng.normal(0, 20)}
                 for r in own for k in range(40)]  # fmt: skip
        tables[f"{side}_draws"] = pd.DataFrame(drawn).astype({"step": "Int64"})
        pairs = [(a, b) for a in ARMS for b in ARMS if a != b]
        frame = pd.DataFrame(pairs, columns=["arm_a", "arm_b"])
        gap = np.array([ARMS.index(a) - ARMS.index(b) for a, b in pairs])
        frame["estimate"] = 0.5 + gap * 0.06
        frame = frame.assign(low=frame["estimate"] - 0.1, high=frame["estimate"] + 0.1, n=24, step_a=None, step_b=None)
        tables[f"{side}_win_rates"] = frame.astype({"step_a": "Int64", "step_b": "Int64"})
        tables[f"{side}_differences"] = frame.assign(estimate=gap * 20.0, low=gap * 20 - 30.0, high=gap * 20 + 30.0)
    return SuiteResult("elo", summary_frame("elo", rows), tables, ["harmlessness: Elo is relative to pretrained = 0"])


def _pm(table: pd.DataFrame, rng: np.random.Generator) -> SuiteResult:
    revisions, steps = [], []
    for which, slope in (("harmless", 0.4), ("helpful", -0.3)):
        for mode in ("critiqued", "direct"):
            for n in (4, 16):
                for revision in range(5):
                    at = slope * revision + 0.1 * (mode == "critiqued") + rng.normal(0, 0.02)
                    revisions.append(["helpful_only", mode, n, revision, which, at, at - 0.2, at + 0.2, 12])
                gain = 4 * slope * n / 16 + 0.1 * (mode == "critiqued")
                steps.append(["helpful_only", mode, n, which, "overall", 0, 4, gain, gain - 0.3, gain + 0.3, 12])
    interval = ["estimate", "low", "high", "n"]
    tables = {
        "responses": table.assign(label=None, score=table["score_harmless"])[
            ["prompt", "response", "arm", "step", "sample", "label", "score"]
        ],
        "revisions": pd.DataFrame(revisions, columns=["arm", "mode", "n_principles", "revision", "which", *interval]),
        "revision_steps": pd.DataFrame(
            steps,
            columns=["arm", "mode", "n_principles", "which", "comparison", "revision_before", "revision", *interval],
        ),
    }
    return SuiteResult("pm_score", summary_frame("pm_score", _rows("pm_score", -1, 0.3, rng)), tables)


def _evasiveness(table: pd.DataFrame, rng: np.random.Generator) -> SuiteResult:
    labels = rng.choice(["complies", "engages", "evades"], len(table), p=[0.5, 0.2, 0.3])
    labelled = table.assign(label=labels, score=rng.random(len(table)), refuses=labels != "complies",
                            benign=table["kind"] == "helpful")  # fmt: skip
    rows = _rows("evasive_rate", 0.3, 0.08, rng) + _rows("over_refusal_rate", 0.1, 0.05, rng)
    pairs = [[a, b, metric, 0.1, -0.1, 0.3, 12] for metric in ("evasive_rate", "over_refusal_rate")
             for a, b in combinations(ARMS, 2)]  # fmt: skip
    differences = pd.DataFrame(pairs, columns=evasiveness.DIFFERENCES)
    tables = {"responses": labelled, "differences": differences}
    return SuiteResult("evasiveness", summary_frame("evasiveness", rows), tables)


def write_run(folder: Path, seed: int = 0, table: pd.DataFrame | None = None) -> Path:
    """A whole run's folder, as `cai run` leaves it."""
    rng = np.random.default_rng(seed)
    results = folder / "results"
    results.mkdir(parents=True)
    table = responses(seed=seed) if table is None else table
    table.to_parquet(results / "responses.parquet", index=False)
    _elo(rng).save(results / "elo")
    _pm(table, rng).save(results / "pm_score")
    _evasiveness(table, rng).save(results / "evasiveness")
    phrase = {"arm": "rl_cai", "step": None, "phrase": "you are cared for $5", "kind": "harmless", "words": 4,
              "prompts": 6, "responses": 7, "share": 0.25, "sentence": "You are cared for.",
              "example_prompt": "Question 0?"}  # fmt: skip
    phrases = pd.DataFrame([phrase, {**phrase, "arm": "hh_rlhf", "share": 0.1}]).astype({"step": "Int64"})
    mined = table[["prompt", "response", "arm", "step", "sample"]].assign(label="none", score=rng.random(len(table)))
    kl = np.linspace(0, 9, 6)
    curve = pd.DataFrame({"arm": "rl_cai", "step": range(6), "kl": kl, "sqrt_kl": np.sqrt(kl), "proxy": kl / 3,
                          "gold": np.sqrt(kl) - kl / 5, "low": np.sqrt(kl) - kl / 5 - 0.2,
                          "high": np.sqrt(kl) - kl / 5 + 0.2, "n": 12})  # fmt: skip
    less = curve.assign(arm="hh_rlhf", kl=kl / 4, sqrt_kl=np.sqrt(kl / 4))
    curve = pd.concat([curve, less], ignore_index=True)
    SuiteResult(
        "goodharting",
        summary_frame("goodharting", _rows("boilerplate_rate", 0.05, 0.05, rng)),
        {"responses": mined, "phrases": phrases, "overoptimisation": curve},
        ["rl_cai: gold turns down at sqrt(KL) = 2.10 (95 % interval 1.50 to 2.60)"],
    ).save(results / "goodharting")
    SuiteResult("harmfulness", summary_frame("harmfulness", _rows("harmfulness", 1, 0.2, rng))).save(
        results / "harmfulness"
    )
    _hhh(rng).save(results / "hhh")
    _training(results, rng)
    _events(folder)
    (folder / "run.json").write_text(json.dumps(_about(folder.name)))
    experiment = Experiment(name=folder.name, revise=Revise(rounds=3)).model_dump(mode="json")
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    return folder


def _hhh(rng: np.random.Generator) -> SuiteResult:
    modes = ["plain", "cot", "cot_5"]
    rows = []
    for place, mode in enumerate(modes):
        for name, at in (("accuracy", 0.55 + 0.05 * place), ("ece", 0.05 + 0.1 * place)):
            rows.append({"arm": "feedback_model", "metric": f"{name}_{mode}", "estimate": at, "low": at - 0.04,
                         "high": at + 0.04, "n": 188})  # fmt: skip
    curves = []
    for mode in modes:
        p = np.linspace(0.05, 0.95, 10)
        share = np.clip(p + rng.normal(0, 0.05, 10), 0, 1)
        low, high = np.clip(share - 0.1, 0, 1), np.clip(share + 0.1, 0, 1)
        curve = {"mode": mode, "clamped": False, "predicted": p, "estimate": share, "low": low, "high": high, "n": 40}
        curves.append(pd.DataFrame(curve))
    return SuiteResult("hhh", summary_frame("hhh", rows), {"calibration": pd.concat(curves, ignore_index=True)})


def _training(results: Path, rng: np.random.Generator) -> None:
    frames = []
    for mode in ("plain", "cot"):
        raw = np.clip(rng.normal(0.5, 0.1 if mode == "plain" else 0.4, 40), 0.01, 0.99)
        forward, swapped = np.clip(raw + 0.1, 0, 1), np.clip(raw - 0.1, 0, 1)
        frames.append(pd.DataFrame({
            "prompt": [f"Question {i}?" for i in range(40)], "response_a": "yes", "response_b": "no",
            "principle": "kind", "p_a": raw if mode == "plain" else raw.clip(0.4, 0.6), "p_a_raw": raw,
            "p_a_forward": forward, "p_a_swapped": swapped, "mode": mode,
            "reasoning": None if mode == "plain" else "First.",
        }))  # fmt: skip
    pd.concat(frames).to_parquet(results / "feedback.parquet", index=False)
    quality = [["gold.harmless", "gold", 0.7], ["pm.rl_cai", "proxy", 0.6], ["pm.hh_rlhf", "proxy", 0.55]]
    pms = pd.DataFrame(quality, columns=["pm", "role", "accuracy"])
    pms = pms.assign(split="heldout harmless", low=pms["accuracy"] - 0.1, high=pms["accuracy"] + 0.1, loss=0.6,
                     ece=0.05, n=100.0)  # fmt: skip
    pms.to_parquet(results / "pm_quality.parquet", index=False)
    steps = np.arange(6)
    logs = []
    for place, arm in enumerate(("helpful_only", "hh_rlhf", "rl_cai", "rl_cai_cot")):
        slope = 1 + place / 4
        log = {"reward": steps * 0.1 * slope, "kl": steps * 0.4 * slope, "entropy": 3 - steps * 0.05 * slope,
               "clip_fraction": 0.1, "value_loss": 0.5, "length": 30.0 + place}  # fmt: skip
        logs.append(pd.DataFrame({"arm": arm, "step": steps, **log}))
    pd.concat(logs).to_parquet(results / "training.parquet", index=False)
    moved = pd.DataFrame({"arm": ["helpful_only", "hh_rlhf", "rl_cai", "rl_cai_cot", "sl_cai"],
                          "measure": [learned.REWARD] * 4 + [learned.LIKELIHOOD], "start": 0.5,
                          "estimate": [0.8, 0.1, -0.5, 0.4, 0.3], "n": 24})  # fmt: skip
    moved = moved.assign(end=0.5 + moved["estimate"], low=moved["estimate"] - 0.3, high=moved["estimate"] + 0.3)
    moved[learned.COLUMNS].to_parquet(results / "learned.parquet", index=False)
    stages = {"stage": ["data", "rl_cai"], "key": ["a1", "b2"], "status": "done", "wall_seconds": [1.0, 60.0],
              "tokens": [0, 5000], "peak_memory_bytes": [1 << 28, 1 << 30], "device": "cpu"}  # fmt: skip
    pd.DataFrame(stages).to_parquet(results / "stages.parquet", index=False)
    verdicts = ["reproduced", "contradicted", "underpowered", "judge cannot tell", "not measured"]
    notes = ["log-odds", "log-odds", "log-odds", "human_accuracy is 0.51", "needs runs of several sizes"]
    none = [np.nan, np.nan]
    claims = pd.DataFrame({"id": [1, 2, 3, 5, 14], "statement": ["Revisions help & more.", "B.", "C.", "E.", "D."],
                           "source": "Figure 5", "verdict": verdicts, "effect": [0.4, -0.2, 0.1, *none],
                           "low": [0.2, -0.3, -0.2, *none], "high": [0.6, -0.1, 0.4, *none], "n": [24, 24, 24, 0, 0],
                           "mde": [0.2, 0.1, 0.4, *none], "test": "difference", "p": [0.01, 0.01, 0.5, *none],
                           "p_holm": [0.03, 0.03, 0.5, *none], "note": notes})  # fmt: skip
    claims.to_parquet(results / "claims.parquet", index=False)
    trusted().to_parquet(results / "judges.parquet", index=False)
    chains = []
    for mode in ("critiqued", "direct"):
        for number in range(6):
            for revision in range(5):
                text = f"An answer in {revision} revisions about <b>water</b>."
                critique = f"Critique {revision}" if revision and mode == "critiqued" else None
                chains.append([f"Question {number}?", "helpful_only", 0, revision, "kind" if revision else None,
                               critique, text, mode, 16, revision * 0.4, revision * -0.3])  # fmt: skip
    columns = ["prompt", "arm", "sample", "revision", "principle", "critique", "response", "mode", "n_principles",
               "score_harmless", "score_helpful"]  # fmt: skip
    pd.DataFrame(chains, columns=columns).to_parquet(results / "chains.parquet", index=False)


def _events(folder: Path) -> None:
    """What a finished run tells of itself: its data, an arm's RL with samples, its report."""
    log = events.Log(folder)
    log.begin({"data": [], "rl_cai": ["data"], "report": ["rl_cai"]})
    for place, name in enumerate(("data", "rl_cai", "report"), start=1):
        stage = log.stage(name, place, 3)
        for step in (1, 2, 3) if name == "rl_cai" else ():
            stage.advance(step, 3, "PM score")
            stage.row(training_row(step, f"Answer {step}. {HOSTILE}"))
        log.write("finished", stage=name, seconds=4.0 * place, tokens=800, device="cpu", peak_memory_bytes=2**30)
    log.write("end")


def training_row(step: int, response: str) -> dict:
    """A row of an arm's training log."""
    samples = [{"prompt": "Tea?", "response": response, "score": step / 10}]
    return {"step": step, "reward": step / 10, "kl": 0.1 * step, "entropy": 2.0, "length": 8.0, "samples": samples}


def _about(name: str) -> dict:
    return {"kind": "run", "name": name, "experiment_file": "experiments/demo.yaml", "created": "2026-01-01T00:00:00",
            "versions": {"python": "3.11", "torch": "2.13.0"}, "commit": "abc1234", "arms": ARMS, "device": "cpu",
            "suites": ["elo", "pm_score", "evasiveness", "goodharting"], "seed": 0,
            "models": {"base": "smollm2-135m"}, "scale": {"heldout_prompts": 12},
            "data": ["harmless labels: the shipped pairs, a stand-in for human labels"],
            "wall_seconds": 900.0, "tokens": 120000, "peak_memory_bytes": 1 << 32,
            "stages": [{"stage": "data", "key": "a1", "wall_seconds": 1.0, "tokens": None, "device": None},
                       {"stage": "rl_cai", "key": "b2", "wall_seconds": 60.0, "tokens": 5000, "device": "cpu"}],
            "human_harm_labels": {arm: 64 if arm == "hh_rlhf" else 0 for arm in ARMS}}  # fmt: skip


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "synthetic")


def write_study(folder: Path, bases: tuple[str, ...] = ("embedded",), seeds: int = 3) -> Path:
    """The runs of a study by base model and seed, as `cai run` leaves them before it judges them together."""
    for base in bases:
        for seed in range(seeds):
            write_seed(folder / (f"{base}-seed-{seed}" if len(bases) > 1 else f"seed-{seed}"), folder.name, seed, base)
    return folder


def write_seed(run: Path, name: str, seed: int, base: str = "embedded", table: pd.DataFrame | None = None) -> Path:
    """One run of the experiment `name`."""
    write_run(run, seed=seed + 10 * len(base), table=table)
    about = json.loads((run / "run.json").read_text()) | {"seed": seed, "models": {"base": base}}
    (run / "run.json").write_text(json.dumps(about))
    settings = yaml.safe_load((run / "experiment.yaml").read_text()) | {"name": name, "seed": seed}
    settings["models"]["base"] = base
    (run / "experiment.yaml").write_text(yaml.safe_dump(settings))
    return run
