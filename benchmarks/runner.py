"""What a stage costs beside its work: locally, on Ray, and a bare task of Ray's; sampling by two workers; a study.

    python benchmarks/runner.py [--stages 1000] [--sampling ROWS] [--study] [--out FOLDER]

Stages that do nothing, none waiting for another, by the local runner and by the Ray runner with two workers, beside as
many tasks of Ray's that do nothing either; each kind is warmed up with ten. With `--sampling`, so many answers of a
random model by one single-threaded worker and by two that share the rows, as a user runs it, with what starting an
engine takes (1,000 take one worker two minutes); the tables are compared byte for byte. With `--study`, all arms of the
tests' tiny random model at three seeds, on two workers and locally, one after the other; tables and weights are
compared. Prints a table, then one JSON line.
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

import pandas as pd
from kill_campaign import ROOT, artefacts, command, tiny_experiment

sys.path.insert(0, str(ROOT))
from harness import store
from harness.experiment import Compute, Need
from harness.graph import Stage, Work
from harness.runner import local
from harness.runner import ray as on_ray
from harness.runner.schedule import Run


def nothing(work: Work) -> None:
    return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=1000)
    parser.add_argument("--sampling", type=int, metavar="ROWS")
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
    if args.sampling:
        found["sampling"] = sampling(args.sampling, place)
        print(f"{'sampling':30}{'s':>8}")
        for workers in ("1", "2"):
            print(f"{workers + (' workers' if workers == '2' else ' worker'):30}{found['sampling'][workers]:8.1f}")
        print(f"{'times':30}{found['sampling']['times']:8.2f}")
    if args.study:
        found["study"] = study(place)
        print(f"{'three seeds':30}{'s':>8}")
        for what in ("local", "ray"):
            print(f"{what:30}{found['study'][what]:8.0f}")
    print(json.dumps(found))
    return 0 if found.get("sampling", {"same": True})["same"] else 1


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


def answer(work: Work) -> None:
    """Answers of 64 tokens, 16 a batch."""
    from harness.models.open import open_model

    model = open_model(work.models["base"], engine="transformers", batch_size=16)
    prompts = [f"Say what {number} is." for number in range(work.settings.rows)]
    said = model.sample(prompts, max_new_tokens=64, seed=0)
    store.write_table(work.folder / "answers.parquet", pd.DataFrame({"answer": [one.text for one in said]}))


def sampling(rows: int, place: Path) -> dict[str, Any]:
    """Seconds that one worker and two take over the same answers, from the stage's manifest."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tiny_experiment(place)
    model = place / "sampled"
    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(place / "tiny")
    torch.manual_seed(0)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    LlamaForCausalLM(LlamaConfig(**shape, **ids)).save_pretrained(model)
    tokenizer.save_pretrained(model)
    stage = Stage("answers", answer, {"rows": rows}, models={"base": str(model)}, kind="sample")
    found: dict[str, Any] = {"rows": rows}
    tables = []
    with on_ray.cluster():
        for workers in (1, 2):
            asked = Compute(sample=Need(workers=workers, cpus=1))
            folder = on_ray.execute([Run([stage], place / f"sampled-by-{workers}", 0)], asked=asked)[0]["answers"]
            found[str(workers)] = json.loads((folder / "manifest.json").read_text())["wall_seconds"]
            tables.append((folder / "answers.parquet").read_bytes())
    found |= {"times": round(found["1"] / found["2"], 2), "same": tables[0] == tables[1]}
    return found


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
