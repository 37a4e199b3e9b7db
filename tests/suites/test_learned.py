"""Whether training moved what it optimises: paired by prompt, on answers and revisions that were held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom

from harness import store
from harness.experiment import Experiment, Sft
from harness.graph import Silent, Values, Work
from harness.models import checkpoints
from harness.models.scorer import PreferenceModel, load_classifier
from pipelines import arms, sft
from reports import opening
from reports.load import RunData
from suites import learned, stages

PROMPTS = [f"Question {i}?" for i in range(8)]


def test_the_difference_is_paired_by_prompt() -> None:
    """Prompts differ by far more than the rise, which shows only where each is compared with itself."""
    rng = np.random.default_rng(0)
    start = pd.DataFrame({"prompt": PROMPTS, "value": 10.0 * np.arange(8)})
    end = start.assign(value=start["value"] + 0.5 + rng.normal(0, 0.05, 8)).sample(frac=1, random_state=1)
    row = learned.paired("x", learned.REWARD, start, end, seed=0).iloc[0]
    assert row["estimate"] == pytest.approx(0.5, abs=0.1)
    assert 0.4 < row["low"] < row["estimate"] < row["high"] < 0.6
    assert (row["start"], row["n"]) == (35.0, 8)
    assert learned.paired("x", learned.REWARD, start.iloc[:0], end, seed=0).empty
    assert np.isinf(learned.paired("x", learned.REWARD, start[:1], end.sort_values("prompt")[:1], seed=0)["high"][0])


@pytest.mark.parametrize(("prompts", "studies"), [(6, 400), (16, 400), (50, 200)])
def test_identical_models_learn_nothing(prompts: int, studies: int) -> None:
    """Other samples of one model: told apart as seldom as a 95 % interval may, also of a small run's six chains."""
    names, told = [f"Question {i}?" for i in range(prompts)], 0
    for study in range(studies):
        rng = np.random.default_rng([study, prompts])
        ease = rng.normal(0, 2, prompts)
        start, end = (pd.DataFrame({"prompt": names, "value": ease + rng.normal(0, 1, prompts)}) for _ in range(2))
        row = learned.paired("x", learned.REWARD, start, end, seed=study).iloc[0]
        told += row["low"] > 0 or row["high"] < 0
    assert told <= binom.ppf(0.999, studies, 0.05)


def test_identical_weights_change_by_nothing_and_nobody_says_learned(tiny_model: Path, tmp_path: Path) -> None:
    """The very same answers, through a PM: a difference of 0, and a sentence that says so."""
    pm, tokenizer = load_classifier(tiny_model)
    with torch.no_grad():
        pm.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    checkpoints.save(pm, tokenizer, tmp_path / "pm" / "model")
    rows = pd.DataFrame({"prompt": PROMPTS, "kind": "helpful", "response": "An answer.", "step": None})
    for side in ("start", "end"):
        (tmp_path / side).mkdir()
        rows.assign(arm=side).astype({"step": "Int64"}).to_parquet(tmp_path / side / "responses.parquet")
    results = tmp_path / "run" / "results"
    results.mkdir(parents=True)
    learned.measure_reward(
        Work(
            results,
            Values({"seed": 0, "pm.max_length": 128, "arm": "rl_cai", "kinds": ["helpful"]}),
            {name: tmp_path / name for name in ("start", "end", "pm")},
            options=Values({"scale.batch_size": 8}),
        )
    )
    (row,) = pd.read_parquet(results / "learned.parquet").to_dict("records")
    assert row["low"] <= row["estimate"] == 0 <= row["high"]
    store.write_json(results.parent / "run.json", {"kind": "run", "arms": ["pretrained", "rl_cai"]})
    run = RunData(results.parent)
    said = [*opening.sentences(run), opening.of(run).learned]
    assert all("RL did not raise the proxy PM's score" in line for line in said), said
    assert not any("raised the" in line or "lowered the" in line for line in said)


def test_reward_is_that_of_the_arms_own_pm_on_final_answers_of_its_kinds(tiny_model: Path, tmp_path: Path) -> None:
    pm, tokenizer = load_classifier(tiny_model)
    with torch.no_grad():
        pm.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    checkpoints.save(pm, tokenizer, tmp_path / "pm" / "model")
    for side in ("start", "end"):
        rows = [
            {"prompt": p, "kind": kind, "response": f"{side} {step} of {p}", "step": step}
            for p in PROMPTS
            for kind in ("harmless", "helpful")
            for step in (2, None)
        ]
        (tmp_path / side).mkdir()
        pd.DataFrame(rows).astype({"step": "Int64"}).to_parquet(tmp_path / side / "responses.parquet")
    (tmp_path / "out").mkdir()
    learned.measure_reward(
        Work(
            tmp_path / "out",
            Values({"seed": 0, "pm.max_length": 128, "arm": "x", "kinds": ["helpful"]}),
            {name: tmp_path / name for name in ("start", "end", "pm")},
            options=Values({"scale.batch_size": 8}),
        )
    )
    (row,) = pd.read_parquet(tmp_path / "out" / "learned.parquet").to_dict("records")
    judge = PreferenceModel.load(tmp_path / "pm" / "model", max_length=128)
    for side in ("start", "end"):
        expected = judge.score(PROMPTS, [f"{side} None of {p}" for p in PROMPTS]).mean()
        assert row[side] == pytest.approx(expected, abs=1e-4)
    assert row["estimate"] == pytest.approx(row["end"] - row["start"], abs=1e-6)
    assert row["n"] == 8


