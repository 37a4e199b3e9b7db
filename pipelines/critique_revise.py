"""The critique-revision chain (paper, section 3.1): answer, then critique and revise by one principle after another.

Each round draws a principle that the chain has not used (with fewer principles than rounds, as in Figure 6, they
come round again). The whole chain is one growing conversation, so its KV
cache is kept from turn to turn; it departs from the paper in that earlier critiques stay in view. `critique=False`
asks for the revision at once (Figure 7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from constitutions import Constitution
from harness import store
from harness.draws import uniforms
from harness.errors import UserError
from harness.experiment import Revise
from harness.graph import Work
from harness.models import chat
from harness.models.base import batches
from pipelines.artefacts import Rows, as_asked, load_generator, resumed, train_prompts

if TYPE_CHECKING:
    from harness.models.transformers import Generator

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
    generator: Generator,
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
    contexts = [chat.encode_messages(generator.tokenizer, [*before, *chat.parse(prompt)]) for prompt in prompts]
    rows: Rows = []
    for index in batches([len(context) for context in contexts], generator.batch_size):
        chosen = [prompts[i] for i in index]
        orders = [draw_principles(constitution, prompt, rounds, seed, principles) for prompt in chosen]
        done = _batch(
            generator,
            constitution,
            chosen,
            [contexts[i] for i in index],
            orders,
            critique,
            max_new_tokens,
            temperature,
            seed,
        )
        for row in done:
            row |= {"arm": arm, "sample": 0, "mode": "critiqued" if critique else "direct"}
            row |= {"n_principles": principles or len(constitution.critique_revision)}
        rows += done
        on_batch(done)
    return pd.DataFrame(rows, columns=COLUMNS)


def _batch(
    generator: Generator,
    constitution: Constitution,
    prompts: list[str],
    contexts: list[list[int]],
    orders: list[list[int]],
    critique: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Rows:
    session = generator.session()

    def answer(logits: Any, turn: str) -> list[str]:
        keys = [f"{prompt}/{turn}" for prompt in prompts]
        return generator.answer(
            session, logits[:, -1], keys, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )

    def ask(requests: list[str], turn: str) -> list[str]:
        return answer(session.extend([chat.encode_next_turn(generator.tokenizer, r) for r in requests]), turn)

    rows: Rows = []
    for round_ in range(len(orders[0]) + 1):
        critiques: Sequence[str | None] = [None] * len(prompts)
        if round_ == 0:
            responses = answer(session.extend(contexts), "0")
            ids: Sequence[str | None] = [None] * len(prompts)
        else:
            drawn = [constitution.critique_revision[order[round_ - 1]] for order in orders]
            if critique:
                critiques = ask([principle.critique for principle in drawn], f"critique {round_}")
            responses = ask([principle.revision for principle in drawn], f"revision {round_}")
            ids = [principle.id for principle in drawn]
        rows += [
            {"prompt": p, "revision": round_, "principle": i, "critique": c, "response": r}
            for p, i, c, r in zip(prompts, ids, critiques, responses, strict=True)
        ]
    generator.tokens += session.tokens
    return rows


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
