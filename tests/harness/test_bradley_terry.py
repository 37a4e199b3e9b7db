"""Bradley-Terry: against choix and plain optimisation, coverage of its intervals, and the awkward graphs."""

from __future__ import annotations

import choix
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from harness.errors import UserError
from harness.stats.bradley_terry import ELO, BradleyTerry, count_wins, fit_bradley_terry

RUNS, RESAMPLES = 500, 400  # simulated studies (the mean coverage has a standard error of 0.7 %), resamples of each


def simulate(
    rng: np.random.Generator, strengths: np.ndarray, n_prompts: int, nu: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(a, b, outcome, prompt): every pair of arms once a prompt, drawn from Davidson's model."""
    i, j = np.triu_indices(len(strengths), 1)
    a, b, prompt = np.tile(i, n_prompts), np.tile(j, n_prompts), np.repeat(np.arange(n_prompts), len(i))
    half = (strengths[a] - strengths[b]) / 2
    win, loss = np.exp(half), np.exp(-half)
    u = rng.uniform(size=len(a)) * (win + loss + nu)
    return a, b, np.where(u < win, 1.0, np.where(u < win + nu, 0.5, 0.0)), prompt


def in_order(fit: BradleyTerry, k: int) -> np.ndarray:
    """Elo of arms 0..k-1, centred."""
    elo = np.array([fit.elo[fit.index(arm)] for arm in range(k)])
    return elo - elo.mean()


def log_odds(win: float, tie: float, loss: float) -> float:
    return float(np.log((win + tie / 2) / (loss + tie / 2)))


# ---------------------------------------------------------------- against independent references


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 6), extra=st.integers(0, 60))
def test_agrees_with_choix_to_1e_6(seed: int, k: int, extra: int) -> None:
    rng = np.random.default_rng(seed)
    cycle = [(i, (i + 1) % k) for i in range(k)] + [((i + 1) % k, i) for i in range(k)]  # so that a maximum exists
    games = cycle + [tuple(rng.choice(k, 2, replace=False).tolist()) for _ in range(extra)]
    fit = fit_bradley_terry([w for w, _ in games], [x for _, x in games], np.ones(len(games)), n_resamples=0)
    reference = choix.ilsr_pairwise(k, games, max_iter=100_000, tol=1e-12)
    assert not fit.separated
    np.testing.assert_allclose(in_order(fit, k) / ELO, reference - reference.mean(), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 5))
def test_soft_outcomes_agree_with_choix_on_the_matrix_of_wins(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, _, _ = simulate(rng, np.zeros(k), 5)
    p = rng.uniform(0.02, 0.98, size=len(a))
    wins = np.zeros((k, k))
    np.add.at(wins, (a, b), p)
    np.add.at(wins, (b, a), 1 - p)
    reference = choix.ilsr_pairwise_dense(wins, max_iter=100_000, tol=1e-12)
    fit = fit_bradley_terry(a, b, p, n_resamples=0)
    np.testing.assert_allclose(in_order(fit, k) / ELO, reference - reference.mean(), atol=1e-6)


def davidson_loss(x: np.ndarray, a: np.ndarray, b: np.ndarray, outcome: np.ndarray) -> float:
    """Minus the log-likelihood of Davidson's model, row by row; x holds the strengths, then log nu."""
    half = (x[a] - x[b]) / 2
    score = np.select([outcome == 1, outcome == 0.5], [half, np.full_like(half, x[-1])], -half)
    return float(-(score - np.log(np.exp(half) + np.exp(-half) + np.exp(x[-1]))).sum())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 4), nu=st.floats(0.2, 3))
def test_davidson_ties_agree_with_plain_optimisation(seed: int, k: int, nu: float) -> None:
    a, b, outcome, _ = simulate(np.random.default_rng(seed), np.linspace(-0.4, 0.4, k), 60, nu)
    fit = fit_bradley_terry(a, b, outcome, ties=True, n_resamples=0)
    found = minimize(davidson_loss, np.zeros(k + 1), (a, b, outcome), method="BFGS", options={"gtol": 1e-7})
    strengths = found.x[:k] - found.x[:k].mean()
    np.testing.assert_allclose(in_order(fit, k) / ELO, strengths, atol=1e-4)
    assert fit.nu == pytest.approx(np.exp(found.x[k]), rel=1e-4)
    own = davidson_loss(np.append(in_order(fit, k) / ELO, np.log(fit.nu)), a, b, outcome)
    assert own <= found.fun + 1e-9  # never below the other's likelihood


