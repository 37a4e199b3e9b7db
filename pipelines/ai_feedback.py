"""AI feedback (paper, section 4.1): a feedback model says which of two answers a principle prefers, as a soft label.

The label is the softmax over the log-probabilities of the two options. Small models prefer the letter A or B
whatever it holds, so both orders are asked and averaged, and the bias is kept to be reported. With chain of
thought the model reasons before it answers, and the label is clamped, as the paper does, to 0.40-0.60.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from constitutions import Constitution
from harness import chat
from harness.generation import Generator, batches, uniforms

Rows = list[dict[str, Any]]
_ASK = "Below is a conversation between a human and an assistant.\n\n{conversation}\n\n{question}"
_OPTIONS = "\n\nOptions:\n(A) {a}\n(B) {b}"
_REASON = "\n\nThink step by step, then name the better option."
_ANSWER = "The answer is: ("
_AFTER_REASONING = "\nSo the answer is: ("
CHOICES = ("A", "B")
COLUMNS = [
    "prompt", "response_a", "response_b", "principle", "p_a", "p_a_raw", "p_a_forward", "p_a_swapped",
    "mass", "mode", "reasoning", "reasoning_swapped",
]  # fmt: skip


def soft_label(logprob_a: np.ndarray | float, logprob_b: np.ndarray | float) -> np.ndarray:
    """P(A) normalised over the two options: softmax of their log-probabilities, (-0.3, -1.6) -> 0.786."""
    return 1 / (1 + np.exp(np.asarray(logprob_b, dtype=float) - np.asarray(logprob_a, dtype=float)))


def question(conversation: str, principle: str, a: str, b: str, *, cot: bool) -> str:
    """The comparison as the feedback model reads it; all before the options is the same in both orders."""
    text = _ASK.format(conversation=conversation, question=principle) + _OPTIONS.format(a=a, b=b)
    return text + _REASON if cot else text


def few_shot(constitution: Constitution, *, cot: bool) -> list[chat.Message]:
    """Worked comparisons as turns before the question: the constitution's own, each with its answer."""
    shots = constitution.few_shot
    if shots is None:
        return []
    rule = constitution.comparison[0].question
    if cot:
        texts = [example.text.replace("{}", rule) for example in shots.cot]
        return [message for text in texts for message in chat.parse(text if text.startswith("\n\n") else "\n\n" + text)]
    messages: list[chat.Message] = []
    for place, example in enumerate(shots.comparison):
        a, b, right = (
            (example.chosen, example.rejected, "A") if place % 2 == 0 else (example.rejected, example.chosen, "B")
        )
        asked = question(_conversation(example.prompt), rule, a, b, cot=False)
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": f"{_ANSWER}{right})"}]
    return messages


def label(
    generator: Generator,
    constitution: Constitution,
    pairs: pd.DataFrame,
    *,
    cot: bool,
    clamp: tuple[float, float] | None,
    cot_tokens: int,
    seed: int,
    shots: bool = True,
    one_principle: bool = False,
    on_batch: Callable[[Rows], None] = lambda rows: None,
) -> pd.DataFrame:
    """AI labels for `pairs` (prompt, response_a, response_b): columns `COLUMNS`, p_a the label after averaging both
    orders and, with `cot`, the clamp; `mass` is P(A) + P(B), low where the model would rather say something else.
    A principle is drawn for each pair, or with `one_principle` the constitution's first is taken for all.
    """
    before = few_shot(constitution, cot=cot) if shots else []
    principles = constitution.comparison[:1] if one_principle else constitution.comparison
    records: Rows = [
        {"prompt": p, "response_a": a, "response_b": b}
        for p, a, b in zip(pairs["prompt"], pairs["response_a"], pairs["response_b"], strict=True)
    ]
    drawn = [principles[int(uniforms(seed, f"principle/{r['prompt']}", 1)[0] * len(principles))] for r in records]
    orders = []
    for record, principle in zip(records, drawn, strict=True):
        said = _conversation(record["prompt"])
        for a, b in ((record["response_a"], record["response_b"]), (record["response_b"], record["response_a"])):
            text = question(said, principle.question, a, b, cot=cot)
            orders.append(chat.encode_messages(generator.tokenizer, [*before, {"role": "user", "content": text}]))
    done: Rows = []
    for index in batches([len(orders[2 * i]) for i in range(len(records))], max(1, generator.batch_size // 2)):
        rows = [ids for i in index for ids in orders[2 * i : 2 * i + 2]]
        keys = [f"{records[i]['prompt']}/{order}" for i in index for order in ("forward", "swapped")]
        logprobs, reasoning = _ask(generator, rows, keys, cot=cot, cot_tokens=cot_tokens, seed=seed)
        p_first = soft_label(logprobs[:, 0], logprobs[:, 1])
        batch = []
        for place, i in enumerate(index):
            forward, swapped = float(p_first[2 * place]), float(1 - p_first[2 * place + 1])
            raw = (forward + swapped) / 2
            batch.append(
                records[i]
                | {
                    "principle": drawn[i].id,
                    "p_a": float(np.clip(raw, *clamp)) if cot and clamp is not None else raw,
                    "p_a_raw": raw,
                    "p_a_forward": forward,
                    "p_a_swapped": swapped,
                    "mass": float(np.exp(logprobs[2 * place : 2 * place + 2]).sum(1).mean()),
                    "mode": "cot" if cot else "plain",
                    "reasoning": reasoning[2 * place],
                    "reasoning_swapped": reasoning[2 * place + 1],
                }
            )
        done += batch
        on_batch(batch)
    return pd.DataFrame(done, columns=COLUMNS)


def _ask(
    generator: Generator, rows: list[list[int]], keys: list[str], *, cot: bool, cot_tokens: int, seed: int
) -> tuple[np.ndarray, Sequence[str | None]]:
    """Log-probabilities (n, 2) of A and B at the answer's place, and the reasoning before it."""
    begin = generator.tokenizer(_ANSWER, add_special_tokens=False)["input_ids"]
    if not cot:
        return generator.choice_logprobs_ids([row + begin for row in rows], CHOICES), [None] * len(rows)
    session = generator.session()
    logits = generator.read(session, rows)
    reasoning = generator.answer(session, logits, keys, max_new_tokens=cot_tokens, temperature=1.0, seed=seed)
    after = generator.tokenizer(_AFTER_REASONING, add_special_tokens=False)["input_ids"]
    logprobs = generator.score_options(session, session.extend([after] * len(rows))[:, -1], CHOICES)
    generator.tokens += session.tokens
    return logprobs, reasoning


def _conversation(prompt: str) -> str:
    """The conversation as the feedback model reads it, H: and A: for the speakers."""
    return "\n\n".join(f"{'H' if m['role'] == 'user' else 'A'}: {m['content']}" for m in chat.parse(prompt))


def report(labels: pd.DataFrame) -> dict[str, float]:
    """What the labels hold: mean P(A) by order (0.5 and 0.5 without position bias), how often the orders agree on
    the better answer, and the labels' mean distance from 0.5.
    """
    forward, swapped = labels["p_a_forward"], labels["p_a_swapped"]
    return {
        "n": float(len(labels)),
        # P(the letter A), whatever answer it held: one half when the model looks at the answers alone.
        "p_letter_a": float((forward + 1 - swapped).mean() / 2),
        "order_agreement": float(((forward > 0.5) == (swapped > 0.5)).mean()),
        "mean_distance_from_half": float((labels["p_a"] - 0.5).abs().mean()),
        "mass": float(labels["mass"].mean()),
    }
