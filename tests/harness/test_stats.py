"""Statistics against scipy, statsmodels and plain loops."""

from __future__ import annotations

import time
import tracemalloc
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import normal_power
from statsmodels.stats.proportion import proportion_confint

from harness import stats
from harness.errors import UserError
from harness.stats import Bootstrap, calibration

LEVELS = st.floats(0.5, 0.999)
PROBABILITIES = st.floats(0, 1, allow_nan=False)


def columns(elements: st.SearchStrategy[float], least: int = 1, most: int = 60) -> st.SearchStrategy[np.ndarray]:
    return st.integers(least, most).flatmap(lambda n: arrays(np.float64, n, elements=elements))


def clustered(seed: int, n: int = 300, per: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = np.repeat(rng.normal(size=n), per) + rng.normal(size=n * per)
    return values, np.repeat([f"prompt {i}" for i in range(n)], per)


# ---------------------------------------------------------------- proportions, p-values, power


@given(n=st.integers(1, 500), share=PROBABILITIES, level=LEVELS)
def test_wilson_is_statsmodels(n: int, share: float, level: float) -> None:
    k = round(share * n)
    low, high = proportion_confint(k, n, alpha=1 - level, method="wilson")
    interval = stats.wilson(k, n, level)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)
    assert (interval.estimate, interval.n) == (k / n, n)
    assert interval.low <= interval.estimate <= interval.high


@given(p=columns(PROBABILITIES, most=20))
def test_holm_is_statsmodels(p: np.ndarray) -> None:
    with mock.patch("gc.collect"):  # which multipletests calls each time: seconds in a process with torch in it
        expected = multipletests(p, method="holm")[1]
    assert stats.holm(p) == pytest.approx(expected, abs=1e-12)


@given(se=st.floats(1e-3, 1e3), power=st.floats(0.5, 0.99), alpha=st.floats(0.001, 0.1))
def test_minimum_detectable_effect_has_its_power(se: float, power: float, alpha: float) -> None:
    effect = stats.minimum_detectable_effect(se, power, alpha)
    assert normal_power(effect / se, 1, alpha) == pytest.approx(power, abs=2e-3)


# ---------------------------------------------------------------- bootstrap of means


@given(values=columns(st.floats(-1e3, 1e3), least=2), seed=st.integers(0, 99), n_labels=st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_sums_of_clusters_give_what_resampling_rows_gives(values: np.ndarray, seed: int, n_labels: int) -> None:
    clusters = np.arange(len(values)) % n_labels
    fast = stats.mean_bootstrap(values, clusters, seed, 50).draws
    rows = stats.bootstrap_draws(lambda index: values[index].mean(), clusters, seed, 50)
    assert fast == pytest.approx(rows, abs=1e-9)


def test_interval_is_scipys_percentile_interval() -> None:
    values = np.random.default_rng(1).exponential(size=400)
    ours = stats.bootstrap_mean(values, None, n_resamples=20_000)
    theirs = scipy_stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2)
    assert ours.estimate == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.004)


def test_standard_error_is_that_of_cluster_robust_least_squares() -> None:
    values, clusters = clustered(3, n=800)
    codes = np.unique(clusters, return_inverse=True)[1]
    model = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": codes})
    ours = stats.mean_bootstrap(values, clusters, n_resamples=5000)
    assert ours.se == pytest.approx(model.bse[0], rel=0.05)
    # Were the rows independent, the error would be far smaller: the clusters are what is resampled.
    assert ours.se > 1.4 * values.std() / np.sqrt(len(values))


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values, clusters = clustered(4)
    whole = stats.mean_bootstrap(values, clusters, n_resamples=101).draws
    monkeypatch.setattr(stats, "_CHUNK", 1000)
    assert stats.mean_bootstrap(values, clusters, n_resamples=101).draws == pytest.approx(whole, abs=1e-12)


def test_ten_thousand_clusters_are_quick_and_small() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    began = time.perf_counter()
    stats.bootstrap_mean(values, None)
    assert time.perf_counter() - began < 5  # about 0.4 s
    tracemalloc.start()
    stats.bootstrap_mean(values, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6


def test_seed_decides() -> None:
    values, clusters = clustered(5)
    first = stats.bootstrap_mean(values, clusters, seed=1)
    assert first == stats.bootstrap_mean(values, clusters, seed=1)
    assert first != stats.bootstrap_mean(values, clusters, seed=2)


def test_one_cluster_has_no_finite_interval() -> None:
    interval = stats.bootstrap_mean([1.0, 2.0, 3.0], ["p", "p", "p"])
    assert (interval.estimate, interval.low, interval.high, interval.n) == (2.0, -np.inf, np.inf, 1)
    alone = stats.difference_bootstrap([1.0, 2.0], ["p", "p"], [0.0, 0.5, 0.1], ["q", "r", "s"])
    assert not np.isfinite(alone.interval().low)
    assert alone.p_value() == 1.0


# ---------------------------------------------------------------- differences


def test_shared_clusters_are_paired() -> None:
    values, clusters = clustered(6)
    interval = stats.bootstrap_difference(values + 0.25, clusters, values[::-1], clusters[::-1])
    assert (interval.low, interval.high) == pytest.approx((0.25, 0.25))


def test_separate_clusters_vary_on_both_sides() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=500), rng.normal(scale=3, size=300)
    unlabelled = stats.difference_bootstrap(a, None, b, None, n_resamples=8000)
    labelled = stats.difference_bootstrap(a, range(500), b, range(500, 800), n_resamples=8000)
    expected = np.sqrt(a.var() / 500 + b.var() / 300)
    assert unlabelled.se == pytest.approx(expected, rel=0.05)
    assert labelled.se == pytest.approx(expected, rel=0.05)
    assert unlabelled.n == labelled.n == 800


