"""Where an update of our PPO spends its processor time, and what it holds at its peak.

Processor seconds of all threads, since other work on the machine moves wall time. The policy, reward model, prompts and
sizes are those of `ppo_vs_trl.py`.

    python benchmarks/ppo_profile.py [--updates 3] [--threads 2] [--engine transformers|vllm] [--lora] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import ppo_vs_trl

PARTS = ("sync", "generation", "score", "reference", "forward", "backward", "optimiser")


class Clock:
    """Seconds in each part; a part within another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.inside: list[float] = []

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.inside.append(0.0)
            began = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                spent = time.process_time() - began
                self.seconds[part] += spent - self.inside.pop()
                if self.inside:
                    self.inside[-1] += spent

        return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=3, help="timed updates, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    import torch

    from harness.models import embedded

    torch.set_num_threads(args.threads)
    folder = args.work or embedded.cache_folder() / "ppo_vs_trl"
    if not (folder / "shared.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        ppo_vs_trl.prepare(folder)
    work = ppo_vs_trl.Ours(folder)
    run = work.run(args.updates + 1, args.engine, args.lora)
    clock = Clock()
    run.sample = clock.timed("generation", run.sample)
    run.scorer = clock.timed("score", run.scorer)
    run.reference_logprobs = clock.timed("reference", run.reference_logprobs)
    run.learner.model.forward = clock.timed("forward", run.learner.model.forward)
    run.accelerator.backward = clock.timed("backward", run.accelerator.backward)
    run.learner.optimizer.step = clock.timed("optimiser", run.learner.optimizer.step)
    if run.engine is not None:
        run.engine.sync = clock.timed("sync", run.engine.sync)
    run.update(1)
    clock.seconds = dict.fromkeys(PARTS, 0.0)
    began = time.process_time()
    for update in range(2, args.updates + 2):
        run.update(update)
    whole = (time.process_time() - began) / args.updates
    parts = {part: seconds / args.updates for part, seconds in clock.seconds.items()}
    parts["rest"] = whole - sum(parts.values())
    print(f"{args.engine}{', LoRA' if args.lora else ''}: {whole:.2f} CPU s an update, {ppo_vs_trl.peak_gib():.2f} GiB")
    for part, seconds in parts.items():
        print(f"  {part:12}{seconds:8.2f} s{seconds / whole:8.0%}")
    print(json.dumps({"engine": args.engine, "lora": args.lora, "seconds": parts, "peak_gib": ppo_vs_trl.peak_gib()}))


if __name__ == "__main__":
    main()
