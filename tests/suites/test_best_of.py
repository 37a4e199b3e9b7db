"""Best of n: the arm's answers are the PM's choice among SL-CAI's, and nothing is trained for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from harness import graph
from harness.experiment import Experiment
from harness.graph import Stage, Values, Work, in_order
from harness.models import checkpoints
from harness.models.open import open_model
from harness.models.scorer import PreferenceModel, load_classifier
from pipelines import arms, best_of, harm_labels
from suites import sample, stages

PROMPTS = [f"Question {i}?" for i in range(5)]


@pytest.fixture(scope="module")
def work(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Work:
    root = tmp_path_factory.mktemp("best")
    rows = [(kind, split, f"{p} {kind}") for kind in sample.KINDS for split in ("train", "heldout") for p in PROMPTS]
    (root / "data").mkdir()
    pd.DataFrame(rows, columns=["kind", "split", "prompt"]).to_parquet(root / "data" / "prompts.parquet")
    model, tokenizer = checkpoints.load_policy(tiny_model)
    checkpoints.save(model, tokenizer, root / "policy" / "model")
    pm, tokenizer = load_classifier(tiny_model)
    with torch.no_grad():
        pm.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    checkpoints.save(pm, tokenizer, root / "pm" / "model")
    (root / "out").mkdir()
    settings = {"seed": 3, "arm": "best_of_n", "scale.samples_per_prompt": 2, "scale.max_new_tokens": 6}
    settings |= {"models.engine": "transformers", "scale.best_of": 4, "pm.max_length": 64}
    inputs = {name: root / name for name in ("data", "policy", "pm")}
    return Work(root / "out", Values(settings), inputs, options=Values({"scale.batch_size": 16}))


def test_the_pm_picks_the_best_of_four(work: Work) -> None:
    sample.sample_best(work)
    table = pd.read_parquet(work.folder / "responses.parquet")
    assert len(table) == 20  # held-out prompts of both kinds, two samples each
    assert set(table["arm"]) == {"best_of_n"}
    assert table["step"].isna().all()
    model = open_model(work.inputs["policy"] / "model", engine="transformers", batch_size=16)
    pm = PreferenceModel.load(work.inputs["pm"] / "model", max_length=64)
    chosen = pm.score(table["prompt"].tolist(), table["response"].tolist())
    every = []
    for turn in ("", "/1", "/2", "/3"):
        keys = [f"{p}/{s}{turn}" for p, s in zip(table["prompt"], table["sample"], strict=True)]
        drawn = model.sample(table["prompt"].tolist(), max_new_tokens=6, keys=keys, seed=3)
        every.append(pm.score(table["prompt"].tolist(), [one.text for one in drawn]))
    assert chosen == pytest.approx(np.max(every, axis=0), abs=1e-4)
    assert (np.ptp(every, axis=0) > 1e-3).any()


def test_its_first_candidate_is_the_policys_own_answer(work: Work, tmp_path: Path) -> None:
    """So that best_of_n and sl_cai differ by the choice alone; with a PM that ties all, they are the same."""
    pm, tokenizer = load_classifier(work.inputs["policy"] / "model")
    with torch.no_grad():
        pm.score.weight.zero_()
    checkpoints.save(pm, tokenizer, tmp_path / "pm" / "model")
    found = []
    for name, function in (("best", sample.sample_best), ("own", sample.sample_arm)):
        (tmp_path / name).mkdir()
        inputs = work.inputs | {"pm": tmp_path / "pm"}
        function(Work(tmp_path / name, work.settings, inputs, options=work.options))
        found.append(pd.read_parquet(tmp_path / name / "responses.parquet"))
    columns = ["prompt", "kind", "sample", "response", "ended"]
    pd.testing.assert_frame_equal(found[0][columns], found[1][columns])


def test_the_distance_is_that_of_the_best_of_n_draws() -> None:
    """KL(best of n, uniform) in the continuum: the density of the largest of n uniform draws is n u^(n-1)."""
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    for n in (2, 8):
        density = n * u ** (n - 1)
        assert best_of.kl(n) == pytest.approx(float((density * np.log(density)).mean()), abs=1e-3)


def test_in_a_plan_it_is_sampled_from_sl_cai_and_the_pm_and_not_followed_along_rl(tmp_path: Path) -> None:
    experiment = Experiment(name="x", arms=("pretrained", "sl_cai", "best_of_n"), scale={"best_of": 16})
    line = arms.plan(experiment)
    suites = stages.plan(experiment, line.arms, line.pms, line.chains, line.data)
    of = {stage.name: stage for stage in in_order([*suites.values()])}
    drawn: Stage = of["sample.best_of_n"]
    assert drawn.inputs["policy"] is line.arms["sl_cai"]
    assert drawn.inputs["pm"] is line.pms["pm.rl_cai"]
    assert drawn.settings["scale.best_of"] == 16
    assert not {"rl_cai", "along.best_of_n", "along.rl_cai"} & set(of)
    assert harm_labels.splits(line.arms)["best_of_n"] == []
    graph.plan([drawn], tmp_path)


def test_asking_for_it_changes_no_other_arm(tmp_path: Path) -> None:
    keys = []
    for named in (("sl_cai", "rl_cai"), ("sl_cai", "rl_cai", "best_of_n")):
        line = arms.plan(Experiment(name="x", arms=named))
        keys.append({item.stage.name: item.key for item in graph.plan([s for s in line.arms.values() if s], tmp_path)})
    assert keys[0].items() <= keys[1].items()
    assert set(keys[1]) - set(keys[0]) == {"best_of_n"}
