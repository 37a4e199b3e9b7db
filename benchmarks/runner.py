"""What a stage costs beside its work: locally, on Ray, and a bare task of Ray's; and a study of seeds, at once or not.

    python benchmarks/runner.py [--stages 1000] [--study] [--out FOLDER]

Stages that do nothing, none waiting for another, by the local runner and by the Ray runner with two workers, beside as
many tasks of Ray's that do nothing either; each kind is warmed up with ten. With `--study`, all arms of the tests' tiny
random model at three seeds, on two workers and locally, one after the other; tables and weights are compared. Prints a
table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kill_campaign import ROOT, artefacts, command, tiny_experiment

sys.path.insert(0, str(ROOT))
from harness.graph import Stage, Work
from harness.runner import local
from harness.runner import ray as on_ray
from harness.runner.schedule import Run


def nothing(work: Work) -> None:
    return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=1000)
    parser.add_argument("--study", action="store_true")
    parser.add_argument("--out", type=Path, help="default: a temporary folder")
    args = parser.parse_args()
    place = args.out or Path(tempfile.mkdtemp(prefix="cai-runner-"))
    place.mkdir(parents=True, exist_ok=True)
    took = overhead(args.stages, place)
    print(f"{'a stage that does nothing':30}{'ms':>8}")
    for what, milliseconds in took.items():
        print(f"{what:30}{milliseconds:8.1f}")
    found: dict[str, Any] = {"stages": args.stages, "milliseconds": took}
    if args.study:
        found["study"] = study(place)
        print(f"{'three seeds':30}{'s':>8}")
        for what in ("local", "ray"):
            print(f"{what:30}{found['study'][what]:8.0f}")
    print(json.dumps(found))
    return 0


def overhead(n: int, place: Path) -> dict[str, float]:
    """Milliseconds a stage, or a bare task."""
    import ray

    def stages(count: int) -> list[Stage]:
        return [Stage(f"s{number}", nothing, {"number": number}, kind="table") for number in range(count)]

    took = {}
    with on_ray.cluster():
        task = ray.remote(max_retries=0)(lambda: None)
        for count in (10, n):  # the first is the warm-up
            began = time.monotonic()
            ray.get([task.remote() for _ in range(count)])
            took["a bare task of Ray's"] = 1000 * (time.monotonic() - began) / count
            began = time.monotonic()
            on_ray.execute([Run(stages(count), place / f"ray-{count}", 0)], workers=2)
            took["Ray"] = 1000 * (time.monotonic() - began) / count
    for count in (10, n):
        began = time.monotonic()
        local.execute(stages(count), place / f"local-{count}", seed=0)
        took["local"] = 1000 * (time.monotonic() - began) / count
    return took


def study(place: Path) -> dict[str, object]:
    """Seconds of a study of three seeds by each runner, and the artefacts that differ."""
    experiment = tiny_experiment(place)
    experiment.write_text(experiment.read_text() + "seeds: [0, 1, 2]\n")
    took: dict[str, object] = {}
    for runner in ("local", "ray"):
        options = ["--runner", "ray", "--workers", "2"] if runner == "ray" else []
        began = time.monotonic()
        subprocess.run([*command(experiment, place / runner), *options], cwd=ROOT, check=True, capture_output=True)
        took[runner] = round(time.monotonic() - began, 1)
    alone, at_once = artefacts(place / "local"), artefacts(place / "ray")
    took["different"] = [name for name in sorted(alone.keys() | at_once.keys()) if alone.get(name) != at_once.get(name)]
    return took


if __name__ == "__main__":
    sys.exit(main())
