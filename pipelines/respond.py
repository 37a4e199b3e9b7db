"""A policy's answers to train prompts: what is revised, SL-CAI's helpful half, the pairs that AI feedback labels."""

from __future__ import annotations

import pandas as pd

from harness import store
from harness.graph import Work
from harness.kept import Done
from harness.models.base import Sample
from pipelines.artefacts import as_asked, load_generator, train_prompts

COLUMNS = ["prompt", "sample", "response", "ended"]


SETTINGS = ("seed", "scale.max_new_tokens", "models.engine")  # and kind, samples
OPTIONS = ("scale.batch_size",)


def respond(work: Work) -> None:
    """`samples` responses of the input policy to each train prompt of a kind: responses.parquet."""
    settings = work.settings
    prompts = train_prompts(work, settings.kind, uses=("chains",))
    numbered = [(prompt, sample) for prompt in prompts for sample in range(settings.samples)]
    done = Done(work, len(numbered), "responses")
    earlier = {(row["prompt"], row["sample"]) for row in done.rows}
    asked = [item for item in numbered if item not in earlier]
    generator = load_generator(work)

    def keep(index: list[int], samples: list[Sample]) -> None:
        done.keep(
            [
                {"prompt": asked[i][0], "sample": asked[i][1], "response": one.text, "ended": one.ended}
                for i, one in zip(index, samples, strict=True)
            ]
        )

    generator.sample(
        [p for p, _ in asked],
        max_new_tokens=settings.scale.max_new_tokens,
        temperature=1.0,
        seed=settings.seed,
        keys=[f"{p}/{s}" for p, s in asked],
        on_batch=keep,
    )
    table = as_asked(pd.DataFrame(done.rows, columns=COLUMNS), prompts)
    store.write_table(work.folder / "responses.parquet", table)
    done.remove()
    work.count(generator.tokens)
