"""AI feedback (paper, section 4.1): a feedback model says which of two answers a principle prefers, as a soft label.

The label is the softmax over the log-probabilities of the two options. Small models prefer the letter A or B
whatever it holds, so both orders are asked and averaged, and the bias is kept to be reported. With chain of
thought the model's turn begins with "Let's think step by step", it reasons before it answers, and the label is
clamped, as in the paper, to 0.40-0.60. Plain labels come from the pretrained model, reasoned ones from the
helpful-only one (`models.feedback`, `models.feedback_cot`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from constitutions import Constitution
from harness import store
from harness.draws import uniforms
from harness.experiment import Feedback
from harness.graph import Work
from harness.models import chat
from harness.models.base import Choice, LanguageModel
from pipelines.artefacts import Rows, as_asked, resumed

_ASK = "Below is a conversation between a human and an assistant.\n\n{conversation}\n\n{question}"
_OPTIONS = "\n\nOptions:\n(A) {a}\n(B) {b}"
_ANSWER = "The answer is: ("
_OPENING = "Let's think step by step:"  # of the assistant's turn, with chain of thought
_AFTER_REASONING = "\n\nSo the answer is: ("
CHOICES = ("A", "B")
COLUMNS = [
    "prompt", "response_a", "response_b", "principle", "p_a", "p_a_raw", "p_a_forward", "p_a_swapped",
    "mass", "mode", "reasoning", "reasoning_swapped",
]  # fmt: skip


def soft_label(logprob_a: np.ndarray | float, logprob_b: np.ndarray | float) -> np.ndarray:
    """P(A) normalised over the two options: softmax of their log-probabilities, (-0.3, -1.6) -> 0.786."""
    return 1 / (1 + np.exp(np.asarray(logprob_b, dtype=float) - np.asarray(logprob_a, dtype=float)))


def question(conversation: str, principle: str, a: str, b: str) -> str:
    """The comparison as the feedback model reads it; all before the options is the same in both orders."""
    return _ASK.format(conversation=conversation, question=principle) + _OPTIONS.format(a=a, b=b)


def few_shot(constitution: Constitution, *, cot: bool) -> list[chat.Message]:
    """Worked comparisons as turns before the question, in its form, each with its answer or, with `cot`, its reasoning.

    All of them ask the constitution's first question, so that what comes before the drawn one is read once.
    """
    shots = constitution.few_shot
    if shots is None:
        return []
    rule = constitution.comparison[0].question
    worked: list[tuple[str, str, str, str]] = []  # prompt, a, b, answer
    if cot:
        for shot in shots.cot:
            answer = f"{_OPENING} {shot.reasoning}{_AFTER_REASONING}{shot.answer})"
            worked.append((shot.prompt, shot.a, shot.b, answer))
    else:
        for place, pair in enumerate(shots.comparison):
            if place % 2 == 0:
                worked.append((pair.prompt, pair.chosen, pair.rejected, f"{_ANSWER}A)"))
            else:
                worked.append((pair.prompt, pair.rejected, pair.chosen, f"{_ANSWER}B)"))
    messages: list[chat.Message] = []
    for prompt, a, b, answer in worked:
        messages.append({"role": "user", "content": question(_conversation(prompt), rule, a, b)})
        messages.append({"role": "assistant", "content": answer})
    return messages


def label(
    model: LanguageModel,
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
    orders, keys = [], []
    for record, principle in zip(records, drawn, strict=True):
        said = _conversation(record["prompt"])
        a, b = record["response_a"], record["response_b"]
        for order, (first, second) in {"forward": (a, b), "swapped": (b, a)}.items():
            text = question(said, principle.question, first, second)
            orders.append([*before, {"role": "user", "content": text}])
            keys.append(f"{record['prompt']}/{order}")
    lead, think, opening = (_AFTER_REASONING, cot_tokens, _OPENING) if cot else (_ANSWER, 0, "")
    done: Rows = []

    def keep(index: list[int], found: list[Choice]) -> None:
        batch = []
        for i, pair in zip(index[::2], zip(found[::2], found[1::2], strict=True), strict=True):
            logprobs = np.stack([choice.logprobs for choice in pair])
            p_first = soft_label(logprobs[:, 0], logprobs[:, 1])
            forward, swapped = float(p_first[0]), float(1 - p_first[1])
            raw = (forward + swapped) / 2
            reasoning = [choice.reasoning.text if choice.reasoning else None for choice in pair]
            batch.append(
                records[i // 2]
                | {
                    "principle": drawn[i // 2].id,
                    "p_a": float(np.clip(raw, *clamp)) if cot and clamp is not None else raw,
                    "p_a_raw": raw,
                    "p_a_forward": forward,
                    "p_a_swapped": swapped,
                    "mass": float(np.exp(logprobs).sum(1).mean()),
                    "mode": "cot" if cot else "plain",
                    "reasoning": reasoning[0],
                    "reasoning_swapped": reasoning[1],
                }
            )
        done.extend(batch)
        on_batch(batch)

    model.choose(
        orders, CHOICES, lead=lead, keys=keys, seed=seed, think=think, opening=opening, together=2, on_batch=keep
    )
    return pd.DataFrame(done, columns=COLUMNS)


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


def label_pairs(work: Work) -> None:
    """AI labels on the two SL-CAI answers to each red-team prompt: feedback.parquet, feedback.json."""
    from harness.models.open import open_model

    config, settings = work.config, Feedback(**work.config["feedback"])
    name = work.inputs["policy"] / "model" if "policy" in work.inputs else config["base"]
    model = open_model(name, batch_size=config["scale"]["batch_size"], choosing=True)
    answers = pd.read_parquet(work.inputs["responses"] / "responses.parquet")
    wide = answers.pivot(index="prompt", columns="sample", values="response").loc[answers["prompt"].unique()]
    pairs = pd.DataFrame({"prompt": wide.index, "response_a": wide[0].to_numpy(), "response_b": wide[1].to_numpy()})
    prompts = pairs["prompt"].tolist()
    constitution = Constitution.model_validate(config["constitution"])

    def remaining(todo: list[str], keep: Callable[[Rows], None]) -> None:
        label(
            model,
            constitution,
            pairs[pairs["prompt"].isin(todo)],
            cot=config["cot"],
            clamp=settings.clamp,
            cot_tokens=settings.cot_tokens,
            seed=config["seed"],
            shots=settings.few_shot,
            one_principle=config["one_principle"],
            on_batch=keep,
        )

    rows = resumed(work, prompts, remaining, "labels")
    labels = as_asked(pd.DataFrame(rows, columns=COLUMNS), prompts)
    store.write_table(work.folder / "feedback.parquet", labels)
    store.write_json(work.folder / "feedback.json", report(labels))
    work.tokens += model.tokens
