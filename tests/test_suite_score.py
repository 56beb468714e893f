"""The suite score's bootstrap: strata, clusters and pairing against closed forms and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from embodied.errors import UserError
from embodied.evaluation.suite_score import Stratum, suite_difference_interval, suite_interval, suite_score

Z_95 = 1.959963984540054


def stratum(outcomes, episodes_each: int = 1) -> Stratum:
    totals = np.asarray(outcomes, np.float64)
    return Stratum(totals, np.full(len(totals), float(episodes_each)))


def of_rate(rate: float, n: int, seed: int = 0) -> Stratum:
    return stratum(np.random.default_rng(seed).uniform(size=n) < rate)


def width(interval) -> float:
    return interval[1] - interval[0]


def test_each_task_counts_the_same():
    assert suite_score([stratum([1, 1]), stratum([0] * 50)]) == pytest.approx(0.5)
    assert suite_score([stratum([3, 0], episodes_each=3)]) == pytest.approx(0.5)


def test_the_interval_is_the_normal_one_of_a_stratified_mean():
    """Variance of the mean of T task means: sum of p(1-p)/n over T^2."""
    strata = [of_rate(0.5, 200, 1), of_rate(0.8, 100, 2), of_rate(0.2, 300, 3)]
    variance = sum(s.mean * (1 - s.mean) / len(s.totals) for s in strata) / 9
    low, high = suite_interval(strata)
    half = Z_95 * math.sqrt(variance)
    assert low == pytest.approx(suite_score(strata) - half, abs=0.06 * half)
    assert high == pytest.approx(suite_score(strata) + half, abs=0.06 * half)
    assert suite_interval(strata) == (low, high), "the seed is fixed"
    assert width(suite_interval(strata, 0.5)) < high - low


def test_one_stratum_is_scipys_percentile_bootstrap():
    outcomes = of_rate(0.7, 40)
    theirs = bootstrap((outcomes.totals,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert suite_interval([outcomes]) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_strata_are_not_mixed():
    """Tasks that always and never succeed have no spread within them, whatever lies between them."""
    assert suite_interval([stratum([1] * 30), stratum([0] * 30)]) == (0.5, 0.5)


def test_episodes_from_one_start_are_drawn_together():
    """Ten equal seeds of each start know no more than one."""
    once = of_rate(0.6, 30)
    tenfold = Stratum(once.totals * 10, np.full(30, 10.0))
    assert suite_interval([tenfold]) == pytest.approx(suite_interval([once]))
    apart = stratum(np.repeat(once.totals, 10))
    assert width(suite_interval([apart])) < 0.5 * width(suite_interval([tenfold]))


def test_starts_with_more_episodes_weigh_more():
    """Ratio of sums: two starts, one with 1 of 1 and one with 0 of 3."""
    uneven = Stratum(np.array([1.0, 0.0]), np.array([1.0, 3.0]))
    assert suite_score([uneven]) == pytest.approx(0.25)
    assert suite_interval([uneven]) == (0.0, 1.0)


def test_shared_starts_keep_their_pairing():
    reference = of_rate(0.5, 60)
    better = stratum(np.maximum(reference.totals, np.arange(60) % 10 == 0))
    paired = suite_difference_interval([better], [reference], [True])
    separate = suite_difference_interval([better], [reference], [False])
    assert width(paired) < 0.5 * width(separate)
    gains = better.totals - reference.totals
    half = Z_95 * gains.std() / math.sqrt(60)
    assert paired == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.25 * half)
    assert suite_difference_interval([reference], [reference], [True]) == (0.0, 0.0)


def test_separate_samples_may_have_different_sizes():
    low, high = suite_difference_interval([of_rate(0.9, 50)], [of_rate(0.2, 20)], [False])
    assert 0.3 < low < high < 1


def test_coverage_of_the_interval():
    """Of the true suite score, over 300 made suites."""
    random = np.random.default_rng(5)
    rates = (0.3, 0.6, 0.9)
    covered = 0
    for _ in range(300):
        low, high = suite_interval([stratum(random.uniform(size=40) < rate) for rate in rates], resamples=500)
        covered += low <= np.mean(rates) <= high
    assert 0.90 < covered / 300 < 0.985


def test_mistakes_are_named():
    with pytest.raises(UserError, match="at least one task, each with episodes"):
        suite_score([])
    with pytest.raises(UserError, match=r"found 2 tasks with \[2, 0\] episodes"):
        suite_interval([stratum([1, 0]), stratum([])])
    with pytest.raises(UserError, match="confidence between 0 and 1"):
        suite_interval([stratum([1, 0])], 2)
