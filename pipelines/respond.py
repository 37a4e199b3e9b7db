"""A policy's answers to train prompts: what is revised, SL-CAI's helpful half, the pairs that AI feedback labels."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from harness import store
from harness.graph import Work
from harness.models.base import Sample
from pipelines.artefacts import Rows, as_asked, load_generator, resumed, train_prompts

COLUMNS = ["prompt", "sample", "response", "ended"]


def respond(work: Work) -> None:
    """config['samples'] responses of the input policy to each train prompt of a kind: responses.parquet."""
    config = work.config
    generator = load_generator(work)
    prompts = train_prompts(work, config["kind"])
    numbered = [(prompt, sample) for prompt in prompts for sample in range(config["samples"])]

    def remaining(todo: list[str], keep: Callable[[Rows], None]) -> None:
        asked = [(p, s) for p, s in numbered if p in set(todo)]

        def store_batch(index: list[int], samples: list[Sample]) -> None:
            keep(
                [
                    {"prompt": asked[i][0], "sample": asked[i][1], "response": one.text, "ended": one.ended}
                    for i, one in zip(index, samples, strict=True)
                ]
            )

        generator.sample(
            [p for p, _ in asked],
            max_new_tokens=config["scale"]["max_new_tokens"],
            temperature=1.0,
            seed=config["seed"],
            keys=[f"{p}/{s}" for p, s in asked],
            on_batch=store_batch,
        )

    rows = resumed(work, prompts, remaining, "responses", per_prompt=config["samples"])
    table = as_asked(pd.DataFrame(rows, columns=COLUMNS), prompts)
    store.write_table(work.folder / "responses.parquet", table)
    work.tokens += generator.tokens
