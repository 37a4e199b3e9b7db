"""What noise makes the claims say, and whether they find what is there: the table of docs/claims-validation.md.

Studies in which nothing is so are simulated by kind (tests/suites/claims_studies.py), at 50, 200 and 1,000 prompts and
standard deviations of scores of 0.01, 1 and 10; a verdict is decisive when it is "reproduced" or "contradicted". Each
claim is judged as if it alone were measured, so that no correction for the others helps it. Power: how many studies
find a claim whose true values all lie as far past their bounds as `mde` says.

    python benchmarks/null_battery.py --studies 40 --out docs/claims-validation.md

takes about an hour and a half on one core. Prints the table, then one JSON line.
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
HEAD = """# What noise makes of the claims
Made by `python benchmarks/null_battery.py --studies {runs} --out docs/claims-validation.md`; a quick version of it is
in the tests. Studies in which nothing is so are simulated at {sizes} prompts and with standard deviations of scores of
{spreads}, {runs} of each. A verdict is decisive when it is *reproduced* or *contradicted*; at most 5 % may be, claim by
claim, as if each were the only one measured.

"Trusted" waves a random judge through its tests, to see what the statistics alone let pass. In a run it fails them and
the verdict is *judge cannot tell*.

## Decisive verdicts where nothing is so
| kind of study | claim | decisive | of | share, 95 % | reproduced | contradicted | worst cell |
|---|---:|---:|---:|---|---:|---:|---:|
"""
POWER = """
## Power
Share of {runs} studies that find the claim when every value that it needs lies as far past its bound as the smallest
effect (`mde`) says; asked for is 80 %. Alone, and as the first of 16 claims in Holm's correction.

| claim | 50 prompts, alone | 50, of 16 | 200, alone | 200, of 16 |
|---:|---:|---:|---:|---:|
"""


def battery(kind: str, runs: int) -> dict[int, dict[tuple[int, float], Counter[str]]]:
    """Verdicts by claim, then by size and spread."""
    null, numbers = studies.NULLS[kind]
    found: dict[int, dict[tuple[int, float], Counter[str]]] = {number: {} for number in numbers}
    for n, sd in product(SIZES, SPREADS):
        for run in range(runs):
            rng = np.random.default_rng([run, n, int(sd * 100), len(kind)])
            for number, verdict in studies.verdicts(null(n, sd, rng), numbers).items():
                found[number].setdefault((n, sd), Counter())[verdict] += 1
    return found


def row(kind: str, number: int, cells: dict[tuple[int, float], Counter[str]]) -> tuple[str, float]:
    total = sum(cells.values(), Counter())
    decisive, of = sum(total[verdict] for verdict in DECISIVE), total.total()
    share = wilson(decisive, of)
    worst = max(sum(cell[verdict] for verdict in DECISIVE) / cell.total() for cell in cells.values())
    shown = f"{share.estimate:.1%} ({share.low:.1%} to {share.high:.1%})"
    parts = [kind, str(number), str(decisive), str(of), shown, *(str(total[verdict]) for verdict in DECISIVE)]
    return f"| {' | '.join(parts)} | {worst:.0%} |", share.estimate


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--studies", type=int, default=40, help="of each kind, size and spread")
    options.add_argument("--out", type=Path, help="write the tables here as Markdown")
    chosen = options.parse_args()
    began, lines, shares = time.monotonic(), [], {}
    with studies.counts_kept():
        for kind in studies.NULLS:
            for number, cells in battery(kind, chosen.studies).items():
                line, shares[f"{kind}/{number}"] = row(kind, number, cells)
                lines.append(line)
                print(line, flush=True)
    runs, power, weakest = 1000, [], 1.0
    for claim in studies.CLAIMS:
        found = [studies.found_at_mde(claim.id, n, runs, tests) for n in (50, 200) for tests in (1, 16)]
        weakest = min(weakest, *found)
        power.append(f"| {claim.id} | {' | '.join(f'{share:.1%}' for share in found)} |")
        print(power[-1], flush=True)
    if chosen.out is not None:
        head = HEAD.format(
            runs=chosen.studies, sizes=", ".join(map(str, SIZES)), spreads=", ".join(f"{sd:g}" for sd in SPREADS)
        )
        text = head + "\n".join(lines) + "\n" + POWER.format(runs=runs) + "\n".join(power) + "\n"
        chosen.out.write_text(text, encoding="utf-8")
    print(json.dumps({"worst": max(shares.values()), "weakest_power": weakest, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
