"""What a PM makes of answers that were cut at the length limit: with their end of turn put on, or read without it.

python benchmarks/cut_answers.py --harmless FOLDER [--helpful FOLDER] [--pairs N] [--updates N] [--limit TOKENS]

FOLDER holds train.jsonl[.gz] and test.jsonl[.gz] in HH-RLHF layout. Two PMs are trained on the same pairs: on whole
answers, as people compared them, and with both answers of every other pair cut and left without their end of turn.
Each scores held-out pairs whole and cut at TOKENS, with the token and without. Then PPO runs from the base model
against the first PM: token on or off, with and without a missing-EOS penalty. Half an hour on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import hh_layout
from harness.experiment import Lora, Pm
from harness.graph import Silent
from harness.models import chat, checkpoints
from harness.models.scorer import PreferenceModel
from pipelines import ppo, preference_model

LORA = Lora(rank=16, alpha=32, top_layers=12)
WHOLE = chat.encode_dialogue


@contextlib.contextmanager
def left_open(answers: set[str]) -> Iterator[None]:
    """PMs read `answers` without an end of turn."""

    def encode(tokenizer: Any, prompt: str, response: str, max_length: int | None = None, **_: Any) -> list[int]:
        return WHOLE(tokenizer, prompt, response, max_length, ended=response not in answers)

    with mock.patch.object(chat, "encode_dialogue", encode):
        yield


def cut(tokenizer: Any, text: str, limit: int) -> str:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids[:limit])).strip()


def judged(pm: PreferenceModel, pairs: pd.DataFrame, tokenizer: Any, limit: int) -> dict[str, dict[str, float]]:
    """Accuracy and scores on whole answers, on cut ones with the token, on cut ones without it."""

    def scores(chosen: Sequence[str], rejected: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        prompts = pairs["prompt"].tolist()
        return pm.score(prompts, chosen), pm.score(prompts, rejected)

    short = [[cut(tokenizer, text, limit) for text in pairs[which]] for which in ("chosen", "rejected")]
    whole = scores(pairs["chosen"].tolist(), pairs["rejected"].tolist())
    kept = scores(*short)
    with left_open({*short[0], *short[1]}):
        off = scores(*short)
    # Only answers that were longer than the limit are cut at all.
    really = [np.array([s != t.strip() for s, t in zip(half, pairs[which], strict=True)]) for half, which in
              zip(short, ("chosen", "rejected"), strict=True)]  # fmt: skip
    both = really[0] & really[1]
    rows = {}
    for name, (better, worse) in {"whole": whole, "cut, token kept": kept, "cut, token left out": off}.items():
        against = np.concatenate([w[r] - s[r] for w, s, r in zip(whole, (better, worse), really, strict=True)])
        rows[name] = {
            "pairs": int(both.sum()),
            "accuracy": float((better > worse)[both].mean()),
            "mean": float(np.concatenate([better[both], worse[both]]).mean()),
            "sd": float(np.concatenate([better[both], worse[both]]).std()),
            "whole preferred to cut": float((against > 0).mean()) if name != "whole" else float("nan"),
        }
    return rows


def reinforced(
    base: str, pm: PreferenceModel, prompts: list[str], limit: int, updates: int, *, token: bool, penalty: float
) -> dict:
    policy, tokenizer = checkpoints.load_policy(base)
    policy = checkpoints.add_lora(policy, checkpoints.LoraSettings(**LORA.model_dump()))

    def scorer(asked: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        lengths = [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
        unended = {text for text, n in zip(texts, lengths, strict=True) if n >= limit - 1}
        with left_open(set() if token else unended):
            return pm.score(asked, texts)

    config = ppo.PPOConfig(
        updates=updates,
        rollouts_per_update=16,
        minibatch_size=8,
        epochs=1,
        max_new_tokens=limit,
        learning_rate=2e-3,
        kl_coef=0.05,
        reward_normalisation="running",
        missing_eos_penalty=penalty,
        checkpoint_every=10**6,
    )
    with tempfile.TemporaryDirectory() as out:
        log = ppo.train(policy, tokenizer, prompts, scorer, config, Path(out))
    quarter = max(updates // 4, 1)
    columns = ["reward", "ended_fraction", "length", "kl"]
    start, end = log[columns].head(quarter).mean(), log[columns].tail(quarter).mean()
    return {f"{c} {when}": float(part[c]) for c in columns for when, part in (("start", start), ("end", end))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--harmless", type=Path, required=True)
    parser.add_argument("--helpful", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--pairs", type=int, default=120, help="of each kind, for training")
    parser.add_argument("--heldout", type=int, default=80, help="of each kind")
    parser.add_argument("--updates", type=int, default=16, help="of each of the four PPO runs; 0: none")
    parser.add_argument("--limit", type=int, default=32)
    args = parser.parse_args()
    folders = {"harmless": args.harmless, **({"helpful": args.helpful} if args.helpful else {})}
    both = pd.concat([hh_layout.read_hh_folder(folder, kind, 0) for kind, folder in folders.items()])
    short = both[both["prompt"].str.len() + both[["chosen", "rejected"]].apply(lambda c: c.str.len()).max(axis=1) < 700]
    train, heldout = (
        short[short["split"] == split].groupby("kind").head(n).assign(p=1.0).reset_index(drop=True)
        for split, n in (("train", args.pairs), ("heldout", args.heldout))
    )
    tokenizer = checkpoints.load_tokenizer(args.model)
    halved = train.copy()
    for which in ("chosen", "rejected"):
        halved.loc[::2, which] = [cut(tokenizer, text, args.limit) for text in halved.loc[::2, which]]
    settings = Pm(epochs=1, learning_rate=2e-3, batch_size=8, max_length=224)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        pms = {}
        short_ones = set(halved.loc[::2, "chosen"]) | set(halved.loc[::2, "rejected"])
        for name, pairs, unended in (("whole answers", train, set()), ("both kinds", halved, short_ones)):
            out = Path(scratch) / name
            with left_open(unended):
                preference_model.train(
                    args.model, pairs, out, settings, lora=LORA, seed=0, report_to="none", progress=Silent()
                )
            pms[name] = PreferenceModel.load(out / "model", max_length=224)
            report[name] = judged(pms[name], heldout, tokenizer, args.limit)
            print(f"\nPM trained on {name}\n{pd.DataFrame(report[name]).T.round(3)}", flush=True)
        prompts = list(dict.fromkeys(train["prompt"]))
        for token in (True, False) if args.updates else ():
            for penalty in (0.0, 1.0):
                name = f"PPO, token {'kept' if token else 'left out'}, penalty {penalty:g}"
                run = reinforced(
                    args.model, pms["whole answers"], prompts, args.limit, args.updates, token=token, penalty=penalty
                )
                report[name] = run
                print(name, {k: round(v, 3) for k, v in run.items()}, flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
