"""Boilerplate mining of 100,000 responses against a plain datasketch MinHashLSH pass over their sentences, same run.

python benchmarks/boilerplate_mining.py [--responses N] [--peer-responses M]

The responses are generated (seeded): 20 samples a prompt, 6 sentences a response of Zipf-distributed words, one of 8
planted sentences in every tenth. Each contestant runs in a process of its own, so that its peak memory is its own;
interpreter, imports and texts are in it. The peer does the near-duplicate part alone: a MinHash of 64 permutations a
sentence, LSH at Jaccard 0.7, at least 3 prompts a bucket. It is slow, so it may be run on a share of the responses and
its time per response compared. `k = 3` is our mining at the peer's threshold: more phrases to follow than by default.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

SAMPLES, PLANTED, PEER_K = 20, 8, 3


def corpus(n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """(prompts, responses)."""
    rng = np.random.default_rng(seed)
    words = np.array([f"w{i}" for i in range(30_000)])
    frequency = 1 / (np.arange(len(words)) + 10.0)
    frequency /= frequency.sum()

    def sentences(count: int) -> list[str]:
        lengths = rng.integers(6, 20, size=count)
        drawn = words[rng.choice(len(words), size=lengths.sum(), p=frequency)]
        return [" ".join(part) + "." for part in np.split(drawn, np.cumsum(lengths)[:-1])]

    planted, free = sentences(PLANTED), sentences(6 * n)
    responses = []
    for i in range(n):
        parts = free[6 * i : 6 * i + 6]
        if i % 10 == 0:
            parts[-1] = planted[int(rng.integers(PLANTED))]
        responses.append(" ".join(parts))
    questions = sentences(-(-n // SAMPLES))
    return [questions[i // SAMPLES] for i in range(n)], responses


def ours(prompts: list[str], responses: list[str], k: int | None = None) -> dict[str, int]:
    from suites.boilerplate import mine

    mined = mine(prompts, responses, k=k)
    return {"k": mined.k, "held": int(mined.held.sum()), "phrases": len(mined.phrases)}


def ours_at_k(prompts: list[str], responses: list[str]) -> dict[str, int]:
    return ours(prompts, responses, PEER_K)


def peer(prompts: list[str], responses: list[str]) -> dict[str, int]:
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(threshold=0.7, num_perm=64)
    hashes, owner = {}, {}
    for i, response in enumerate(responses):
        for j, sentence in enumerate(response.split(". ")):
            tokens = {word.encode() for word in sentence.lower().strip(".").split()}
            minhash = MinHash(num_perm=64)
            minhash.update_batch(list(tokens))
            hashes[i, j], owner[i, j] = minhash, prompts[i]
            lsh.insert((i, j), minhash)
    seen: dict[tuple[int, int], set[str]] = defaultdict(set)
    for key, minhash in hashes.items():
        seen[key] = {owner[other] for other in lsh.query(minhash)}
    return {"held": len({key[0] for key, found in seen.items() if len(found) >= PEER_K})}


def timed(name: str, n: int, queue: multiprocessing.Queue) -> None:
    prompts, responses = corpus(n)
    start = time.perf_counter()
    found = {"ours": ours, "ours_k3": ours_at_k, "peer": peer}[name](prompts, responses)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    queue.put({"responses": n, "seconds": round(seconds, 2), "peak_memory_bytes": peak, **found})


def alone(name: str, n: int) -> dict[str, float]:
    """The measurements of one contestant, in its own process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=timed, args=(name, n, queue))
    process.start()
    found: dict[str, float] = queue.get(timeout=1800)
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=100_000)
    parser.add_argument("--peer-responses", type=int, default=5_000)
    args = parser.parse_args()
    rows = {name: alone(name, args.responses) for name in ("ours", "ours_k3")}
    rows["peer"] = alone("peer", args.peer_responses)
    each = {name: row["seconds"] / row["responses"] for name, row in rows.items()}
    titles = {"ours": "suites.boilerplate", "ours_k3": "suites.boilerplate k=3", "peer": "datasketch MinHashLSH"}
    print(f"{'':24}{'responses':>10}{'seconds':>9}{'us/response':>13}{'peak MiB':>10}{'held':>8}")
    for name, row in rows.items():
        memory = row["peak_memory_bytes"] / 2**20
        print(
            f"{titles[name]:24}{row['responses']:>10}{row['seconds']:>9}{each[name] * 1e6:>13.0f}"
            f"{memory:>10.0f}{row['held']:>8}"
        )
    ratio = round(each["peer"] / each["ours"], 2)
    print(f"the peer takes {ratio} times as long a response")
    print(json.dumps({"benchmark": "boilerplate_mining", **rows, "peer_over_ours": ratio}))


if __name__ == "__main__":
    main()
