"""One byte flipped or one file cut, in each artefact of a finished run, one at a time: noticed, and made again?

    python benchmarks/damage_campaign.py RUN EXPERIMENT.yaml [--repair 3] [--seed 0]

RUN is a finished run of EXPERIMENT; a copy is worked on. Each artefact's damage must show in the plan (its stage is not
done), and with the bytes put back it is done again. `--repair` of the damaged ones are also repaired by `cai run`,
after which `cai verify` must find the run whole. Last, the seconds that a plan of the undamaged run takes, beside those
of one that has to hash everything. Prints a table, then one JSON line; exits with 1 where a damage went unnoticed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--repair", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from harness import graph, manifest
    from harness.cli.run import _targets

    run = Path(tempfile.mkdtemp(prefix="cai-damage-")) / "run"
    shutil.copytree(args.run, run)
    _, targets = _targets(args.experiment)
    cold = seconds(lambda: graph.plan(targets, run))  # hashes everything once: the copy is new
    planned = graph.plan(targets, run)
    if unfinished := [item.stage.name for item in planned if item.status != "done"]:
        raise SystemExit(f"{args.run}: not finished: {', '.join(unfinished)}")
    warm = min(seconds(lambda: graph.plan(targets, run)) for _ in range(3))
    draw = random.Random(args.seed)
    files = [item.folder / name for item in planned for name in (manifest.read(item.folder) or {})["artefacts"]]
    unnoticed = []
    for number, file in enumerate(files):
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, draw, cut=number % 2 == 0))
        if all(item.status == "done" for item in graph.plan(targets, run)):
            unnoticed.append(str(file.relative_to(run)))
        file.write_bytes(whole)
        if any(item.status != "done" for item in graph.plan(targets, run)):
            raise SystemExit(f"{file}: put back, and still not done")
    for file in draw.sample(files, min(args.repair, len(files))):
        file.write_bytes(damaged(file.read_bytes(), draw, cut=False))
        for words in (["run", str(args.experiment), "--out", str(run)], ["verify", str(run)]):
            done = subprocess.run(
                [sys.executable, "-m", "harness.cli", *words], cwd=ROOT, capture_output=True, text=True
            )
            if done.returncode:
                unnoticed.append(f"{file.relative_to(run)}: `cai {words[0]}` ended with {done.returncode}")
    print(f"{'artefacts':>10}{'unnoticed':>11}{'repaired':>10}{'plan s':>9}{'plan, all hashed s':>20}")
    print(f"{len(files):10}{len(unnoticed):11}{args.repair:10}{warm:9.2f}{cold:20.2f}")
    print(json.dumps({"artefacts": len(files), "unnoticed": unnoticed, "plan_seconds": warm, "hashed_seconds": cold}))
    return 1 if unnoticed else 0


def damaged(content: bytes, draw: random.Random, *, cut: bool) -> bytes:
    """`content` without its last bytes, or with one bit of one byte flipped."""
    if not content:
        return b"x"
    if cut:
        return content[: draw.randrange(len(content))]
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
