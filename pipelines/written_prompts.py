"""Prompts that the pretrained model writes, few-shot, as the paper had most of its own made (sections 3.2 and 4.2).

Of its 182,831 red-team prompts for SL-CAI 140,335 were model-written, and all that RL adds. Each attempt sees a few of
the run's own training prompts, drawn for itself, and writes one more. What was cut, is too short or too long, opens
like a held-out prompt or pair, or like a prompt that is there already, is dropped and counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness import leaks, store
from harness.data import KINDS
from harness.draws import uniforms
from harness.errors import UserError
from harness.graph import Work
from harness.kept import Done, Rows
from harness.models import chat
from harness.models.base import Sample
from pipelines.artefacts import load_generator, train_prompts

ATTEMPTS = 8  # at most, for each prompt that is asked for
SHOTS = 5  # training prompts that an attempt sees
TOKENS = 64  # of a written prompt, at most
WORDS = 3  # at least
FATES = ("kept", "cut", "short or long", "like a held-out one", "like a training prompt", "like another written one")
_REQUEST = {
    "harmless": "Write one message with which somebody tries to get an AI assistant to say or do something harmful.",
    "helpful": "Write one message in which somebody asks an AI assistant for help with something harmless.",
}
_AGAIN = "Write another one, about something else."
_LABEL = re.compile(r"^\s*(?:[-*]\s+|\d{1,3}[.)]\s+|(?:Human|User|H|Message|Prompt)\s*:\s*)", re.IGNORECASE)


def request(kind: str, examples: Sequence[str]) -> list[chat.Message]:
    """A conversation in which the model has written `examples` and is asked for one more."""
    turns: list[chat.Message] = []
    for place, example in enumerate(examples):
        turns.append({"role": "user", "content": _AGAIN if place else _REQUEST[kind]})
        turns.append({"role": "assistant", "content": example})
    return [*turns, {"role": "user", "content": _AGAIN if examples else _REQUEST[kind]}]


def examples(prompts: Sequence[str], kind: str, attempt: int, seed: int) -> list[str]:
    """`SHOTS` of `prompts`, all where there are fewer, drawn for this attempt."""
    draws = uniforms(seed, f"written {kind}/{attempt}/examples", len(prompts))
    return [prompts[i] for i in np.argsort(draws)[:SHOTS]]


def tidy(text: str) -> str:
    """The prompt in what the model wrote: its first paragraph, without a label before it and quotation marks around."""
    first = _LABEL.sub("", text.strip().split("\n\n")[0]).strip()
    return first[1:-1].strip() if len(first) > 1 and (first[0], first[-1]) in (('"', '"'), ("“", "”")) else first


def _goes_on(text: str) -> bool:
    """Whether something follows the prompt, which is then whole even where the length cut what follows."""
    return "\n\n" in text.strip()


def fates(rows: Rows, known: Sequence[str], held: Sequence[str], most: int) -> list[str]:
    """What becomes of each attempt (tried, ended), in their order: one of `FATES`. `most`: characters of a prompt."""
    found = ["" if row["ended"] else "cut" for row in rows]
    for i, row in enumerate(rows):
        if not found[i] and (len(row["prompt"].split()) < WORDS or len(row["prompt"]) > most):
            found[i] = "short or long"
    texts = [row["prompt"] for row in rows]
    for others, fate in ((held, FATES[3]), (known, FATES[4])):
        for i, alike in enumerate(leaks.opens_like(texts, others)):
            found[i] = found[i] or (fate if alike else "")
    left = [i for i, fate in enumerate(found) if not fate]
    for i, first in zip(left, leaks.first_of_its_kind([texts[i] for i in left]), strict=True):
        found[i] = "kept" if first else FATES[5]
    return found


def counts(found: Sequence[str]) -> dict[str, int]:
    return {fate: sum(one == fate for one in found) for fate in FATES}


SETTINGS = (
    *("seed", "scale.written_prompts.chains", "scale.written_prompts.rl", "scale.max_prompt_tokens"),
    "models.engine",
)
OPTIONS = ("scale.batch_size",)


def wanted(settings: Any) -> dict[str, dict[str, int]]:
    """How many prompts of each kind are for which use: chains revise red-team prompts alone."""
    written = settings.scale.written_prompts
    return {"harmless": {"chains": written.chains, "rl": written.rl}, "helpful": {"rl": written.rl}}


def write(work: Work) -> None:
    """written.parquet (kind, use, prompt; use is chains or rl) and written.json, what became of all attempts by kind.

    Raises UserError where fewer than asked came of the attempts; what was written stays for the next try.
    """
    settings = work.settings
    asked = wanted(settings)
    total = sum(sum(uses.values()) for uses in asked.values())
    done = Done(work, total * ATTEMPTS, "attempts at prompts")
    pairs = pd.read_parquet(work.inputs["data"] / "preferences.parquet")
    prompts = pd.read_parquet(work.inputs["data"] / "prompts.parquet")
    held = [*prompts.loc[prompts["split"] == "heldout", "prompt"], *pairs.loc[pairs["split"] == "heldout", "prompt"]]
    model = load_generator(work)
    tables, told = [], {}
    for kind in KINDS:
        uses = asked[kind]
        number = sum(uses.values())
        if not number:
            continue
        texts, told[kind] = _of_kind(work, model, done, kind, number, held)
        use = np.repeat(list(uses), list(uses.values()))
        tables.append(pd.DataFrame({"kind": kind, "use": use, "prompt": texts}))
    store.write_table(work.folder / "written.parquet", pd.concat(tables, ignore_index=True))
    store.write_json(work.folder / "written.json", told)
    done.remove()
    work.count(model.tokens)


def _of_kind(
    work: Work, model: Any, done: Done, kind: str, number: int, held: Sequence[str]
) -> tuple[list[str], Mapping[str, int]]:
    """(prompts, what became of the attempts). Attempts are made in rounds whose sizes the earlier ones decide, so that
    a stage that was killed makes the same ones."""
    known, most = train_prompts(work, kind), 4 * work.settings.scale.max_prompt_tokens
    made, budget, found, rows = 0, number * ATTEMPTS, list[str](), Rows()
    while found.count("kept") < number and made < budget:
        made = min(budget, made + max(2 * (number - found.count("kept")), 8))
        _attempt(work, model, done, kind, made, known)
        rows = sorted((row for row in done.rows if row["kind"] == kind), key=lambda row: row["attempt"])[:made]
        found = fates(rows, known, held, most)
    kept = [row["prompt"] for row, fate in zip(rows, found, strict=True) if fate == "kept"]
    if len(kept) < number:
        others = ", ".join(f"{n} {fate}" for fate, n in counts(found).items() if n and fate != "kept")
        raise UserError(
            f"scale.written_prompts: {number:,} {kind} prompts asked, and {made:,} attempts gave {len(kept):,} "
            f"({others}); ask for fewer, or give more prompts to learn from"
        )
    return kept[:number], counts(found)


def _attempt(work: Work, model: Any, done: Done, kind: str, until: int, known: Sequence[str]) -> None:
    """Make the attempts below `until` that are not there yet."""
    seed = work.settings.seed
    earlier = {row["attempt"] for row in done.rows if row["kind"] == kind}
    todo = [attempt for attempt in range(until) if attempt not in earlier]

    def keep(index: list[int], samples: list[Sample]) -> None:
        done.keep(
            [
                {"kind": kind, "attempt": todo[i], "prompt": tidy(one.text), "ended": one.ended or _goes_on(one.text)}
                for i, one in zip(index, samples, strict=True)
            ]
        )

    if todo:
        model.sample(
            [request(kind, examples(known, kind, attempt, seed)) for attempt in todo],
            max_new_tokens=min(TOKENS, work.settings.scale.max_prompt_tokens),
            temperature=1.0,
            seed=seed,
            keys=[f"written {kind}/{attempt}" for attempt in todo],
            on_batch=keep,
        )
