"""RLOO, GRPO and DPO: every key of `rl` does what it says, and soft labels stay soft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from harness.experiment import Experiment, Lora, Rl
from harness.graph import Silent
from harness.models import chat, checkpoints
from harness.runner import local
from pipelines import arms, dpo, soft_label
from tests.grouped import PROMPTS, SMALL_LORA, grouped

PAIRS = pd.DataFrame(
    {
        "prompt": PROMPTS,
        "chosen": [f"{w} yes yes" for w in "abcdef"],
        "rejected": [f"{w} no" for w in "abcdef"],
        "p": 1.0,
    }
)


GROUPED = pytest.mark.parametrize("algorithm", ["rloo", "grpo"])


@GROUPED
def test_grouped_answers_count_updates_as_ppo_does(tiny_model: Path, tmp_path: Path, algorithm: str) -> None:
    """Three updates of eight answers, two passes over them in steps of four: the log and snapshots are by update."""
    log, scorer = grouped(tiny_model, tmp_path, algorithm, epochs=2)
    assert log["step"].tolist() == [1, 2, 3]
    assert [len(texts) for texts in scorer.shown] == [8, 8, 8]
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["step-000002"]
    assert (tmp_path / "model" / "config.json").is_file()
    for row, texts in zip(log.itertuples(), scorer.shown, strict=True):
        assert row.reward == pytest.approx(np.mean([len(text) for text in texts]))
    assert log["ended_fraction"].between(0, 1).all()
    assert log["kl"].notna().all()


@GROUPED
def test_steps_depend_on_minibatch_accumulation_and_epochs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    steps = []
    monkeypatch.setattr(Silent, "advance", lambda self, done, total, note="": steps.append((done, total)))
    for minibatch, accumulation, epochs, expected in ((8, 1, 1, 3), (4, 1, 1, 6), (2, 2, 1, 6), (4, 2, 2, 6)):
        steps.clear()
        grouped(
            tiny_model,
            tmp_path / f"{minibatch}-{accumulation}-{epochs}",
            algorithm,
            minibatch_size=minibatch,
            gradient_accumulation=accumulation,
            epochs=epochs,
        )
        assert steps[-1] == (expected, expected)


@GROUPED
def test_the_missing_eos_penalty_is_paid_on_cut_answers_alone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    import trl

    given: list[list[float | None]] = []

    name = f"{algorithm.upper()}Trainer"

    class Trainer(getattr(trl, name)):  # type: ignore[misc]  # a base class by its name
        def __init__(self, *args: Any, reward_funcs: Any, **kwargs: Any) -> None:
            def heard(completion_ids: list[list[int]], **rest: Any) -> list[float | None]:
                given.append([ids[-1] for ids in completion_ids])
                given.append(reward_funcs[1](completion_ids=completion_ids, **rest))
                return given[-1]

            super().__init__(*args, reward_funcs=[reward_funcs[0], heard], **kwargs)

    monkeypatch.setattr(trl, name, Trainer)
    stop = set(range(0, 600, 3))
    monkeypatch.setattr(chat, "stop_ids", lambda tokenizer: stop)
    log, _ = grouped(tiny_model, tmp_path, algorithm, missing_eos_penalty=2.5)
    last, penalties = np.concatenate(given[::2]), np.concatenate(given[1::2])
    ended = np.isin(last, list(stop))
    assert 0 < ended.mean() < 1
    np.testing.assert_array_equal(penalties, np.where(ended, 0.0, -2.5))
    np.testing.assert_allclose(log["ended_fraction"].mean(), ended.mean())


@GROUPED
def test_the_kl_is_in_nats_a_sequence_and_absent_without_a_penalty(
    tiny_model: Path, tmp_path: Path, algorithm: str
) -> None:
    settings = {"lora": None, "updates": 5, "rollouts_per_update": 16, "minibatch_size": 16, "learning_rate": 3e-2}
    log, _ = grouped(tiny_model, tmp_path / "kl", algorithm, **settings)
    assert log["kl"].iloc[0] == pytest.approx(0, abs=1e-5)  # the policy is the reference
    assert log["kl"].iloc[-1] > 0.5
    free, _ = grouped(tiny_model, tmp_path / "free", algorithm, kl_coef=0.0)
    assert "kl" not in free


@GROUPED
def test_a_killed_run_resumes_to_the_same_bits(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    """Killed in the second step of the third update; the prompts, six, are asked more than once."""
    lora = SMALL_LORA if algorithm == "rloo" else None
    whole, _ = grouped(tiny_model, tmp_path / "whole", algorithm, lora=lora)

    def kill(self: Silent, done: int, total: int, note: str = "") -> None:
        if done == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Silent, "advance", kill)
        with pytest.raises(KeyboardInterrupt):
            grouped(tiny_model, tmp_path / "killed", algorithm, lora=lora)
    resumed, scorer = grouped(tiny_model, tmp_path / "killed", algorithm, lora=lora)
    assert len(scorer.shown) == 1
    pd.testing.assert_frame_equal(whole, resumed, check_exact=True)
    for file in (tmp_path / "whole" / "model").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "killed" / "model" / file.name).read_bytes()


@pytest.mark.parametrize(("algorithm", "answers"), [("rloo", 2), ("grpo", 4)])
def test_answers_to_a_prompt_are_sampled_in_groups(
    tiny_model: Path, tmp_path: Path, algorithm: str, answers: int
) -> None:
    _, scorer = grouped(tiny_model, tmp_path, algorithm, updates=1)
    asked = scorer.asked[0]
    assert all(len(set(asked[i : i + answers])) == 1 for i in range(0, 8, answers))
    assert len(set(asked)) == 8 // answers


@GROUPED
def test_grouped_answers_learn_a_rewarded_length(tiny_model: Path, tmp_path: Path, algorithm: str) -> None:
    """Also where there are fewer prompts, six, than an update asks for."""
    settings = {"updates": 16, "rollouts_per_update": 32, "minibatch_size": 32, "learning_rate": 2e-2, "kl_coef": 0.0}
    log, _ = grouped(tiny_model, tmp_path, algorithm, lora=None, **settings)
    assert log["reward"].tail(3).mean() > log["reward"].head(3).mean() + 1


# ---------------------------------------------------------------- DPO


def trained(model: Path, out: Path, pairs: pd.DataFrame, *, lora: Lora | None = None, **settings: Any) -> pd.DataFrame:
    given = Rl(**{"algorithm": "dpo", "minibatch_size": 6, "learning_rate": 3e-3} | settings)
    return dpo.train(
        model,
        pairs,
        out,
        given,
        arm="x",
        lora=lora,
        max_length=64,
        seed=0,
        report_to="none",
        checkpoint_every=10**6,
        progress=Silent(),
    )


def implied(model: Path, tuned: Path, pairs: pd.DataFrame, beta: float) -> np.ndarray:
    """P(chosen is better) that a tuned policy implies: sigmoid of beta times the difference of log ratios."""
    ratios = []
    for folder in (tuned, model):
        policy, tokenizer = checkpoints.load_policy(folder)
        rows = [dpo._pair(tokenizer, row, 64) for row in pairs.to_dict("records")]
        batch = soft_label.SoftLabelDPOCollator(pad_token_id=tokenizer.pad_token_id)(rows)
        with torch.no_grad():
            chosen, rejected = soft_label.sequence_logprobs(policy, batch).double().chunk(2)
        ratios.append(chosen - rejected)
    return torch.sigmoid(beta * (ratios[0] - ratios[1])).numpy()


@pytest.mark.parametrize("lora", [Lora(rank=8, alpha=16), None], ids=["lora", "full"])
def test_dpo_learns_soft_labels_as_probabilities(tiny_model: Path, tmp_path: Path, lora: Lora | None) -> None:
    """Labels of 0.7 one way round and 0.3 the other: rounded, both would drive the margin up for ever."""
    turned = PAIRS[3:].rename(columns={"chosen": "rejected", "rejected": "chosen"}).assign(p=0.3)
    pairs = pd.concat([PAIRS[:3].assign(p=0.7), turned])
    p, rate = pairs["p"].to_numpy(), 1e-3 if lora is None else 5e-3
    log = trained(tiny_model, tmp_path, pairs, lora=lora, kl_coef=1.0, updates=40, learning_rate=rate)
    np.testing.assert_allclose(implied(tiny_model, tmp_path / "model", pairs, 1.0), p, atol=0.02)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    assert log["policy_loss"].iloc[0] == pytest.approx(np.log(2), abs=1e-4)
    assert log["policy_loss"].iloc[-1] == pytest.approx(entropy, abs=0.01)


def test_dpo_on_hard_labels_is_trls_own(tiny_model: Path, tmp_path: Path) -> None:
    """The same loss as TRL's DPOTrainer, at a policy that is not the reference, for beta as given."""
    policy, tokenizer = checkpoints.load_policy(tiny_model)
    rows = [dpo._pair(tokenizer, dict(row), 64) for row in PAIRS.to_dict("records")]
    collator = soft_label.SoftLabelDPOCollator(pad_token_id=tokenizer.pad_token_id)
    rows = dpo._with_reference(policy, rows, collator, 4)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for beta in (1e-4, 0.3):
        args = DPOConfig(output_dir=str(tmp_path), beta=beta, bf16=False, report_to="none", use_cpu=True)
        reference, _ = checkpoints.load_policy(tiny_model)

        class Theirs(DPOTrainer):
            def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                return dataset

        kept = ("prompt_ids", "chosen_ids", "rejected_ids")
        bare = [{key: row[key] for key in kept} for row in rows]
        theirs = Theirs(
            model=policy,
            ref_model=reference,
            args=args,
            train_dataset=Dataset.from_list(bare),
            processing_class=tokenizer,
        )
        expected = theirs.compute_loss(policy, theirs.data_collator(bare)).item()
        ours = soft_label.SoftLabelDPOTrainer(
            model=policy, args=args, train_dataset=Dataset.from_list(rows), data_collator=collator
        )
        assert ours.compute_loss(policy, collator(rows)).item() == pytest.approx(expected, abs=1e-5)
        flipped = [row | {"p": 0.0} for row in rows]
        assert ours.compute_loss(policy, collator(flipped)).item() != pytest.approx(expected, abs=1e-5)


