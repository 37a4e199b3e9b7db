"""The critique-revision chain (paper, section 3.1): critique and revise an answer by one principle after another.

As in the paper, each request sees the prompt and the latest answer, after worked examples, and each round draws a
principle at random. `context="chain"` keeps earlier critiques and answers in view, `replacement=False` draws no
principle twice before all have been used, and `critique=False` asks for the revision at once (Figure 7). All chains
of a run revise the same first answers, so that they differ in nothing but how they revise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from constitutions import Constitution, CritiquePrinciple, Excerpt
from harness import store
from harness.draws import uniforms
from harness.errors import UserError
from harness.graph import Work
from harness.kept import Done, Rows
from harness.models import chat
from harness.models.base import LanguageModel, Sample
from pipelines.artefacts import as_asked, load_generator

COLUMNS = [
    "prompt", "arm", "sample", "revision", "principle", "critique", "response", "ended", "mode", "n_principles",
]  # fmt: skip


def check_principles(constitution: Constitution, rounds: int, principles: int | None, *, replacement: bool) -> None:
    """Raise UserError where the constitution has too few principles for `rounds`, or for a pool of `principles`."""
    available = len(constitution.critique_revision)
    if principles is not None and not 1 <= principles <= available:
        raise UserError(
            f"revise.also_principles: {principles} asked for, constitution {constitution.name!r} has {available}; "
            f"name numbers from 1 to {available}"
        )
    if principles is None and not replacement and rounds > available:
        raise UserError(
            f"revise.rounds: {rounds} rounds without replacement need as many principles, constitution "
            f"{constitution.name!r} has {available}; set revise.rounds to at most {available}, or revise.replacement "
            "to true"
        )


def draw_principles(
    constitution: Constitution,
    prompt: str,
    rounds: int,
    seed: int,
    *,
    replacement: bool,
    principles: int | None = None,
) -> list[CritiquePrinciple]:
    """One principle for each round of this prompt's chain.

    `principles` of them make the pool, the same for all prompts, and a smaller pool is part of a larger one (Figure
    6). Without replacement a pool smaller than `rounds` is used up and begun again.
    """
    pool = np.argsort(uniforms(seed, "principles", len(constitution.critique_revision)))[:principles]
    if replacement:
        drawn = pool[(uniforms(seed, f"principles/{prompt}", rounds) * len(pool)).astype(int)]
    else:
        drawn = np.resize(pool[np.argsort(uniforms(seed, f"principles/{prompt}", len(pool)))], rounds)
    return [constitution.critique_revision[int(i)] for i in drawn]


def few_shot(constitution: Constitution, *, critique: bool = True) -> list[chat.Message]:
    """The constitution's worked chains as turns that come before the conversation; on demand without critiques."""
    examples = constitution.few_shot.critique_revision if constitution.few_shot else []
    if not critique:
        examples = [_CRITIQUED.sub("", example) for example in examples]
    return [message for example in examples for message in chat.parse(example, chain=True)]


_CRITIQUED = re.compile(r"\n\nCritiqueRequest:.*?(?=\n\nRevisionRequest:)", re.DOTALL)


