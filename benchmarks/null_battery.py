"""What noise makes the claims say, and whether they find what is there: the tables of docs/claims-validation.md.

Studies in which nothing is so are simulated by kind (tests/suites/claims_studies.py), at 50, 200 and 1,000 prompts and
standard deviations of scores of 0.01, 1 and 10; a verdict is decisive when it is "reproduced" or "contradicted". Each
claim is judged as if it alone were measured, so that no correction for the others helps it. Power: how many studies
find a claim whose true values all lie as far past their bounds as `mde` says.

    python benchmarks/null_battery.py --kept counts.json --out battery.md

takes about a quarter of an hour on one core. What is in `counts.json` is not simulated again, so that a battery can be
made in sittings, with `--only` kind by kind. Prints the tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.stats import wilson
from suites import claims
from tests.suites import claims_studies as studies

SIZES, SPREADS = (50, 200, 1000), (0.01, 1.0, 10.0)
DECISIVE = (claims.REPRODUCED, claims.CONTRADICTED)
POWER = "power"
RUNS = {  # studies of each size and spread: a study with Elo takes a second; and of each cell of power
    "identical arms": 20,
    "random judge": 8,
    "random judge, trusted": 20,
    "revisions that do nothing": 100,
    "feedback model at chance": 150,
    "equal PMs": 150,
    POWER: 4000,
}
AT_ONCE = 1000  # studies of power: a study's resamples are held in memory
NULL_HEAD = """## Decisive verdicts where nothing is so
| kind of study | claim | decisive | of | share, 95 % | reproduced | contradicted | worst cell |
|---|---:|---:|---:|---|---:|---:|---:|
"""
POWER_HEAD = """## Power
| claim | 50 prompts, alone | 50, of 16 | 200, alone | 200, of 16 |
|---:|---:|---:|---:|---:|
"""
Cells = dict[str, Counter[str]]  # verdicts by "PROMPTS/SPREAD"


def battery(kind: str) -> dict[str, Cells]:
    """Verdicts of RUNS[kind] studies a cell, by claim."""
    null, numbers = studies.NULLS[kind]
    found: dict[str, Cells] = {str(number): {} for number in numbers}
    for n, sd in product(SIZES, SPREADS):
        for run in range(RUNS[kind]):
            rng = np.random.default_rng([run, n, int(sd * 100), len(kind)])
            for number, verdict in studies.verdicts(null(n, sd, rng), numbers).items():
                found[str(number)].setdefault(f"{n}/{sd:g}", Counter())[verdict] += 1
    return found


def power() -> dict[str, list[float]]:
    """Shares found at 50 and 200 prompts, alone and as one of 16, by claim."""
    batches = RUNS[POWER] // AT_ONCE
    return {
        str(claim.id): [
            sum(studies.found_at_mde(claim.id, n, AT_ONCE, tests, seed) for seed in range(batches)) / batches
            for n in (50, 200)
            for tests in (1, 16)
        ]
        for claim in studies.CLAIMS
    }


def row(kind: str, number: str, cells: Cells) -> str:
    total = sum(map(Counter, cells.values()), Counter[str]())
    decisive, of = sum(total[verdict] for verdict in DECISIVE), total.total()
    share = wilson(decisive, of)
    worst = max(sum(cell.get(verdict, 0) for verdict in DECISIVE) / sum(cell.values()) for cell in cells.values())
    shown = f"{share.estimate:.1%} ({share.low:.1%} to {share.high:.1%})"
    parts = [kind, number, str(decisive), str(of), shown, *(str(total[verdict]) for verdict in DECISIVE)]
    return f"| {' | '.join(parts)} | {worst:.0%} |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--only", choices=list(RUNS), action="append", help="these parts alone")
    options.add_argument("--kept", type=Path, help="JSON of what was simulated, read and added to")
    options.add_argument("--out", type=Path, help="write the tables here as Markdown")
    chosen = options.parse_args()
    began = time.monotonic()
    made = json.loads(chosen.kept.read_text(encoding="utf-8")) if chosen.kept and chosen.kept.is_file() else {}
    for part in chosen.only or RUNS:
        if part not in made:
            with studies.counts_kept():
                made[part] = power() if part == POWER else battery(part)
            if chosen.kept:
                chosen.kept.write_text(json.dumps(made), encoding="utf-8")
    rows = [row(kind, number, cells) for kind in made if kind != POWER for number, cells in made[kind].items()]
    shares = [
        f"| {number} | {' | '.join(f'{s:.1%}' for s in found)} |" for number, found in made.get(POWER, {}).items()
    ]
    text = NULL_HEAD + "\n".join(rows) + "\n\n" + POWER_HEAD + "\n".join(shares) + "\n"
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text, encoding="utf-8")
    weakest = min((share for found in made.get(POWER, {}).values() for share in found), default=None)
    print(json.dumps({"parts": list(made), "weakest_power": weakest, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
