"""Engines beside one another on sampling, chains and labels: transformers, vLLM through ours, raw vLLM, one by one.

Raw vLLM is `LLM.generate` on the very token ids that our interface sends. "One by one" is transformers with a batch of
one. Processor seconds stand beside wall seconds, since other work on the machine moves the latter.

    python benchmarks/engines.py [--prompts 64] [--tokens 48] [--model embedded]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

from harness import compare, files
from harness.hh_layout import SHIPPED
from harness.models import checkpoints, vllm, vllm_engine
from harness.models.base import LanguageModel
from harness.models.transformers import Generator

REQUESTS = ["Say what is wrong with your answer.", "Write the answer again, without that."]


def sampling(model: LanguageModel, prompts: list[str], tokens: int) -> None:
    model.sample(prompts, max_new_tokens=tokens, keys=prompts)


def chains(model: LanguageModel, prompts: list[str], tokens: int) -> None:
    keys = [[f"{prompt}/{turn}" for turn in range(3)] for prompt in prompts]
    model.converse(prompts, [REQUESTS] * len(prompts), keys=keys, max_new_tokens=tokens)


def labels(model: LanguageModel, prompts: list[str], tokens: int) -> None:
    question = "Which answer is less harmful?"
    compare.ask(model, [compare.Pair(prompt, question, "I cannot say.", f"About that: {prompt}") for prompt in prompts])


def raw(served: vllm.VllmModel, job: Callable[..., None], prompts: list[str], tokens: int) -> Callable[[], None]:
    """`job` on raw vLLM: the requests that our interface makes of it, recorded, turn by turn for chains."""
    rounds: list[list[Any]] = []
    run = served.run

    def recorded(requests: Any, answered: Any) -> None:
        depth: dict[Any, int] = {}

        def note(key: Any, request: Any) -> Any:
            depth[key] = depth.get(key, -1) + 1
            while len(rounds) <= depth[key]:
                rounds.append([])
            rounds[depth[key]].append(request)
            return key, request

        run(
            [note(*one) for one in requests],
            lambda key, output: (note(*one) for one in answered(key, output)),
        )

    served.run = recorded  # type: ignore[method-assign]  # to record calls
    job(served, prompts, tokens)
    served.run = run  # type: ignore[method-assign]  # to record calls

    def again() -> None:
        for requests in rounds:
            asked = [{"prompt_token_ids": list(context)} for context, _ in requests]
            with vllm_engine.eager(served.llm):
                served.llm.generate(asked, [parameters for _, parameters in requests], use_tqdm=False)

    return again


def seconds(job: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--single", type=int, default=8, help="prompts of the one-by-one loop, scaled up")
    given = parser.parse_args()
    rows = [row["prompt"] for name in ("redteam", "helpful") for row in files.read_jsonl(SHIPPED / f"{name}.jsonl")]
    prompts = [str(prompt) for prompt in rows[: given.prompts]]
    policy = checkpoints.load_policy(given.model)
    ours, single, served = Generator(*policy, 32), Generator(*policy, 1), vllm.load(given.model)
    results: dict[str, dict[str, tuple[float, float]]] = {}
    for job in (sampling, chains, labels):
        job(served, prompts[:2], 2)  # first calls set things up
        again = raw(served, job, prompts, given.tokens)
        found: dict[str, tuple[float, float]] = {}
        for name, run in (
            ("transformers", lambda job=job: job(ours, prompts, given.tokens)),
            ("vllm", lambda job=job: job(served, prompts, given.tokens)),
            ("raw vllm", again),
        ):
            served.llm.reset_prefix_cache()
            found[name] = seconds(run)
        few = prompts[: given.single]
        wall, cpu = seconds(lambda job=job, few=few: job(single, few, given.tokens))
        found["one by one"] = wall * len(prompts) / len(few), cpu * len(prompts) / len(few)
        results[job.__name__] = found
        base, ratio = found["vllm"], found["raw vllm"]
        print(job.__name__, {name: f"{w:.1f} s ({c:.1f} s CPU)" for name, (w, c) in found.items()}, flush=True)
        print(
            f"  vllm through ours: {ratio[0] / base[0]:.2f} of raw vLLM's speed ({ratio[1] / base[1]:.2f} by CPU), "
            f"{found['transformers'][0] / base[0]:.2f} times transformers' ({found['transformers'][1] / base[1]:.2f})",
            flush=True,
        )
    print(json.dumps({"prompts": len(prompts), "tokens": given.tokens, "seconds": results}))


if __name__ == "__main__":
    main()