def run(
    model: LanguageModel,
    constitution: Constitution,
    first: pd.DataFrame,
    *,
    arm: str,
    rounds: int,
    critique: bool,
    context: Literal["latest", "chain"],
    replacement: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    shots: bool = True,
    principles: int | None = None,
    earlier: Sequence[dict[str, Any]] = (),
    on_batch: Callable[[Rows], None] = lambda rows: None,
) -> pd.DataFrame:
    """Chains that revise the answers `first` (prompt, response, ended): `COLUMNS`, revision 0 (`first`) to `rounds`.

    principles: how many of the constitution's are used; None: all. earlier: rows that an interrupted call has made
    already, which it goes on from. on_batch receives new rows as they are finished.
    """
    before = few_shot(constitution, critique=critique) if shots else []
    about = {"arm": arm, "sample": 0, "mode": "critiqued" if critique else "direct"}
    about |= {"n_principles": principles or len(constitution.critique_revision)}
    chains: dict[str, Rows] = {prompt: [] for prompt in first["prompt"]}
    drawn = {
        prompt: draw_principles(constitution, prompt, rounds, seed, replacement=replacement, principles=principles)
        for prompt in chains
    }
    for row in sorted(earlier, key=lambda row: row["revision"]):
        chains[row["prompt"]].append(row)

    def keep(rows: Rows) -> None:
        for row in rows:
            chains[row["prompt"]].append(row)
        on_batch(rows)

    answers = zip(first["prompt"], first["response"], first["ended"], strict=True)
    unchanged = {"revision": 0, "principle": None, "critique": None}
    keep([{"prompt": p, "response": r, "ended": e} | unchanged | about for p, r, e in answers if not chains[p]])
    for n in range(1, rounds + 1):
        todo = [prompt for prompt in chains if len(chains[prompt]) == n]

        def revised(index: list[int], said: list[list[Sample]], todo: list[str] = todo, n: int = n) -> None:
            rows: Rows = []
            for i, samples in zip(index, said, strict=True):
                row = {"prompt": todo[i], "revision": n, "principle": drawn[todo[i]][n - 1].id}
                row |= {"critique": samples[0].text if critique else None}
                rows.append(row | {"response": samples[-1].text, "ended": samples[-1].ended} | about)
            keep(rows)

        asked = [_requests(drawn[prompt][n - 1], critique) for prompt in todo]
        model.converse(
            [
                [*before, *_history(prompt, chains[prompt], drawn[prompt], context), *_user(request[0])]
                for prompt, request in zip(todo, asked, strict=True)
            ],
            [request[1:] for request in asked],
            keys=[
                [f"{prompt}/{what} {n}" for what in (("critique", "revision") if critique else ("revision",))]
                for prompt in todo
            ],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            on_batch=revised,
        )
    return pd.DataFrame([row for chain in chains.values() for row in chain], columns=COLUMNS)


def _requests(principle: CritiquePrinciple, critique: bool) -> list[str]:
    return [principle.critique, principle.revision] if critique else [principle.revision]


def _history(
    prompt: str, chain: Rows, principles: Sequence[CritiquePrinciple], context: Literal["latest", "chain"]
) -> list[chat.Message]:
    """What a request sees: the prompt and the latest answer, or all that was said since the prompt."""
    turns = chat.parse(prompt)
    if context == "latest":
        return [*turns, *_assistant(chain[-1]["response"])]
    turns += _assistant(chain[0]["response"])
    for row, principle in zip(chain[1:], principles, strict=False):
        if row["critique"] is not None:
            turns += [*_user(principle.critique), *_assistant(row["critique"])]
        turns += [*_user(principle.revision), *_assistant(row["response"])]
    return turns


def _user(text: str) -> list[chat.Message]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> list[chat.Message]:
    return [{"role": "assistant", "content": text}]


SETTINGS = (
    *("seed", "scale.max_new_tokens", "revise.rounds", "revise.context", "revise.replacement"),
    *("revise.temperature", "revise.few_shot", "models.engine"),
)  # and constitution (its part for critiques and revisions), critique, principles, arm
OPTIONS = ("scale.batch_size",)


def revise(work: Work) -> None:
    """Critique-revision chains of the input policy from its first answers to red-team prompts: chains.parquet."""
    settings, revise = work.settings, work.settings.revise
    first = pd.read_parquet(work.inputs["first"] / "responses.parquet")
    done = Done(work, len(first) * (revise.rounds + 1), "revisions")
    model = load_generator(work)
    run(
        model,
        Excerpt.model_validate(settings.constitution),
        first,
        arm=settings.arm,
        rounds=revise.rounds,
        critique=settings.critique,
        context=revise.context,
        replacement=revise.replacement,
        max_new_tokens=settings.scale.max_new_tokens,
        temperature=revise.temperature,
        seed=settings.seed,
        shots=revise.few_shot,
        principles=settings.principles,
        earlier=done.rows,
        on_batch=done.keep,
    )
    table = as_asked(pd.DataFrame(done.rows, columns=COLUMNS), first["prompt"].tolist())
    store.write_table(work.folder / "chains.parquet", table.sort_values("revision", kind="stable"))
    done.remove()
    work.count(model.tokens)
