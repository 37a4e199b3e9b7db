"""Which snapshot counts as an arm's result: chosen on training prompts, and then measured as the arm's final model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.errors import UserError
from harness.experiment import Experiment
from harness.graph import Values, Work
from harness.models import open as models
from harness.models import scorer
from pipelines import arms
from reports import figures, tables
from reports.load import RunData
from suites import along_rl, chosen, sample, stages
from suites.claims_tables import Elo, Tables
from tests.reports.conftest import write_run

SCORES = {"step-000002": 1.0, "step-000004": 3.0, "model": 2.0}  # of what the weights in these folders say


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models that answer with the name of their folder, a PM that scores it, and the prompts that they were asked."""
    seen: list[str] = []

    class Model:
        tokens = 1

        def __init__(self, place: Path):
            self.name = place.name

        def sample(self, prompts: Sequence[str], on_batch: Callable[..., None] | None = None, **_: Any) -> list[Any]:
            seen.extend(prompts)
            said = [SimpleNamespace(text=self.name, ended=True) for _ in prompts]
            for i, one in reversed(list(enumerate(said)) if on_batch else []):  # in any order
                on_batch([i], [one])
            return said

    monkeypatch.setattr(models, "open_model", lambda place, **_: Model(Path(place)))
    pm = SimpleNamespace(score=lambda prompts, texts: np.array([SCORES[text] for text in texts]))
    monkeypatch.setattr(scorer.PreferenceModel, "load", lambda *_, **__: pm)
    return seen


@pytest.fixture
def work(tmp_path: Path) -> Work:
    for place in ("arm/snapshots/step-000002", "arm/snapshots/step-000004", "arm/model", "data", "out"):
        (tmp_path / place).mkdir(parents=True)
    pd.DataFrame({"step": range(1, 7)}).to_parquet(tmp_path / "arm" / "training.parquet")
    rows = [[f"{split} {kind} {i}?", kind, split] for split in ("train", "heldout") for kind in ("harmless", "helpful")
            for i in range(5)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["prompt", "kind", "split"])
    table.to_parquet(tmp_path / "data" / "prompts.parquet")
    settings = {"seed": 0, "scale.max_new_tokens": 8, "models.engine": "transformers", "pm.max_length": 64,
                "arm": "rl_cai", "prompts": ["harmless"], "rl.result": "best_proxy"}  # fmt: skip
    inputs = {name: tmp_path / name for name in ("arm", "data", "pm")}
    options = Values({"scale.batch_size": 8})
    return Work(tmp_path / "out", Values(settings), inputs, models={"reference": "start"}, options=options)


def test_the_best_by_its_own_pm_is_chosen_on_training_prompts_alone(work: Work, asked: list[str]) -> None:
    chosen.choose(work)
    table = pd.read_parquet(work.folder / "rl_result.parquet")
    assert table[["step", "value", "chosen"]].to_numpy().tolist() == [[2, 1.0, False], [4, 3.0, True], [6, 2.0, False]]
    assert table["n"].tolist() == [5, 5, 5]
    assert {prompt.rsplit(" ", 1)[0] for prompt in asked} == {"train harmless"}
    assert chosen.result_of(work.folder) == (4, 6)


@pytest.mark.parametrize(("target", "step"), [(0.1, 2), (4.4, 4), (100, 6)])
def test_the_nearest_in_kl_is_chosen(
    work: Work, asked: list[str], monkeypatch: pytest.MonkeyPatch, target: float, step: int
) -> None:
    kl = {"step-000002": 1.0, "step-000004": 4.0, "model": 5.0}
    monkeypatch.setattr(chosen, "_kl", lambda work, place, *_: kl[place.name])
    work.settings.rl.result = f"kl:{target}"
    chosen.choose(work)
    assert chosen.result_of(work.folder) == (step, 6)


def test_an_arm_that_does_not_log_its_updates_has_no_choice(work: Work, asked: list[str]) -> None:
    (work.inputs["arm"] / "training.parquet").unlink()
    with pytest.raises(UserError, match=r"rl\.result: arm rl_cai logs no updates"):
        chosen.choose(work)


