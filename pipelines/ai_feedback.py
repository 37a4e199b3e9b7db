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

from constitutions import Constitution, Excerpt
from harness import compare, store
from harness.draws import uniforms
from harness.graph import Work
from harness.kept import Done, Rows
from harness.models import chat
from harness.models.base import LanguageModel
from pipelines.artefacts import as_asked

COLUMNS = [
    "prompt", "response_a", "response_b", "principle", "p_a", "p_a_raw", "p_a_forward", "p_a_swapped",
    "mass", "mode", "reasoning", "reasoning_swapped",
]  # fmt: skip


def few_shot(constitution: Constitution, *, cot: bool, seed: int = 0, only: int | None = None) -> list[chat.Message]:
    """Worked comparisons as turns before the question, in its form, each with its answer or, with `cot`, its reasoning.

    Each asks a principle drawn for itself, as in the paper, but once for all labels, so that they are read once.
    """
    shots = constitution.few_shot
    if shots is None:
        return []
    principles = constitution.comparison if only is None else [constitution.comparison[only]]
    examples: list[tuple[str, str, str, str, str | None]]  # prompt, (A), (B), the better one, why
    if cot:
        examples = [(s.prompt, s.a, s.b, s.answer, s.reasoning) for s in shots.cot]
    else:
        examples = [
            (s.prompt, s.chosen, s.rejected, "A", None)
            if place % 2 == 0
            else (s.prompt, s.rejected, s.chosen, "B", None)
            for place, s in enumerate(shots.comparison)
        ]
    drawn = uniforms(seed, "principles of worked comparisons", len(examples))
    return [
        message
        for (prompt, a, b, answer, reasoning), u in zip(examples, drawn, strict=True)
        for message in compare.worked(prompt, principles[int(u * len(principles))].question, a, b, answer, reasoning)
    ]


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
    only: int | None = None,
    on_batch: Callable[[Rows], None] = lambda rows: None,
) -> pd.DataFrame:
    """AI labels for `pairs` (prompt, response_a, response_b): columns `COLUMNS`, p_a the label after averaging both
    orders and, with `cot`, the clamp; `mass` is P(A) + P(B), low where the model would rather say something else.
    A principle is drawn for each pair, or that at place `only` of the constitution is taken for all.
    """
    before = few_shot(constitution, cot=cot, seed=seed, only=only) if shots else []
    principles = constitution.comparison if only is None else [constitution.comparison[only]]
    records: Rows = [
        {"prompt": p, "response_a": a, "response_b": b}
        for p, a, b in zip(pairs["prompt"], pairs["response_a"], pairs["response_b"], strict=True)
    ]
    drawn = [principles[int(uniforms(seed, f"principle/{r['prompt']}", 1)[0] * len(principles))] for r in records]
    done: Rows = []

    def keep(index: list[int], found: list[compare.Preference]) -> None:
        batch = [
            records[i]
            | {
                "principle": drawn[i].id,
                "p_a": float(np.clip(each.p, *clamp)) if cot and clamp is not None else each.p,
                "p_a_raw": each.p,
                "p_a_forward": each.forward,
                "p_a_swapped": each.swapped,
                "mass": each.mass,
                "mode": "cot" if cot else "plain",
                "reasoning": each.reasoning[0],
                "reasoning_swapped": each.reasoning[1],
            }
            for i, each in zip(index, found, strict=True)
        ]
        done.extend(batch)
        on_batch(batch)

    asked = [
        compare.Pair(r["prompt"], principle.question, r["response_a"], r["response_b"])
        for r, principle in zip(records, drawn, strict=True)
    ]
    keys = [r["prompt"] for r in records]
    compare.ask(model, asked, keys=keys, seed=seed, before=before, think=cot_tokens if cot else 0, on_batch=keep)
    return pd.DataFrame(done, columns=COLUMNS)


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


def two_answers(answers: pd.DataFrame, most: int | None = None, seed: int = 0) -> pd.DataFrame:
    """(prompt, response_a, response_b, ended_a, ended_b) of samples 0 and 1 to each prompt, in their order.

    Of `most` prompts drawn at random, where there are more.
    """
    wide = answers.pivot(index="prompt", columns="sample", values=["response", "ended"])
    prompts = answers["prompt"].unique()
    if most is not None and len(prompts) > most:
        drawn = np.array([uniforms(seed, f"labelled/{prompt}", 1)[0] for prompt in prompts])
        prompts = prompts[np.sort(np.argsort(drawn)[:most])]
    wide = wide.loc[prompts]
    sides = {"a": 0, "b": 1}
    columns = {f"response_{side}": wide["response"][sample].to_numpy() for side, sample in sides.items()}
    columns |= {f"ended_{side}": wide["ended"][sample].to_numpy(dtype=bool) for side, sample in sides.items()}
    return pd.DataFrame({"prompt": wide.index.to_numpy()} | columns)


SETTINGS = ("seed", "feedback.few_shot", "models.engine")  # and constitution (its questions), cot, only, most
COT_SETTINGS = ("feedback.clamp", "feedback.cot_tokens")
OPTIONS = ("scale.batch_size",)


def label_pairs(work: Work) -> None:
    """AI labels on the two SL-CAI answers to each red-team prompt: feedback.parquet, feedback.json."""
    from harness.models.open import open_model

    settings, feedback = work.settings, work.settings.feedback
    name = work.inputs["policy"] / "model" if "policy" in work.inputs else work.models["feedback"]
    model = open_model(name, engine=settings.models.engine, batch_size=work.options.scale.batch_size, choosing=True)
    answers = pd.read_parquet(work.inputs["responses"] / "responses.parquet")
    pairs = two_answers(answers, settings.most, settings.seed)
    done = Done(work, len(pairs), "labels")
    label(
        model,
        Excerpt.model_validate(settings.constitution),
        pairs[~pairs["prompt"].isin([row["prompt"] for row in done.rows])],
        cot=settings.cot,
        clamp=feedback.clamp if settings.cot else None,
        cot_tokens=feedback.cot_tokens if settings.cot else 0,
        seed=settings.seed,
        shots=feedback.few_shot,
        only=settings.only,
        on_batch=done.keep,
    )
    labels = as_asked(pd.DataFrame(done.rows, columns=COLUMNS), pairs["prompt"].tolist())
    labels = labels.merge(pairs[["prompt", "ended_a", "ended_b"]], on="prompt", validate="one_to_one")
    store.write_table(work.folder / "feedback.parquet", labels)
    done.remove()
    store.write_json(work.folder / "feedback.json", report(labels))
    work.count(model.tokens)
