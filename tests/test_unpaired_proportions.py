"""Separate samples: Newcombe's interval and exact tests against published values, statsmodels and enumeration."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import barnard_exact, binom
from statsmodels.stats.proportion import confint_proportions_2indep

from embodied.errors import UserError
from embodied.evaluation.unpaired_proportions import (
    barnard_p,
    newcombe_interval,
    rejection_region,
    smallest_detectable_difference_unpaired,
)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((56, 70, 48, 80), 0.0524, 0.3339), ((9, 10, 3, 10), 0.1705, 0.8090), ((10, 10, 0, 10), 0.6075, 1.0)],
)
def test_newcombes_own_examples(counts, low, high):
    """Method 10 in Table II of Newcombe 1998."""
    assert newcombe_interval(*counts) == pytest.approx((low, high), abs=5e-5)
    k_a, n_a, k_b, n_b = counts
    assert newcombe_interval(k_b, n_b, k_a, n_a) == pytest.approx((-high, -low), abs=5e-5)


def test_newcombes_interval_is_that_of_statsmodels():
    for k_a, n_a, k_b, n_b in ((18, 25, 12, 25), (0, 20, 3, 20), (47, 50, 30, 31), (1, 7, 0, 12)):
        for confidence in (0.8, 0.95, 0.99):
            theirs = confint_proportions_2indep(
                k_a, n_a, k_b, n_b, method="newcomb", compare="diff", alpha=1 - confidence, correction=False
            )
            assert newcombe_interval(k_a, n_a, k_b, n_b, confidence) == pytest.approx(theirs, abs=1e-9)


def test_coverage_of_newcombes_interval():
    """Exact coverage, by enumeration, stays near the nominal one."""
    n = 20
    intervals = np.array([[newcombe_interval(a, n, b, n) for b in range(n + 1)] for a in range(n + 1)])
    coverages = []
    for rate_a, rate_b in [(0.5, 0.5), (0.9, 0.6), (0.8, 0.75), (0.3, 0.05), (0.95, 0.9)]:
        covered = (intervals[..., 0] <= rate_a - rate_b) & (rate_a - rate_b <= intervals[..., 1])
        chances = np.outer(binom.pmf(np.arange(n + 1), n, rate_a), binom.pmf(np.arange(n + 1), n, rate_b))
        coverages.append(chances[covered].sum())
    assert min(coverages) > 0.94 and np.mean(coverages) < 0.98


def test_golden_barnard():
    assert barnard_p(18, 25, 12, 25) == pytest.approx(0.1108, abs=5e-5)
    assert barnard_p(12, 25, 18, 25) == pytest.approx(0.1108, abs=5e-5)
    for k_a, n_a, k_b, n_b in ((18, 25, 12, 25), (7, 9, 2, 11), (45, 50, 30, 50), (1, 30, 6, 20)):
        theirs = barnard_exact([[k_a, k_b], [n_a - k_a, n_b - k_b]]).pvalue
        assert barnard_p(k_a, n_a, k_b, n_b) == pytest.approx(theirs, abs=2e-6)


@pytest.mark.parametrize(
    ("n_a", "n_b", "seen"), [(7, 9, [(6, 3), (0, 5), (7, 9), (4, 4), (1, 0)]), (15, 10, [(14, 6), (10, 10)])]
)
def test_barnard_is_the_enumeration_of_all_tables(n_a, n_b, seen):
    """The chance of a table at least as extreme, in fractions, at the common rate where it is largest. SciPy's p of
    14 of 15 against 6 of 10 is 0.0484: it takes two equal scores for different."""

    def squared_score(k_a: int, k_b: int) -> Fraction:
        pooled = Fraction(k_a + k_b, n_a + n_b)
        spread = pooled * (1 - pooled)
        return (Fraction(k_a, n_a) - Fraction(k_b, n_b)) ** 2 / spread if spread else Fraction(0)

    scores = {(a, b): squared_score(a, b) for a in range(n_a + 1) for b in range(n_b + 1)}
    rates = np.linspace(0, 1, 4001)
    of_a = binom.pmf(np.arange(n_a + 1)[:, None], n_a, rates)
    of_b = binom.pmf(np.arange(n_b + 1)[:, None], n_b, rates)
    for table in seen:
        chances = sum(of_a[a] * of_b[b] for (a, b), score in scores.items() if score >= scores[table])
        assert barnard_p(table[0], n_a, table[1], n_b) == pytest.approx(min(chances.max(), 1), abs=1e-5)


def test_all_alike_shows_nothing():
    assert barnard_p(0, 8, 0, 5) == barnard_p(8, 8, 5, 5) == 1.0


@pytest.mark.parametrize(("n_a", "n_b"), [(5, 5), (8, 6), (12, 12)])
def test_the_rejection_region_is_barnards(n_a, n_b):
    region = rejection_region(n_a, n_b, 0.05)
    theirs = [[barnard_p(a, n_a, b, n_b) <= 0.05 for b in range(n_b + 1)] for a in range(n_a + 1)]
    assert np.array_equal(region, theirs)


@pytest.mark.parametrize(("n_a", "n_b", "worse"), [(12, 12, 0.2), (15, 10, 0.4)])
def test_detectable_difference_has_the_power_it_claims(n_a, n_b, worse):
    difference = smallest_detectable_difference_unpaired(n_a, n_b, worse)
    assert difference is not None
    found = sum(
        binom.pmf(a, n_a, worse + difference) * binom.pmf(b, n_b, worse)
        for a in range(n_a + 1)
        for b in range(n_b + 1)
        if a / n_a > b / n_b and barnard_p(a, n_a, b, n_b) <= 0.05
    )
    assert found == pytest.approx(0.8, abs=0.002)


def test_detectable_difference_shrinks_with_n():
    sizes = [smallest_detectable_difference_unpaired(n, n, 0.3) for n in (12, 25, 50, 100)]
    assert all(size is not None for size in sizes) and sizes == sorted(sizes, reverse=True)
    assert smallest_detectable_difference_unpaired(3, 3, 0.5) is None


def test_impossible_counts_are_refused():
    with pytest.raises(UserError, match="n of at least 1; found n = 0"):
        newcombe_interval(0, 0, 1, 2)
    with pytest.raises(UserError, match="at most n = 3 successes; found 4"):
        barnard_p(1, 2, 4, 3)
    with pytest.raises(UserError, match="'successes' of at least 0; found -1"):
        barnard_p(-1, 2, 1, 3)
    with pytest.raises(UserError, match="a rate from 0 to 1; found 2"):
        smallest_detectable_difference_unpaired(5, 5, 2)
    with pytest.raises(UserError, match="power between 0 and 1; found 0"):
        smallest_detectable_difference_unpaired(5, 5, 0.5, power=0)
