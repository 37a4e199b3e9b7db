"""SIGKILL of a worker and of the driver under `--runner ray`: does the run end with the same artefacts?

    python benchmarks/runner_faults.py [--out FOLDER] [--own-cluster]

All arms of the tests' tiny random model. One run is left alone, without Ray. Six others run on Ray with two workers: in
the middle of sampling, of PM training and of PPO the worker of that stage, or the driver, is killed. After a worker's
loss the run must end by itself, after the driver's with the same command again. The cluster is one that stays up
(`--address`), so that a lost driver leaves workers behind; with `--own-cluster` each driver has its own. Compared byte
for byte: every Parquet table and every model.safetensors. Prints a table, then one JSON line; exits with 1 where
anything differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from kill_campaign import ROOT, artefacts, command, finish, tiny_experiment

# A stage, and the file by which its work is seen to be in the middle.
MIDDLE = {
    "sampling": ("chains.critiqued", "done.jsonl"),
    "PM training": ("pm.rl_cai", "trainer"),
    "PPO": ("rl_cai", "checkpoint/*"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: a temporary folder")
    parser.add_argument("--own-cluster", action="store_true")
    args = parser.parse_args()
    place = args.out or Path(tempfile.mkdtemp(prefix="cai-faults-"))
    place.mkdir(parents=True, exist_ok=True)
    experiment = tiny_experiment(place)
    if finish(experiment, place / "alone").returncode:
        raise SystemExit("the run that was left alone failed; see above")
    options = ["--runner", "ray"]
    if not args.own_cluster:
        import ray

        context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
        options += ["--address", context.address_info["gcs_address"]]
    expected, rows = artefacts(place / "alone"), []
    print(f"{'what':14}{'where':>16}{'lost in':>10}{'commands':>10}{'told':>6}{'different':>11}{'seconds':>9}")
    for where in MIDDLE:
        for what in ("worker", "driver"):
            folder = place / f"{what}-{where.replace(' ', '-')}"
            row = killed(experiment, folder, options, what, where)
            found = artefacts(folder)
            row["different"] = [n for n in sorted(expected.keys() | found.keys()) if expected.get(n) != found.get(n)]
            rows.append(row)
            print(
                f"{what:14}{where:>16}{row['middle']!s:>10}{row['commands']:10}{row['told']:6}"
                f"{len(row['different']):11}{row['seconds']:9.0f}",
                flush=True,
            )
    print(json.dumps({"artefacts": len(expected), "rows": rows}))
    return 1 if any(row["different"] or row["failed"] for row in rows) else 0


def killed(experiment: Path, folder: Path, options: list[str], what: str, where: str) -> dict[str, object]:
    """One run with one kill, carried to its end.

    middle: whether the stage was still at work when the signal had been sent; told: lines about lost workers.
    """
    began = time.monotonic()
    stage, file = MIDDLE[where]
    words = [*command(experiment, folder), *options]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    home = folder / "stages" / stage
    while not list(home.glob(f"*.partial/{file}")):
        if process.poll() is not None:
            raise SystemExit(f"{stage} was never seen at work: {process.communicate()[0][-2000:]}")
        time.sleep(0.005)
    victims = list(holders(home / ".lock")) if what == "worker" else [psutil.Process(process.pid)]
    for victim in victims:
        victim.kill()
    middle = bool(victims) and not list(home.glob("*/manifest.json"))
    said, commands = process.communicate()[0], 1
    if process.returncode and what == "driver":
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        commands, said, failed = 2, said + done.stdout + done.stderr, done.returncode
    else:
        failed = process.returncode
    if failed:
        print(said[-2000:], file=sys.stderr)
    told = said.count("was lost")
    return {"what": what, "where": where, "middle": middle, "commands": commands, "told": told, "failed": failed,
            "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def holders(lock: Path) -> Iterator[psutil.Process]:
    """The processes that have a lock's file open: the worker that has the stage."""
    for process in psutil.process_iter():
        try:
            if any(Path(opened.path) == lock.resolve() for opened in process.open_files()):
                yield process
        except psutil.Error:
            continue


if __name__ == "__main__":
    sys.exit(main())