@pytest.mark.parametrize("overlap", [0.0, 0.5, 1.0])
def test_difference_interval_covers(overlap: float) -> None:
    rng = np.random.default_rng(8)
    n, covered, runs = 120, 0, 400
    labels = np.arange(n)
    for run in range(runs):
        effect = rng.normal(size=2 * n)
        other = labels + int(n * (1 - overlap))
        a = effect[np.repeat(labels, 2)] + rng.normal(size=2 * n)
        b = effect[other] + rng.normal(size=n)
        interval = stats.bootstrap_difference(a, np.repeat(labels, 2), b, other, seed=run, n_resamples=400)
        covered += interval.low <= 0 <= interval.high
    assert 0.92 <= covered / runs <= 0.98  # binomial error of 400 runs: 0.011


# ---------------------------------------------------------------- any statistic, ranks


def test_bootstrap_of_any_statistic() -> None:
    values, clusters = clustered(9, n=60)
    interval = stats.bootstrap(lambda rows: np.median(values[rows]), clusters, n_resamples=500)
    assert interval.low < interval.estimate == np.median(values) < interval.high
    both = stats.bootstrap_draws(lambda rows: [values[rows].mean(), values[rows].max()], clusters, n_resamples=20)
    assert both.shape == (20, 2)
    with pytest.raises(UserError, match="statistic on all rows"):
        stats.bootstrap(lambda rows: float("nan"), clusters)


small_numbers = st.integers(-3, 3).map(float) | st.floats(-5, 5)


@given(x=columns(small_numbers, least=3), data=st.data())
@settings(max_examples=60, deadline=None)
def test_spearman_is_scipys(x: np.ndarray, data: st.DataObject) -> None:
    y = data.draw(arrays(np.float64, len(x), elements=small_numbers))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        with pytest.raises(UserError, match="constant"):
            stats.spearman_bootstrap(x, y)
        return
    interval = stats.spearman_bootstrap(x, y, n_resamples=20)
    assert interval.estimate == pytest.approx(scipy_stats.spearmanr(x, y).statistic, abs=1e-9)
    weights = np.random.default_rng(0).integers(0, 3, size=(1, len(x)))
    rows = np.repeat(np.arange(len(x)), weights[0])
    if len(rows) and np.ptp(x[rows]) > 0 and np.ptp(y[rows]) > 0:
        weighted = stats._weighted_spearman(x, y, weights)[0]
        assert weighted == pytest.approx(scipy_stats.spearmanr(x[rows], y[rows]).statistic, abs=1e-9)


def test_spearman_interval_resamples_clusters() -> None:
    x, clusters = clustered(10, n=100)
    y = x + np.random.default_rng(1).normal(size=len(x))
    interval = stats.spearman_bootstrap(x, y, clusters, seed=3, n_resamples=300)
    naive = stats.bootstrap(lambda r: scipy_stats.spearmanr(x[r], y[r]).statistic, clusters, seed=3, n_resamples=300)
    assert (interval.low, interval.high, interval.n) == pytest.approx((naive.low, naive.high, 100), abs=1e-9)


# ---------------------------------------------------------------- calibration


@given(p=columns(PROBABILITIES), bins=st.integers(1, 20), data=st.data())
def test_calibration_error_is_the_plain_loop(p: np.ndarray, bins: int, data: st.DataObject) -> None:
    y = data.draw(arrays(np.float64, len(p), elements=st.sampled_from([0.0, 1.0])))
    place = np.minimum(np.floor(p * bins), bins - 1)
    error = sum(abs(p[place == b].mean() - y[place == b].mean()) * (place == b).mean() for b in np.unique(place))
    assert calibration.expected_calibration_error(p, y, bins) == pytest.approx(error, abs=1e-12)
    curve = calibration.calibration_curve(p, y, bins)
    assert curve["n"].sum() == len(p)
    assert (curve["estimate"] * curve["n"]).sum() == pytest.approx(y.sum())
    assert ((curve["low"] <= curve["estimate"] + 1e-12) & (curve["estimate"] <= curve["high"] + 1e-12)).all()
    assert ((curve["bin_low"] - 1e-12 <= curve["predicted"]) & (curve["predicted"] <= curve["bin_high"] + 1e-12)).all()


