"""SIGKILL at random moments: does a run that was killed end with the same artefacts as one that was left alone?

    python benchmarks/kill_campaign.py [--kills 50] [--seed 0] [--model embedded] [--out FOLDER]

All arms of a tiny random model, or of `--model`. One run is left alone; others are started and killed after a
random time, again and again, until `--kills` kills have hit a working process, and are then run to their end. Compared
byte for byte: every Parquet table of every stage and every model.safetensors. Prints a table, then one JSON line; exits
with 1 where anything differs or a run did not resume.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# When a finished stage or a run's tables were written, which machine time it took: no result.
TIMES = {"run.json", "stages.parquet"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="tiny", help="`tiny`, or any value of `models.base`")
    parser.add_argument("--out", type=Path, help="default: a temporary folder")
    args = parser.parse_args()
    place = args.out or Path(tempfile.mkdtemp(prefix="cai-kills-"))
    place.mkdir(parents=True, exist_ok=True)
    experiment = tiny_experiment(place, args.model)
    began = time.monotonic()
    if finish(experiment, place / "alone").returncode:
        raise SystemExit("the run that was left alone failed; see above")
    whole = time.monotonic() - began
    began = time.monotonic()
    finish(experiment, place / "alone")  # nothing left to do: what a start alone takes
    start = time.monotonic() - began
    expected, draw = artefacts(place / "alone"), random.Random(args.seed)
    kills, failures, runs = 0, [], 0
    while kills < args.kills:
        runs += 1
        folder = place / f"killed-{runs}"
        while kills < args.kills and killed(experiment, folder, draw.uniform(0, start + whole / 3)):
            kills += 1
            print(f"\r{kills} kills, run {runs}", end="", file=sys.stderr)
        done = finish(experiment, folder)
        if done.returncode:
            failures.append(f"{folder.name}: did not resume: {done.stderr.strip()[-200:]}")
            continue
        found = artefacts(folder)
        failures += [
            f"{folder.name}: {name}"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
    print(f"\n{'kills':>8}{'runs':>8}{'artefacts':>12}{'different':>12}{'seconds alone':>16}")
    print(f"{kills:8}{runs:8}{len(expected):12}{len(failures):12}{whole:16.1f}")
    for line in failures[:20]:
        print(line)
    print(json.dumps({"kills": kills, "runs": runs, "artefacts": len(expected), "different": failures[:20]}))
    return 1 if failures else 0


def tiny_experiment(place: Path, model: str = "tiny") -> Path:
    """The tests' smallest experiment with all arms, on a tiny random model or another."""
    sys.path.insert(0, str(ROOT))
    from tests.conftest import TINY, save_tiny_model

    if model == "tiny":
        model = str(place / "tiny")
        save_tiny_model(place / "tiny")
    file = place / "tiny.yaml"
    file.write_text(TINY.format(model=model))
    return file


def command(experiment: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "harness.cli", "run", str(experiment), "--out", str(folder)]


def finish(experiment: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(experiment, folder), cwd=ROOT, capture_output=True, text=True)


def killed(experiment: Path, folder: Path, after: float) -> bool:
    """Whether the run was still at work after so many seconds, and was killed."""
    process = subprocess.Popen(
        command(experiment, folder), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def artefacts(run: Path) -> dict[str, str]:
    """SHA-256 of every table and every model's weights, by path; keys of stages are the same in every run."""
    files = [path for pattern in ("*.parquet", "*.safetensors") for path in run.rglob(pattern)]
    kept = [path for path in files if path.name not in TIMES and ".partial" not in str(path.relative_to(run))]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


if __name__ == "__main__":
    sys.exit(main())
