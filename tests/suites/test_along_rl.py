"""Along RL: proxy, gold and KL of the same held-out answers by the same weights, whatever training logged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from harness.experiment import Experiment
from harness.graph import Values, Work, in_order
from harness.models import checkpoints
from harness.models.divergence import sequence_kl
from harness.models.scorer import PreferenceModel, load_classifier
from pipelines import arms
from suites import along_rl, goodharting, stages

PROMPTS = [f"Question {i}?" for i in range(6)]


@pytest.fixture(scope="module")
def moved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float, Path], None]:
    """Writes a policy that stands so far from the tiny model."""

    def save(distance: float, folder: Path) -> None:
        model, tokenizer = checkpoints.load_policy(tiny_model)
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += distance * torch.randn(parameter.shape, generator=noise)
        checkpoints.save(model, tokenizer, folder)

    return save


@pytest.fixture(scope="module")
def work(tiny_model: Path, moved: Callable[[float, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Work:
    """An arm of 4 updates with a snapshot after 2, its answers, its PM, and a log that would mislead."""
    root = tmp_path_factory.mktemp("along")
    moved(0.01, root / "arm" / "snapshots" / "step-000002")
    moved(0.03, root / "arm" / "model")
    log = pd.DataFrame({"step": [1, 2, 3, 4], "kl": 99.0, "reward": -99.0})
    log.to_parquet(root / "arm" / "training.parquet")
    rows = [
        {
            "prompt": p,
            "kind": kind,
            "sample": s,
            "response": f"Answer {s} to {p}",
            "ended": s == 0,
            "arm": "rl",
            "step": t,
        }
        for t in (2, None)
        for kind in ("harmless", "helpful")
        for p in PROMPTS
        for s in range(2)
    ]
    (root / "sample").mkdir()
    pd.DataFrame(rows).astype({"step": "Int64"}).to_parquet(root / "sample" / "responses.parquet")
    pm, tokenizer = load_classifier(tiny_model)
    with torch.no_grad():
        pm.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    checkpoints.save(pm, tokenizer, root / "pm" / "model")
    (root / "out").mkdir()
    return Work(
        root / "out",
        Values({"pm.max_length": 128, "arm": "rl"}),
        {name: root / name for name in ("arm", "sample", "pm")},
        models={"reference": str(tiny_model)},
        options=Values({"scale.batch_size": 8}),
    )


def test_kl_and_proxy_are_those_of_the_saved_weights_on_their_own_answers(work: Work, tiny_model: Path) -> None:
    along_rl.measure_along(work)
    table = pd.read_parquet(work.folder / "along.parquet")
    assert list(table.columns) == along_rl.COLUMNS
    assert table.groupby("step").size().to_dict() == {2: 12, 4: 12}  # red-team prompts alone
    by_step = table.groupby("step")["kl"].mean()
    assert 0 < by_step[2] < by_step[4]
    final = table[table["step"] == 4]
    texts = [f"Answer {s} to {p}" for p, s in zip(final["prompt"], final["sample"], strict=True)]
    policy, tokenizer = checkpoints.load_policy(work.inputs["arm"] / "model")
    reference, _ = checkpoints.load_policy(tiny_model)
    kl = sequence_kl(policy, reference, tokenizer, final["prompt"].tolist(), texts, (final["sample"] == 0).tolist())
    assert final["kl"].to_numpy() == pytest.approx(kl, rel=1e-3)
    pm = PreferenceModel.load(work.inputs["pm"] / "model", max_length=128)
    assert final["proxy"].to_numpy() == pytest.approx(pm.score(final["prompt"].tolist(), texts), abs=1e-4)
    assert final["proxy"].nunique() > 1


def test_gold_joins_its_own_answers_and_samples_of_a_prompt_are_averaged(work: Work) -> None:
    along_rl.measure_along(work)
    table = pd.read_parquet(work.folder / "along.parquet")
    responses = pd.read_parquet(work.inputs["sample"] / "responses.parquet").sample(frac=1, random_state=0)
    responses["score_harmless"] = np.where(responses["kind"] == "harmless", responses["sample"] + 10.0, np.nan)
    responses.loc[responses["step"].isna(), "score_harmless"] += 1
    empty = pd.DataFrame(columns=along_rl.COLUMNS)
    joined = along_rl.with_gold(pd.concat([responses, responses.assign(arm="other")]), [table, empty])
    assert joined is not None
    assert joined.groupby("step")["gold"].unique().map(list).to_dict() == {2: [10.5], 4: [11.5]}
    assert len(joined) == 12
    expected = table.groupby("step")[["kl", "proxy"]].mean()
    pd.testing.assert_frame_equal(joined.groupby("step")[["kl", "proxy"]].mean(), expected)
    curve = goodharting.overoptimisation.measure(joined)[0]
    assert curve["n"].tolist() == [6, 6]
    assert along_rl.with_gold(responses, [empty]) is None


def test_an_arm_without_a_log_of_updates_has_no_rows(work: Work, tmp_path: Path) -> None:
    bare = Work(tmp_path, work.settings, work.inputs | {"arm": tmp_path}, models=work.models, options=work.options)
    along_rl.measure_along(bare)
    assert pd.read_parquet(tmp_path / "along.parquet").empty


@pytest.mark.parametrize(("algorithm", "followed"), [("ppo", True), ("rloo", True), ("grpo", True), ("dpo", False)])
def test_every_arm_with_a_pm_is_followed_from_where_it_started(algorithm: str, followed: bool) -> None:
    experiment = Experiment(name="x", rl={"algorithm": algorithm})
    line = arms.plan(experiment)
    suites = stages.plan(experiment, line.arms, line.pms, line.chains, line.data)
    found = {s.name: s for s in in_order([suites["goodharting"]]) if s.name.startswith("along.")}
    assert set(found) == (
        {f"along.{a}" for a in ("helpful_only", "hh_rlhf", "rl_cai", "rl_cai_cot")} if followed else set()
    )
    if followed:
        assert found["along.rl_cai"].inputs["policy"] is line.arms["sl_cai"]
        assert found["along.rl_cai"].inputs["pm"] is line.pms["pm.rl_cai"]
        assert found["along.hh_rlhf"].models == {"reference": "embedded"}
        assert "along.rl_cai" not in {s.name for s in in_order([suites["evasiveness"]])}