def test_calibrated_labels_have_little_error_and_overconfident_ones_much() -> None:
    rng = np.random.default_rng(11)
    p = rng.uniform(size=20_000)
    y = (rng.uniform(size=p.size) < p).astype(float)
    assert calibration.expected_calibration_error(p, y) < 0.02
    assert calibration.expected_calibration_error(np.round(p), y) > 0.2


# ---------------------------------------------------------------- tests


def decide(test: str, truth: float, margin: float, runs: int = 1000) -> float:
    """How often `test` holds when the true difference is `truth` and its standard error is 1."""
    rng = np.random.default_rng(12)
    held = 0
    for _ in range(runs):
        estimate = rng.normal(truth)
        difference = Bootstrap(estimate, rng.normal(estimate, size=500), 100)
        decision = getattr(stats, test)(difference, margin)
        alpha = 0.05 if test == "tost" else 0.025
        assert decision.holds == (decision.p <= alpha) or abs(decision.p - alpha) < 0.005  # p and interval agree
        held += decision.holds
    return held / runs


@pytest.mark.parametrize(
    ("test", "truth", "margin", "least", "most"),
    [
        ("superiority", 0, 0.0, 0.01, 0.04),
        ("superiority", 5, 0.0, 0.99, 1),
        ("non_inferiority", -2, 2.0, 0.01, 0.04),
        ("non_inferiority", 0, 5.0, 0.99, 1),
        ("tost", 5, 5.0, 0.03, 0.07),
        ("tost", -5, 5.0, 0.03, 0.07),
        ("tost", 0, 5.0, 0.99, 1),
        ("tost", 0, 1.0, 0, 0),
    ],
)
def test_error_rates(test: str, truth: float, margin: float, least: float, most: float) -> None:
    assert least <= decide(test, truth, margin) <= most


def test_two_sided_p_value_is_about_uniform_under_the_null() -> None:
    rng = np.random.default_rng(13)
    estimates = rng.normal(size=400)
    p = [Bootstrap(e, rng.normal(e, size=400), 100).p_value() for e in estimates]
    assert scipy_stats.kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize("test", [stats.tost, stats.non_inferiority])
def test_margin_must_be_stated(test) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        test(Bootstrap(0.0, np.zeros(10), 10), 0.0)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_input_names_its_row(bad: float) -> None:
    values = [0.5, 0.25, bad, 0.75]
    with pytest.raises(UserError, match=r"row 2 is (nan|inf|-inf)"):
        stats.bootstrap_mean(values, None)
    with pytest.raises(UserError, match="row rl_cai/17 is"):
        stats.bootstrap_mean(values, None, rows=["rl_cai/3", "rl_cai/9", "rl_cai/17", "rl_cai/20"])
    for call in (
        lambda: stats.bootstrap_difference([1.0, 2.0], None, values, None),
        lambda: stats.spearman_bootstrap(values, [1.0, 2.0, 3.0, 4.0]),
        lambda: calibration.expected_calibration_error(values, [0, 1, 0, 1]),
        lambda: stats.holm(values),
    ):
        with pytest.raises(UserError, match="row 2 is"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.bootstrap_mean([], None), "non-empty"),
        (lambda: stats.bootstrap_mean([1.0, 2.0], ["p"]), "1 labels for 2 rows"),
        (lambda: stats.bootstrap_mean([1.0, 2.0], ["p", None]), "row 1 has no label"),
        (lambda: stats.wilson(3, 2), "impossible"),
        (lambda: stats.wilson(0, 0), "impossible"),
        (lambda: stats.holm([0.5, 1.5]), "outside"),
        (lambda: stats.spearman_bootstrap([1.0, 2.0], [1.0]), "2 values of x for 1 of y"),
        (lambda: calibration.expected_calibration_error([0.5, 1.5], [0, 1]), "row 1 is 1.5"),
        (lambda: calibration.calibration_curve([0.5], [0, 1]), "1 probabilities for 2 outcomes"),
    ],
)
def test_bad_input_is_one_clear_line(call, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["", "high", "1e999", None, {"a": 1}, [2.0], float("nan")])
def test_a_column_of_a_users_file_names_the_row_that_is_no_number(value: object) -> None:
    column = pd.Series([0.5, value, 1], dtype=object)
    with pytest.raises(UserError, match=r"score: row second is .*, not a finite number"):
        stats.finite(column, "score", ["first", "second", "third"])
    np.testing.assert_array_equal(stats.finite(pd.Series(["1", 2.5, True], dtype=object)), [1, 2.5, 1])
