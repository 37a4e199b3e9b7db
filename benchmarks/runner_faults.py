"""SIGKILL of workers, engines and the driver under `--runner ray`: does the run end with the same artefacts?

    python benchmarks/runner_faults.py [--out FOLDER] [--own-cluster] [--trainings | --engines]

Arms SL-CAI and RL-CAI of the tests' tiny random model, one run left alone and without Ray, two on Ray with two workers.
In the middle of sampling, of PM training and of PPO the one loses the worker of that stage each time, and must end by
itself; the other loses its driver, and must end when the same command is given again. The cluster is one that stays up
(`--address`), so that a lost driver leaves workers behind; with `--own-cluster` each driver has its own. Compared byte
for byte: every Parquet table and every model.safetensors. Prints a table, then one JSON line; exits with 1 where
anything differs.

`--trainings`: PM training and PPO have two workers each, and lose the one that writes; held against a run whose
trainings have two workers, too, and lose none. `--engines`: sampling, labels and scores have two workers each, and
sampling loses the engine that shares its rows while it carries out a batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import psutil
import yaml
from kill_campaign import ROOT, artefacts, command, tiny_experiment

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
    parser.add_argument("--trainings", action="store_true")
    parser.add_argument("--engines", action="store_true")
    args = parser.parse_args()
    place = args.out or Path(tempfile.mkdtemp(prefix="cai-faults-"))
    place.mkdir(parents=True, exist_ok=True)
    kinds = ("sft", "pm", "rl") if args.trainings else ("sample", "label", "score") if args.engines else ()
    experiment, options = small(place, kinds), ["--runner", "ray"]
    if not args.own_cluster:
        import ray

        context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
        options += ["--address", context.address_info["gcs_address"]]
    words = [*command(experiment, place / "alone"), *(options if args.trainings else [])]
    if start(words, (place / "alone.txt").open("w")).wait():
        raise SystemExit(f"the run that was left alone failed; see {place / 'alone.txt'}")
    expected, rows = artefacts(place / "alone"), []
    heads = f"{'killed':8}{'in the middle of':>30}{'commands':>10}{'told':>6}"
    print(f"{heads}{'artefacts':>11}{'different':>11}{'seconds':>9}")
    for victim in ["training"] if args.trainings else ["engine"] if args.engines else ["worker", "driver"]:
        row = with_kills(experiment, place / victim, options, victim)
        found = artefacts(place / victim)
        row["different"] = [n for n in sorted(expected.keys() | found.keys()) if expected.get(n) != found.get(n)]
        rows.append(row)
        print(
            f"{victim:8}{', '.join(row['middle']):>30}{row['commands']:10}{row['told']:6}{len(expected):11}"
            f"{len(row['different']):11}{row['seconds']:9.0f}",
            flush=True,
        )
    print(json.dumps({"artefacts": len(expected), "rows": rows}))
    return 1 if any(row["different"] or row["failed"] for row in rows) else 0


def small(place: Path, kinds: Sequence[str]) -> Path:
    """The tests' tiny experiment with the arms that RL-CAI needs, and one suite; stages of `kinds` have two workers."""
    file = tiny_experiment(place)
    content = yaml.safe_load(file.read_text())
    content |= {"arms": ["sl_cai", "rl_cai"], "suites": ["pm_score"], "revise": {"rounds": 4}, "pm": {"epochs": 2}}
    content["rl"] |= {"updates": 6}
    content["compute"] = {kind: {"workers": 2, "cpus": 1} for kind in kinds}
    if "sample" in kinds:  # chains that last until an engine is there
        content["scale"] |= {"redteam_prompts": 60, "max_new_tokens": 32, "batch_size": 2}
    file.write_text(yaml.safe_dump(content))
    return file


def with_kills(experiment: Path, folder: Path, options: list[str], victim: str) -> dict[str, Any]:
    """A run with a kill in the middle of each of `MIDDLE`, carried to its end.

    middle: where the stage was still at work after the signal; told: lines about lost workers.
    """
    began, words = time.monotonic(), [*command(experiment, folder), *options]
    log = (folder.parent / f"{victim}.txt").open("w+")
    process, commands, middle = start(words, log), 1, []
    for what, (stage, file) in MIDDLE.items():
        if victim in ("training", "engine") and (what == "sampling") != (victim == "engine"):
            continue
        home = folder / "stages" / stage
        lock = folder / ".workers" / stage / ".lock" if victim == "training" else home / ".lock"
        while not (engines(home) if victim == "engine" else list(home.glob(f"*.partial/{file}"))):
            if process.poll() is not None:
                raise SystemExit(f"{stage} was never seen at work; see {log.name}")
            time.sleep(0.005)
        own = {"driver": [psutil.Process(process.pid)], "engine": engines(home)}
        victims = own.get(victim) or list(holders(lock))
        for found in victims:
            found.kill()
        if victims and not list(home.glob("*/manifest.json")):
            middle.append(what)
        if victim == "driver":
            process.wait()
            process, commands = start(words, log), commands + 1
    failed = process.wait()
    told = Path(log.name).read_text().count("was lost")
    return {"victim": victim, "middle": middle, "commands": commands, "told": told, "failed": failed,
            "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def start(words: list[str], log: IO[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def holders(lock: Path) -> Iterator[psutil.Process]:
    """The processes that have a lock's file open: the worker that has the stage."""
    for process in psutil.process_iter():
        try:
            if any(Path(opened.path) == lock.resolve() for opened in process.open_files()):
                yield process
        except psutil.Error:
            continue


def engines(home: Path) -> list[psutil.Process]:
    """The engines of a stage that carry out a batch: those of its logs' processes (NODE-PROCESS.txt)."""
    found = []
    for log in home.glob("*.partial/logs/*.txt"):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(int(log.stem.rpartition("-")[2]))
            if process.cmdline()[:1] == ["ray::Engine.call"]:
                found.append(process)
    return found


if __name__ == "__main__":
    sys.exit(main())