@pytest.mark.parametrize(("win", "tie", "loss"), [(50, 30, 20), (10, 80, 10), (33, 1, 66)])
def test_two_arms_with_ties_in_closed_form(win: int, tie: int, loss: int) -> None:
    outcome = [1.0] * win + [0.5] * tie + [0.0] * loss
    n = len(outcome)
    davidson = fit_bradley_terry(["x"] * n, ["y"] * n, outcome, ties=True, anchor="y", n_resamples=0)
    assert davidson.elo[davidson.index("x")] == pytest.approx(400 * np.log10(win / loss), abs=1e-6)
    assert davidson.nu == pytest.approx(tie / np.sqrt(win * loss), rel=1e-8)
    halves = fit_bradley_terry(["x"] * n, ["y"] * n, outcome, ties=False, anchor="y", n_resamples=0)
    assert halves.elo[halves.index("x")] == pytest.approx(ELO * log_odds(win, tie, loss), abs=1e-6)
    assert halves.nu == 0


# ---------------------------------------------------------------- coverage


@pytest.mark.parametrize(("nu", "seed"), [(0.0, 1), (0.7, 2)])
def test_95_percent_intervals_cover_between_93_and_97_percent(nu: float, seed: int) -> None:
    truth = np.array([0.0, 0.5, 1.2])
    covered = []
    for run in range(RUNS):
        a, b, outcome, prompt = simulate(np.random.default_rng([seed, run]), truth, 200, nu)
        fit = fit_bradley_terry(a, b, outcome, clusters=prompt, ties=nu > 0, anchor=0, seed=run, n_resamples=RESAMPLES)
        for x, y in ((1, 0), (2, 0), (2, 1)):
            interval = fit.difference(x, y).interval()
            covered.append(interval.low <= ELO * (truth[x] - truth[y]) <= interval.high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_strengths_are_recovered_from_many_comparisons() -> None:
    truth = np.array([0.0, -0.8, 0.3, 1.5])
    a, b, outcome, prompt = simulate(np.random.default_rng(5), truth, 20_000, 0.5)
    fit = fit_bradley_terry(a, b, outcome, clusters=prompt, ties=True, n_resamples=0)
    np.testing.assert_allclose(in_order(fit, 4), ELO * (truth - truth.mean()), atol=6)
    assert fit.nu == pytest.approx(0.5, abs=0.02)


def test_comparisons_of_one_prompt_are_resampled_together() -> None:
    a, b, outcome, prompt = simulate(np.random.default_rng(6), np.array([0.0, 0.5]), 100)
    once = fit_bradley_terry(a, b, outcome, clusters=prompt, seed=3)
    copied = [np.repeat(part, 10) for part in (a, b, outcome, prompt)]
    tenfold = fit_bradley_terry(*copied[:3], clusters=copied[3], seed=3)
    first, second = once.interval(1), tenfold.interval(1)
    assert (second.low, second.high, second.n) == pytest.approx((first.low, first.high, 100), abs=1e-6)
    apart = fit_bradley_terry(*copied[:3], seed=3).interval(1)
    assert apart.high - apart.low < (first.high - first.low) / 2


# ---------------------------------------------------------------- symmetries


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 4), ties=st.booleans())
def test_turning_a_comparison_round_and_weights_for_copies_change_nothing(seed: int, k: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    a, b, outcome, _ = simulate(rng, np.zeros(k), 12, 0.5)
    turn = rng.integers(0, 2, size=len(a)).astype(bool)
    turned = fit_bradley_terry(
        np.where(turn, b, a), np.where(turn, a, b), np.where(turn, 1 - outcome, outcome), ties=ties, n_resamples=0
    )
    plain = fit_bradley_terry(a, b, outcome, ties=ties, n_resamples=0)
    np.testing.assert_allclose(in_order(turned, k), in_order(plain, k), atol=1e-4)
    copies = rng.integers(1, 4, size=len(a))
    repeated = [np.repeat(part, copies) for part in (a, b, outcome)]
    weighted = fit_bradley_terry(a, b, outcome, weights=copies, ties=ties, n_resamples=0)
    np.testing.assert_allclose(
        in_order(weighted, k), in_order(fit_bradley_terry(*repeated, ties=ties, n_resamples=0), k), atol=1e-4
    )


def test_anchor_shifts_and_never_stretches() -> None:
    a, b, outcome, prompt = simulate(np.random.default_rng(7), np.array([0.0, 0.6, 1.0]), 80)
    fits = [
        fit_bradley_terry(a, b, outcome, clusters=prompt, anchor=arm, anchor_elo=elo, n_resamples=200)
        for arm, elo in ((None, 0.0), (2, 1000.0))
    ]
    assert fits[0].elo[fits[0].index(0)] == 0  # by default the first seen
    assert fits[1].elo[fits[1].index(2)] == pytest.approx(1000)
    assert vars(fits[1].interval(2)) == pytest.approx({"estimate": 1000, "low": 1000, "high": 1000, "n": 80})
    gaps = [fit.difference(1, 0).interval() for fit in fits]
    assert vars(gaps[0]) == pytest.approx(vars(gaps[1]), abs=1e-6)


def test_same_seed_same_draws() -> None:
    a, b, outcome, prompt = simulate(np.random.default_rng(8), np.array([0.0, 0.6]), 50)
    draws = [fit_bradley_terry(a, b, outcome, clusters=prompt, seed=s, n_resamples=50).draws for s in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


def test_win_rates_count_a_tie_as_half() -> None:
    tally = count_wins(["x"] * 4, ["y"] * 4, [1.0, 1.0, 0.5, 0.0], ties=True, n_resamples=0)
    assert tally.win_rates().tolist() == [[0.625]]


# ---------------------------------------------------------------- awkward graphs


def test_a_disconnected_graph_names_its_components() -> None:
    with pytest.raises(UserError) as caught:
        fit_bradley_terry(["a", "b", "c", "d"], ["b", "a", "d", "e"], [1, 1, 1, 1])
    assert "2 groups" in str(caught.value)
    assert "{a, b} and {c, d, e}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_arm_that_always_wins_is_finite_and_flagged() -> None:
    rng = np.random.default_rng(9)
    a, b, outcome, prompt = simulate(rng, np.array([0.0, 0.4, 0.2]), 60)
    best = np.full(60, 3)
    fit = fit_bradley_terry(
        np.concatenate([a, best]), np.concatenate([b, np.arange(60) % 3]), np.concatenate([outcome, np.ones(60)]),
        clusters=np.concatenate([prompt, np.arange(60)]), n_resamples=200,
    )  # fmt: skip
    assert fit.separated
    assert fit.groups[0] == (3,)
    assert set(fit.groups[1]) == {0, 1, 2}
    assert fit.separated_share == 1
    assert np.isfinite(fit.elo).all()
    assert np.isfinite(fit.draws).all()
    assert fit.elo.argmax() == fit.index(3)
    assert fit.difference(3, 1).interval().low > 0


@pytest.mark.parametrize("n", [1, 5, 50])
def test_a_clean_sweep_is_half_a_win_each_way(n: int) -> None:
    fit = fit_bradley_terry(["x"] * n, ["y"] * n, [1.0] * n, anchor="y", n_resamples=0)
    assert fit.separated
    assert fit.elo[fit.index("x")] == pytest.approx(400 * np.log10((n + 0.5) / 0.5), abs=1e-6)


def test_only_ties_mean_equal_strengths() -> None:
    fit = fit_bradley_terry(["x"] * 9, ["y"] * 9, [0.5] * 9, ties=True, n_resamples=50)
    np.testing.assert_allclose(fit.elo, 0, atol=1e-6)
    assert np.isfinite([*fit.elo, fit.nu]).all()


def test_extreme_soft_outcomes_stay_finite() -> None:
    p = np.concatenate([np.full(50, 1 - 1e-7), np.full(50, 1e-7), np.full(3, 0.9)])
    fit = fit_bradley_terry(["x"] * 103, ["y"] * 103, p, n_resamples=100)
    assert np.isfinite(fit.draws).all()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((["a"], ["b"], [1.5]), {}, "outcome: row 0 is 1.5"),
        ((["a", "a"], ["b", "b"], [1, -0.1]), {}, "outcome: row 1 is -0.1"),
        ((["a", "a"], ["b", "b"], [1, np.nan]), {}, "outcome: row 1 is nan"),
        ((["a", "b"], ["b", "b"], [1, 0]), {}, "row 1 compares b with b"),
        ((["a"], [None], [1]), {}, "row 0 compares a with None"),
        ((["a"], ["b", "c"], [1]), {}, "differ in length"),
        ((["a"], ["b"], [1]), {"weights": [-1]}, "weight: row 0 is -1"),
        ((["a"], ["b"], [1]), {"anchor": "z"}, "anchor z: not among the compared arms; choose one of a, b"),
        (([], [], []), {}, "non-empty"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fit_bradley_terry(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_an_unknown_arm_is_an_error() -> None:
    fit = fit_bradley_terry(["a", "b"], ["b", "a"], [1, 1], n_resamples=0)
    with pytest.raises(UserError, match="z: not among the compared arms"):
        fit.interval("z")