def test_fine_tuning_on_a_habit_raises_the_likelihood_of_revisions_it_did_not_see(
    tiny_model: Path, tmp_path: Path
) -> None:
    chains = pd.DataFrame(
        [{"prompt": p, "revision": r, "response": f"I would rather not. {r}", "ended": True}
         for p in PROMPTS for r in (0, 1, 2)]
    )  # fmt: skip
    taught, kept = sft.apart(chains, 0.25, seed=0)
    assert taught["prompt"].nunique() == 6
    assert not set(taught["prompt"]) & set(kept["prompt"])
    heldout = sft.revisions(kept, "final")
    assert heldout["response"].unique().tolist() == ["I would rather not. 2"]
    arm = tmp_path / "arm"
    sft.train(tiny_model, sft.revisions(taught, "final"), arm, Sft(epochs=10, learning_rate=1e-2, batch_size=6),
              lora=None, max_length=64, seed=0, report_to="none", progress=Silent())  # fmt: skip
    work = Work(tmp_path, Values({"seed": 0, "arm": "sl_cai"}), {"arm": arm}, models={"start": str(tiny_model)},
                options=Values({"scale.batch_size": 8}))  # fmt: skip
    learned.measure_likelihood(work)
    assert pd.read_parquet(tmp_path / "learned.parquet").empty  # an arm that kept none back
    heldout.to_parquet(arm / "heldout.parquet")
    learned.measure_likelihood(work)
    (row,) = pd.read_parquet(tmp_path / "learned.parquet").to_dict("records")
    assert row["low"] > 0.5
    assert row["end"] < 0
    assert row["n"] == 2


def test_at_least_one_chain_is_kept_and_none_where_the_share_is_zero() -> None:
    chains = pd.DataFrame({"prompt": PROMPTS, "revision": 1, "response": "x", "ended": True})
    assert len(sft.apart(chains, 0.01, seed=0)[1]) == 1
    assert sft.apart(chains, 0, seed=0)[1].empty
    shuffled = chains.sample(frac=1, random_state=3)
    assert set(sft.apart(chains, 0.5, seed=1)[1]["prompt"]) == set(sft.apart(shuffled, 0.5, seed=1)[1]["prompt"])


def test_every_arm_that_learns_is_asked_and_starts_where_it_started() -> None:
    experiment = Experiment(name="x", arms=("helpful_only", "rl_cai", "sl_cai"), suites=("evasiveness",))
    line = arms.plan(experiment)
    planned = stages.plan(experiment, line.arms, line.pms, line.chains, line.data)
    found = {name: stage for name, stage in planned.items() if name.startswith("learned.")}
    assert set(found) == {"learned.helpful_only", "learned.rl_cai", "learned.sl_cai"}
    assert found["learned.rl_cai"].inputs["start"].inputs["policy"] is line.arms["sl_cai"]
    assert found["learned.rl_cai"].inputs["pm"] is line.pms["pm.rl_cai"]
    assert found["learned.rl_cai"].settings["kinds"] == ["harmless", "helpful"]
    # The pretrained model is no arm here, and is sampled all the same.
    start = found["learned.helpful_only"].inputs["start"]
    assert (start.name, start.models) == ("sample.pretrained", {"policy": "embedded"})
    assert "sample.pretrained" not in planned["responses"].inputs
    assert found["learned.helpful_only"].settings["kinds"] == ["helpful"]
    assert found["learned.sl_cai"].models == {"start": "embedded"}


def test_arms_may_share_a_start_that_is_no_arm_of_the_run() -> None:
    experiment = Experiment(name="x", arms=("helpful_only", "hh_rlhf", "rl_cai", "rl_cai_cot"), suites=("evasiveness",))
    line = arms.plan(experiment)
    planned = stages.plan(experiment, line.arms, line.pms, line.chains, line.data)
    starts = {arm: planned[f"learned.{arm}"].inputs["start"] for arm in line.arms}
    assert starts["helpful_only"] is starts["hh_rlhf"]
    assert starts["rl_cai"] is starts["rl_cai_cot"]
    assert [starts[arm].name for arm in ("hh_rlhf", "rl_cai")] == ["sample.pretrained", "sample.sl_cai"]