def test_a_cut_answer_has_no_end_of_turn_in_dpo(tiny_model: Path) -> None:
    tokenizer = checkpoints.load_tokenizer(tiny_model)
    row = PAIRS.iloc[0].to_dict() | {"chosen_ended": True, "rejected_ended": False}
    pair = dpo._pair(tokenizer, row, 64)
    assert pair["chosen_ids"][-1] == chat.end_of_turn_id(tokenizer)
    assert pair["rejected_ids"] == chat.encode_response(tokenizer, row["rejected"], ended=False)


def test_a_long_prompt_loses_its_beginning_in_dpo(tiny_model: Path) -> None:
    tokenizer = checkpoints.load_tokenizer(tiny_model)
    row = PAIRS.iloc[0].to_dict() | {"prompt": "word " * 200}
    pair = dpo._pair(tokenizer, row, 64)
    assert len(pair["prompt_ids"]) + len(pair["chosen_ids"]) == 64
    assert pair["prompt_ids"] == chat.encode_prompt(tokenizer, row["prompt"])[-len(pair["prompt_ids"]) :]
    assert len(dpo._pair(tokenizer, row | {"chosen": "word " * 200}, 64)["chosen_ids"]) == 64


def test_dpo_snapshots_and_logs_every_update(tiny_model: Path, tmp_path: Path) -> None:
    log = trained(tiny_model, tmp_path, PAIRS, updates=4, minibatch_size=2, gradient_accumulation=3, snapshots=1)
    assert log["step"].tolist() == [1, 2, 3, 4]
    assert log["reward"].iloc[-1] > 0
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["step-000002"]


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "dpo"])
def test_a_stage_declares_all_that_the_algorithm_reads(tiny_model: Path, tmp_path: Path, algorithm: str) -> None:
    experiment = Experiment(
        name="x",
        models={"base": str(tiny_model)},
        arms=("helpful_only",),
        scale={"redteam_prompts": 4, "helpful_prompts": 4, "heldout_prompts": 4, "preference_pairs": 4, "gold_pairs": 4}
        | {"max_new_tokens": 4},
        pm={"epochs": 1, "micro_batch_size": 4},
        rl={"algorithm": algorithm, "updates": 2, "minibatch_size": 4, "snapshots": 1, "checkpoint_every": 2},
        report_to="none",
    )
    stage = arms.plan(experiment).arms["helpful_only"]
    assert stage is not None
    folder = local.execute([stage], tmp_path, seed=0)["helpful_only"]
    assert pd.read_parquet(folder / "training.parquet")["step"].tolist() == [1, 2]
    assert (folder / "model" / "config.json").is_file()
