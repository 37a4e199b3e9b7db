"""The frontier at matched KL: each arm between its own snapshots, where their ranges of KL overlap."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from reports import figures_matched
from reports.load import RunData

DRAWS = 200


def write(folder: Path, elo: dict[tuple[str, int | None], float], kl: dict[tuple[str, int], float]) -> RunData:
    """A run of these Elos, harmless and (negated) helpful, with a standard error of 10, and KL along RL."""
    (folder / "results" / "elo").mkdir(parents=True)
    (folder / "results" / "goodharting").mkdir()
    rows, rng = [], np.random.default_rng(0)
    for side, sign in (("harmlessness", 1), ("helpfulness", -1)):
        draws = []
        for (arm, step), value in elo.items():
            at = sign * value
            rows.append({"suite": "elo", "arm": arm, "step": step, "metric": f"elo_{side}", "estimate": at,
                         "low": at - 20, "high": at + 20, "n": 30})  # fmt: skip
            sampled = at + rng.normal(0, 10, DRAWS)
            draws.append(pd.DataFrame({"resample": range(DRAWS), "arm": arm, "step": step, "elo": sampled}))
        table = pd.concat([d.astype({"step": "Int64"}) for d in draws], ignore_index=True)
        table.to_parquet(folder / "results" / "elo" / f"{side}_draws.parquet")
    pd.DataFrame(rows).astype({"step": "Int64"}).to_parquet(folder / "results" / "elo" / "summary.parquet")
    curve = pd.DataFrame([{"arm": arm, "step": step, "kl": value} for (arm, step), value in kl.items()])
    curve.to_parquet(folder / "results" / "goodharting" / "overoptimisation.parquet")
    (folder / "run.json").write_text('{"kind": "run"}')
    return RunData(folder)


ELO: dict[tuple[str, int | None], float] = {
    ("pretrained", None): 0.0, ("sl_cai", None): 100.0,
    ("hh_rlhf", 2): 40.0, ("hh_rlhf", None): 80.0, ("rl_cai", 2): 140.0, ("rl_cai", None): 300.0,
}  # fmt: skip
KL = {("hh_rlhf", 2): 1.0, ("hh_rlhf", 4): 4.0, ("rl_cai", 2): 1.0, ("rl_cai", 4): 9.0}


def test_arms_are_drawn_at_the_largest_kl_that_all_reach(tmp_path: Path) -> None:
    """rl_cai ends at 9 nats, hh_rlhf at 4: halfway, in sqrt(KL), between rl_cai's snapshots at 1 and 3."""
    shown = figures_matched.frontier_matched_kl(write(tmp_path, ELO, KL))
    assert shown.table is not None
    own = shown.table.set_index("arm")
    assert own.loc["hh_rlhf", "estimate_harmless"] == pytest.approx(80.0)
    assert own.loc["rl_cai", "estimate_harmless"] == pytest.approx(220.0)
    assert own.loc["rl_cai", "estimate_helpful"] == pytest.approx(-220.0)
    assert own["kl"].tolist() == [4.0, 4.0]
    width = own["high_harmless"] - own["low_harmless"]
    assert width["rl_cai"] == pytest.approx(2 * 1.96 * 10 / np.sqrt(2), rel=0.25)  # the mean of two Elos of error 10
    assert width["hh_rlhf"] == pytest.approx(2 * 1.96 * 10, rel=0.25)
    assert "At a KL of 4 nats" in shown.reading


def test_a_near_target_lies_between_the_start_of_rl_and_the_first_snapshot(tmp_path: Path) -> None:
    kl = KL | {("hh_rlhf", 2): 0.1, ("hh_rlhf", 4): 0.25}
    own = figures_matched.frontier_matched_kl(write(tmp_path, ELO, kl)).table
    assert own is not None
    assert own.set_index("arm").loc["rl_cai", "estimate_harmless"] == pytest.approx(120.0)


def test_where_ranges_of_kl_do_not_overlap_nothing_is_drawn(tmp_path: Path) -> None:
    """Without the models that RL started from, an arm's range begins at its first snapshot."""
    no_start = {player: elo for player, elo in ELO.items() if player[0] in ("hh_rlhf", "rl_cai")}
    kl = {("hh_rlhf", 2): 0.1, ("hh_rlhf", 4): 0.5, ("rl_cai", 2): 1.0, ("rl_cai", 4): 9.0}
    shown = figures_matched.frontier_matched_kl(write(tmp_path / "two", no_start, kl))
    assert shown.figure is None
    assert "ranges of KL do not overlap" in str(shown.missing)
    three = no_start | {("helpful_only", 2): 10.0, ("helpful_only", None): 20.0}
    kl |= {("helpful_only", 2): 0.2, ("helpful_only", 4): 0.6}
    shown = figures_matched.frontier_matched_kl(write(tmp_path / "three", three, kl))
    assert shown.table is not None
    assert set(shown.table["arm"]) == {"helpful_only", "hh_rlhf"}
    assert "Not measured, since it has no snapshot so near to its start: rl_cai" in shown.reading


def test_one_arm_is_no_comparison_and_responses_have_no_kl(run_folder: Path, tmp_path: Path) -> None:
    one = {player: elo for player, elo in ELO.items() if player[0] != "hh_rlhf"}
    shown = figures_matched.frontier_matched_kl(write(tmp_path / "one", one, KL))
    assert "fewer than two arms" in str(shown.missing)
    shutil.copytree(run_folder, tmp_path / "eval")
    (tmp_path / "eval" / "run.json").write_text('{"kind": "eval"}')
    assert "responses alone" in str(figures_matched.frontier_matched_kl(RunData(tmp_path / "eval")).missing)
