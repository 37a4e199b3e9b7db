"""SFT: what it trains on, that only answers count, and that it learns them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from harness.experiment import Sft
from harness.graph import Silent
from harness.models import chat, checkpoints
from harness.models.transformers import Generator
from pipelines import sft

CHAINS = pd.DataFrame(
    [
        {"prompt": p, "revision": r, "response": f"{p} revision {r}" if (p, r) != ("b", 1) else " ", "ended": p == "a"}
        for p in "ab"
        for r in range(3)
    ]
)
HELPFUL = pd.DataFrame({"prompt": ["c"], "response": ["helpful answer"], "ended": [True]})


def test_final_revisions_or_all_of_them_mixed_with_helpful_answers() -> None:
    final = sft.demonstrations(CHAINS, HELPFUL, train_on="final", seed=0)
    assert set(final["response"]) == {"a revision 2", "b revision 2", "helpful answer"}
    assert set(final.loc[~final["ended"], "response"]) == {"b revision 2"}
    every = sft.demonstrations(CHAINS, HELPFUL, train_on="all", seed=0)
    assert set(every["response"]) == {"a revision 1", "a revision 2", "b revision 2", "helpful answer"}  # no empty one


def test_the_loss_counts_answers_only(tiny_model: Path) -> None:
    tokenizer = checkpoints.load_tokenizer(tiny_model)
    for ended in (True, False):
        row = sft._tokens(tokenizer, "A question?", "An answer.", 64, ended=ended)
        counted = [i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m]
        assert counted == chat.encode_response(tokenizer, "An answer.", ended=ended)
        assert (counted[-1] == chat.end_of_turn_id(tokenizer)) == ended
        assert len(row["input_ids"]) > len(counted)


def test_a_cut_answer_does_not_teach_to_stop_there(tiny_model: Path, tmp_path: Path) -> None:
    """Tuned on one answer as ended and as cut, the model ends it in the first case and does not in the second."""
    for ended in (True, False):
        examples = pd.DataFrame({"prompt": ["Tea or milk?"] * 8, "response": ["Milk"] * 8, "ended": ended})
        sft.train(
            tiny_model,
            examples,
            tmp_path / str(ended),
            Sft(epochs=30, learning_rate=1e-2, batch_size=8),
            lora=None,
            max_length=64,
            seed=0,
            report_to="none",
            progress=Silent(),
        )
        tuned = Generator(*checkpoints.load_policy(tmp_path / str(ended) / "model"))
        (answer,) = tuned.sample(["Tea or milk?"], max_new_tokens=8, temperature=0)
        assert answer.text.startswith("Milk")
        assert answer.ended == ended


def test_gradient_accumulation_equals_one_large_batch(tiny_model: Path, tmp_path: Path) -> None:
    """Answers of very different lengths: the mean is over tokens of the whole step, not over micro-batches."""
    examples = pd.DataFrame(
        {"prompt": [f"Number {i}?" for i in range(13)], "response": ["yes " * (1 + 3 * (i % 5)) for i in range(13)]}
    )
    policies = []
    for micro in (None, 2):
        out = tmp_path / str(micro)
        sft.train(
            tiny_model,
            examples,
            out,
            Sft(epochs=2, learning_rate=1e-3, batch_size=8, micro_batch_size=micro),
            lora=None,
            max_length=64,
            seed=0,
            report_to="none",
            progress=Silent(),
        )
        policies.append(checkpoints.load_policy(out / "model")[0])
    start, _ = checkpoints.load_policy(tiny_model)
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (*policies, start)]
    moved = (weights[0] - weights[2]).abs().mean()
    assert (weights[0] - weights[1]).abs().mean() < 0.01 * moved


def test_the_tuned_model_says_what_it_was_taught(tiny_model: Path, tmp_path: Path) -> None:
    examples = pd.DataFrame({"prompt": ["Tea or milk?"] * 8, "response": ["Milk, thanks."] * 8})
    settings = Sft(epochs=40, learning_rate=1e-2, batch_size=8)
    sft.train(
        tiny_model,
        examples,
        tmp_path,
        settings,
        lora=None,
        max_length=64,
        seed=0,
        report_to="none",
        progress=Silent(),
    )
    tuned = Generator(*checkpoints.load_policy(tmp_path / "model"))
    (answer,) = tuned.sample(["Tea or milk?"], max_new_tokens=8, temperature=0)
    assert (answer.text, answer.ended) == ("Milk, thanks.", True)
