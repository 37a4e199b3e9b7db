"""The critique-revision chain (paper, section 3.1): answer, then critique and revise by one principle after another.

Each round draws a principle that the chain has not used (with fewer principles than rounds, as in Figure 6, they
come round again). The whole chain is one growing conversation, so its KV
cache is kept from turn to turn; it departs from the paper in that earlier critiques stay in view. `critique=False`
asks for the revision at once (Figure 7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from constitutions import Constitution
from harness import store
from harness.draws import uniforms
from harness.errors import UserError
from harness.experiment import Revise
from harness.graph import Work
from harness.models import chat
from harness.models.base import LanguageModel, Sample
from pipelines.artefacts import Rows, as_asked, load_generator, resumed, train_prompts

COLUMNS = ["prompt", "arm", "sample", "revision", "principle", "critique", "response", "mode", "n_principles"]


def draw_principles(
    constitution: Constitution, prompt: str, rounds: int, seed: int, principles: int | None = None
) -> list[int]:
    """Indices of `rounds` different principles, drawn for this prompt.

    `principles` of them make the pool, the same for all prompts, and a smaller pool is part of a larger one (Figure 6).
    Raises UserError where the constitution has fewer.
    """
    available = len(constitution.critique_revision)
    needed = rounds if principles is None else principles
    if needed > available:
        what = (
            f"{rounds} rounds need as many principles" if principles is None else f"{principles} principles asked for"
        )
        raise UserError(f"constitution {constitution.name!r}: {what}, it has {available}")
    pool = np.argsort(uniforms(seed, "principles", available))[:principles] if principles else np.arange(available)
    order = pool[np.argsort(uniforms(seed, f"principles/{prompt}", len(pool)))]
    return [int(i) for i in np.resize(order, rounds)]


def few_shot(constitution: Constitution) -> list[chat.Message]:
    """The constitution's worked chains as turns that come before the conversation."""
    examples = constitution.few_shot.critique_revision if constitution.few_shot else []
    return [message for example in examples for message in chat.parse(example, chain=True)]


def run(
    model: LanguageModel,
    constitution: Constitution,
    prompts: Sequence[str],
    *,
    arm: str,
    rounds: int,
    critique: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    shots: bool = True,
    principles: int | None = None,
    on_batch: Callable[[Rows], None] = lambda rows: None,
) -> pd.DataFrame:
    """Chains for `prompts`: columns `COLUMNS`, revision 0 (the first answer) to `rounds`.

    principles: how many of the constitution's are used; None: all.
    """
    before = few_shot(constitution) if shots and critique else []
    orders = [draw_principles(constitution, prompt, rounds, seed, principles) for prompt in prompts]
    drawn = [[constitution.critique_revision[i] for i in order] for order in orders]
    turns = [
        f"{what} {n}"
        for n in range(1, rounds + 1)
        for what in (("critique", "revision") if critique else ("revision",))
    ]
    about = {"arm": arm, "sample": 0, "mode": "critiqued" if critique else "direct"}
    about |= {"n_principles": principles or len(constitution.critique_revision)}
    rows: Rows = []

    def keep(index: list[int], chains: list[list[Sample]]) -> None:
        done: Rows = []
        for i, chain in zip(index, chains, strict=True):
            ids: list[str | None] = [None, *(principle.id for principle in drawn[i])]
            answers = [chain[0], *(chain[2::2] if critique else chain[1:])]
            critiques = [None, *(sample.text for sample in chain[1::2])] if critique else [None] * (rounds + 1)
            done += [
                {"prompt": prompts[i], "revision": n, "principle": ids[n], "critique": critiques[n]}
                | {"response": answers[n].text}
                | about
                for n in range(rounds + 1)
            ]
        rows.extend(done)
        on_batch(done)

    model.converse(
        [[*before, *chat.parse(prompt)] for prompt in prompts],
        [
            [text for p in chosen for text in ((p.critique, p.revision) if critique else (p.revision,))]
            for chosen in drawn
        ],
        keys=[[f"{prompt}/{turn}" for turn in ("0", *turns)] for prompt in prompts],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        on_batch=keep,
    )
    return pd.DataFrame(rows, columns=COLUMNS)


def revise(work: Work) -> None:
    """Critique-revision chains of the input policy on the red-team prompts: chains.parquet."""
    config, settings = work.config, Revise(**work.config["revise"])
    generator = load_generator(work)
    constitution = Constitution.model_validate(config["constitution"])
    prompts = train_prompts(work, "harmless")

    def remaining(todo: list[str], keep: Callable[[Rows], None]) -> None:
        run(
            generator,
            constitution,
            todo,
            arm=config["arm"],
            rounds=settings.rounds,
            critique=config["critique"],
            max_new_tokens=config["scale"]["max_new_tokens"],
            temperature=settings.temperature,
            seed=config["seed"],
            shots=settings.few_shot,
            principles=config["principles"],
            on_batch=keep,
        )

    rows = resumed(work, prompts, remaining, "chains")
    table = pd.DataFrame(rows, columns=COLUMNS)
    store.write_table(work.folder / "chains.parquet", as_asked(table, prompts).sort_values("revision", kind="stable"))
    work.tokens += generator.tokens
