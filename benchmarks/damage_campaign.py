"""One byte flipped or one file cut, in each artefact of a finished run, one at a time: noticed, and made again?

    python benchmarks/damage_campaign.py [RUN EXPERIMENT.yaml] [--commands 3] [--seed 0]

RUN is a finished run of EXPERIMENT; a copy is worked on. Without one, all arms of a tiny random model are run first.
Each artefact in turn is damaged: the plan must show its stage as damaged, the runner must make it again with the bytes
that it had, and every artefact must then match its manifest. `--commands` of them are repaired through `cai run` and
`cai verify` instead, in processes of their own. Last, the seconds that a plan of the undamaged run takes, beside those
of a plan that believes every manifest and of one that hashes everything. Prints a table, then one JSON line; exits with
1 where a damage went unnoticed or was not made good.
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
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# When a stage or a run's tables were finished, which machine time it took: no result.
TIMES = {"run.json", "stages.parquet"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("experiment", type=Path, nargs="?")
    parser.add_argument("--commands", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from benchmarks.kill_campaign import finish, tiny_experiment
    from harness import experiment as experiments
    from harness import graph, manifest
    from harness.cli.run import _targets, quiet
    from harness.runner import local

    place = Path(tempfile.mkdtemp(prefix="cai-damage-"))
    if (args.run is None) != (args.experiment is None):
        parser.error("give RUN and EXPERIMENT, or neither")
    experiment = args.experiment or tiny_experiment(place)
    run = place / "run"
    if args.run is not None:
        shutil.copytree(args.run, run)
    elif (done := finish(experiment, run)).returncode:
        raise SystemExit(f"the tiny run failed: {done.stderr[-500:]}")
    quiet()
    settings = experiments.load(experiment)
    targets = _targets(settings, experiment)
    (run / ".verified.json").unlink(missing_ok=True)
    hashed = seconds(lambda: graph.plan(targets, run))
    local.execute(targets, run, seed=settings.seed)  # leaves the record of what was verified
    warm = min(seconds(lambda: graph.plan(targets, run)) for _ in range(5))
    with mock.patch.object(manifest.Record, "damage", return_value=[]):
        believed = min(seconds(lambda: graph.plan(targets, run)) for _ in range(5))
    planned = graph.plan(targets, run)
    if unfinished := [item.stage.name for item in planned if item.status != "done"]:
        raise SystemExit(f"{run}: not finished: {', '.join(unfinished)}")

    draw = random.Random(args.seed)
    files = [
        (item.stage.name, item.folder / name)
        for item in planned
        for name in (manifest.read(item.folder) or {})["artefacts"]
    ]
    through_commands = set(draw.sample(range(len(files)), min(args.commands, len(files))))
    failures, changed, began = [], [], time.perf_counter()
    for number, (stage, file) in enumerate(files):
        name, whole = file.relative_to(run).as_posix(), file.read_bytes()
        file.write_bytes(damaged(whole, draw, cut=number % 2 == 0))
        seen = [item.stage.name for item in graph.plan(targets, run) if item.status == "damaged"]
        if seen != [stage]:
            failures.append(f"{name}: the plan shows as damaged: {seen}")
        if number in through_commands:
            for words in (["run", str(experiment), "--out", str(run)], ["verify", str(run)]):
                command = [sys.executable, "-m", "harness.cli", *words]
                if (code := subprocess.run(command, cwd=ROOT, capture_output=True).returncode) != 0:
                    failures.append(f"{name}: `cai {words[0]}` ended with {code}")
        else:
            local.execute(targets, run, seed=settings.seed)
        if any(item.status != "done" for item in graph.plan(targets, run)):
            failures.append(f"{name}: the run is not whole after the repair")
        if file.name not in TIMES and file.suffix in (".parquet", ".safetensors") and file.read_bytes() != whole:
            changed.append(name)
        print(f"\r{number + 1} of {len(files)} artefacts", end="", file=sys.stderr)
    took = time.perf_counter() - began
    print(f"\n{'artefacts':>10}{'failures':>10}{'other bytes':>13}{'minutes':>9}")
    print(f"{len(files):10}{len(failures):10}{len(changed):13}{took / 60:9.1f}")
    print(f"{'plan s':>10}{'all believed s':>16}{'all hashed s':>14}{'ratio':>8}")
    print(f"{warm:10.3f}{believed:16.3f}{hashed:14.3f}{warm / believed:8.2f}")
    for line in [*failures, *(f"{name}: made again with other bytes" for name in changed)][:20]:
        print(line)
    told = {"artefacts": len(files), "failures": failures, "other_bytes": changed, "commands": args.commands}
    print(json.dumps(told | {"plan_seconds": warm, "believed_seconds": believed, "hashed_seconds": hashed}))
    return 1 if failures or changed else 0


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
