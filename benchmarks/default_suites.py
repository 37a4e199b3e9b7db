"""The default suites of `cai eval` on 100,000 synthetic responses: time, processor time and peak memory.

python benchmarks/default_suites.py [--responses N] [--suite NAME ...]

Five arms, 20 samples a prompt. A response is a shipped example's text (`suites/evasiveness_examples.jsonl`) or the
first sentences of one, followed by sentences of words drawn from the examples' vocabulary with Zipf frequencies, up to
some 460 bytes, as in issue 9's file of 46 MB; one in twenty is a bare example, so that some responses are equal, as
short refusals are in practice. The share of duplicates is printed. The command runs in a process of its own, so its
peak memory is its own; it may use every core that this process may (`taskset -c 0,1` gives two).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

ARMS, SAMPLES, BYTES, BARE = 5, 20, 460, 0.05


def corpus(n: int, seed: int = 0) -> list[dict[str, object]]:
    """n rows of a response table, `ARMS` arms on the same prompts."""
    rows = [json.loads(line) for line in (ROOT / "suites/evasiveness_examples.jsonl").open(encoding="utf-8")]
    rng = np.random.default_rng(seed)
    words = sorted({w for row in rows for w in re.findall(r"[a-z']+", str(row["response"]).lower())})
    words = list(rng.permutation(words))
    frequency = 1 / (np.arange(len(words)) + 5.0)
    frequency /= frequency.sum()
    asked = [str(row["prompt"]) for row in rows]
    prompts = [f"{asked[i % len(asked)]} {words[i % len(words)]}?" for i in range(-(-n // (ARMS * SAMPLES)))]
    drawn = iter(rng.choice(len(words), size=n * BYTES // 5, p=frequency))

    def sentence(length: int) -> str:
        text = " ".join(words[next(drawn)] for _ in range(length))
        return text[:1].upper() + text[1:] + "."

    table = []
    for i in range(n):
        example = str(rows[rng.integers(len(rows))]["response"])
        if rng.random() >= BARE:
            parts = re.split(r"(?<=[.!?])\s+", example)
            kept = parts[: int(rng.integers(1, len(parts) + 1))]
            size = len(" ".join(kept))
            while size < BYTES:
                kept.append(sentence(int(rng.integers(5, 15))))
                size += len(kept[-1]) + 1
            example = " ".join(kept)
        cell, sample = divmod(i, SAMPLES)
        table.append(
            {"prompt": prompts[cell // ARMS], "response": example, "arm": f"arm_{cell % ARMS}", "sample": sample}
        )
    return table


def measure(file: Path, suites: list[str], out: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "harness.cli", "eval", str(file), "--out", str(out)]
    command += [part for suite in suites for part in ("--suite", suite)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_bytes": used.ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=100_000)
    parser.add_argument("--suite", action="append", default=[], help="default: those of cai eval")
    args = parser.parse_args()
    table = corpus(args.responses)
    texts = [str(row["response"]) for row in table]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "responses.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
        found: dict[str, float] = {
            "responses": len(table),
            "response_bytes": sum(len(text.encode()) for text in texts),
            "duplicate_share": round(1 - len(set(texts)) / len(texts), 4),
        }
        found |= measure(file, args.suite, Path(folder) / "out")
    print(f"{'responses':>10}{'MB':>7}{'equal':>8}{'seconds':>9}{'processor s':>13}{'peak MiB':>10}")
    print(
        f"{found['responses']:>10}{found['response_bytes'] / 1e6:>7.1f}{found['duplicate_share']:>8.1%}"
        f"{found['seconds']:>9}{found['processor_seconds']:>13}{found['peak_memory_bytes'] / 2**20:>10.0f}"
    )
    print(json.dumps({"benchmark": "default_suites", "suites": args.suite or "default", **found}))


if __name__ == "__main__":
    main()