def test_what_was_chosen_is_sampled_as_the_final_model_and_the_last_as_a_snapshot(
    work: Work, asked: list[str], tmp_path: Path
) -> None:
    chosen.choose(work)
    settings = {"seed": 0, "scale.samples_per_prompt": 1, "scale.max_new_tokens": 8, "models.engine": "transformers",
                "arm": "rl_cai"}  # fmt: skip
    for name, more, said in (
        ("chosen", {"result": work.folder}, {2: "step-000002", 6: "model", None: "step-000004"}),
        ("last", {}, {2: "step-000002", 4: "step-000004", None: "model"}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        inputs = {"data": work.inputs["data"], "policy": work.inputs["arm"]} | more
        sample.sample_arm(Work(folder, Values(settings), inputs, options=work.options))
        rows = pd.read_parquet(folder / "responses.parquet")
        found = {
            None if pd.isna(s) else int(s): set(part["response"]) for s, part in rows.groupby("step", dropna=False)
        }
        assert found == {step: {text} for step, text in said.items()}
        assert all(prompt.startswith("heldout") for prompt in rows["prompt"])


def test_a_killed_sampling_goes_on_row_by_row(
    work: Work, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"seed": 0, "scale.samples_per_prompt": 2, "scale.max_new_tokens": 8, "models.engine": "transformers",
                "arm": "rl_cai"}  # fmt: skip
    inputs = {"data": work.inputs["data"], "policy": work.inputs["arm"]}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    sample.sample_arm(Work(tmp_path / "whole", Values(settings), inputs, options=work.options))
    whole = len(asked)
    del asked[:]
    keep, left = sample._keep, [5]

    def killed(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        keep(*arguments)

    monkeypatch.setattr(sample, "_keep", killed)
    with pytest.raises(KeyboardInterrupt):
        sample.sample_arm(Work(tmp_path / "killed", Values(settings), inputs, options=work.options))
    monkeypatch.setattr(sample, "_keep", keep)
    del asked[:]
    sample.sample_arm(Work(tmp_path / "killed", Values(settings), inputs, options=work.options))
    assert len(asked) == whole - 5
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["responses.parquet"]
    tables = [(tmp_path / name / "responses.parquet").read_bytes() for name in ("whole", "killed")]
    assert tables[0] == tables[1]


def test_along_rl_it_stands_at_its_own_update() -> None:
    key = {"arm": "rl_cai", "prompt": "p", "sample": 0}
    along = pd.DataFrame([key | {"step": step, "kl": 1.0 * step, "proxy": 0.0} for step in (2, 4, 6)])
    said = pd.DataFrame(
        [key | {"step": step, "kind": "harmless", "score_harmless": score}
         for step, score in ((2, 0.2), (6, 0.6), (None, 0.4))]
    ).astype({"step": "Int64"})  # fmt: skip
    joined = along_rl.with_gold(said, [along])
    assert joined is not None
    assert joined.set_index("step")["gold"].to_dict() == {2: 0.2, 4: 0.4, 6: 0.6}


def results(folder: Path, arms_chosen: dict[str, int]) -> Path:
    rows = [{"arm": arm, "step": step, "last": 6, "value": step / 2, "n": 5, "chosen": step == own}
            for arm, own in arms_chosen.items() for step in sorted({2, 4, 6, own})]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "rl_results.parquet")
    return folder


def test_claims_follow_the_order_of_updates_and_compare_the_result(tmp_path: Path) -> None:
    """hh_rlhf rose to update 4, its result, and fell to 6: a decline late in RL, though its final model is the best."""
    players = [("pretrained", None, 0.0), ("hh_rlhf", 2, 50.0), ("hh_rlhf", None, 90.0), ("hh_rlhf", 6, 10.0)]
    rows = pd.DataFrame(players, columns=["arm", "step", "estimate"]).astype({"step": "Int64"})
    folder = results(tmp_path / "results", {"hh_rlhf": 4})
    (folder / "elo").mkdir()
    rows.assign(metric="elo_harmlessness", n=30).to_parquet(folder / "elo" / "summary.parquet")
    draws = [rows.assign(resample=k).rename(columns={"estimate": "elo"}) for k in range(3)]
    pd.concat(draws).to_parquet(folder / "elo" / "harmlessness_draws.parquet")
    elo = Elo(Tables(folder), "harmlessness", "")
    assert [step for _, step in elo.steps("hh_rlhf")] == [2, 4, 6]
    assert elo.final("hh_rlhf") == ("hh_rlhf", 4)
    assert elo.late_change("hh_rlhf").estimate == -80.0
    (folder / "rl_results.parquet").unlink()
    elo = Elo(Tables(folder), "harmlessness", "")
    assert elo.final("hh_rlhf") == ("hh_rlhf", np.inf)


def test_provenance_names_the_rule_and_what_it_chose(tmp_path: Path) -> None:
    def said(rule: str) -> str:
        (tmp_path / "experiment.yaml").write_text(f"rl: {{result: {rule}}}\n")
        return dict(tables.provenance(RunData(tmp_path)))["Result of an RL arm"]

    assert said("last") == "the last update"
    assert said("best_proxy") == "by rule best_proxy; which snapshots is not recorded"
    results(tmp_path / "results", {"rl_cai": 4, "hh_rlhf": 6})
    expected = "on 5 training prompts: rl_cai update 4 of 6 (2.00), hh_rlhf update 6 of 6 (3.00)"
    assert said("best_proxy") == f"by rule best_proxy {expected}"
    pd.DataFrame({"arm": ["x"], "step": ["y"]}).to_parquet(tmp_path / "results" / "rl_results.parquet")
    assert said("best_proxy") == "by rule best_proxy; which snapshots is not recorded"
    results(tmp_path / "results", {"rl_cai": 4, "hh_rlhf": 6})
    assert said("kl:5") == f"by rule kl:5 {expected}"


def test_a_final_model_is_drawn_at_the_update_that_was_chosen(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    ends = []
    for _ in range(2):
        table = figures.elo_along(RunData(folder)).table
        assert table is not None
        ends.append(table[(table["arm"] == "rl_cai") & table["step"].isna()]["at"].unique().tolist())
        results(folder / "results", {"rl_cai": 3})
    assert ends == [[5.0], [3.0]]


def test_every_arm_of_rl_against_a_pm_has_its_choice() -> None:
    experiment = Experiment.model_validate({"name": "x", "rl": {"result": "kl:5"}})
    line = arms.plan(experiment)
    planned = stages.plan(experiment, line.arms, line.pms, line.chains, line.data)
    stage = planned["responses"].inputs["sample.rl_cai"].inputs["result"]
    assert stage.settings["rl.result"] == "kl:5"
    assert stage.inputs["pm"] is line.pms["pm.rl_cai"]
    assert planned["goodharting"].inputs["along.rl_cai"].inputs["result"] is stage
    assert "result" not in planned["responses"].inputs["sample.sl_cai"].inputs
    only_helpful = planned["responses"].inputs["sample.helpful_only"].inputs["result"]
    assert only_helpful.settings["prompts"] == ["helpful"]


@pytest.mark.parametrize(
    ("rl", "expected"),
    [
        ({"result": "best"}, "choose last, best_proxy or kl:NATS"),
        ({"result": "kl:0"}, "choose last, best_proxy or kl:NATS"),
        ({"result": "kl:x"}, "choose last, best_proxy or kl:NATS"),
        ({"result": "best_proxy", "snapshots": 0}, r"there are no rl\.snapshots; use last"),
        ({"result": "best_proxy", "algorithm": "dpo"}, "dpo has no PM and no KL to choose by; use last"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(rl: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Experiment.model_validate({"name": "x", "rl": {"rollouts_per_update": 8} | rl if "algorithm" not in rl else rl})
