"""Intervals, tests and detectable differences against published values and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import beta, binom, multinomial
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from embodied.errors import UserError
from embodied.evaluation.latency import latency_summary
from embodied.evaluation.multiple_comparisons import holm_adjusted
from embodied.evaluation.paired_proportions import (
    exact_mcnemar,
    exact_sign_flip,
    paired_difference_interval,
    smallest_detectable_difference,
)
from embodied.evaluation.statistics import (
    bootstrap_mean_interval,
    clopper_pearson_interval,
    described_rate,
    error_bounds,
    jeffreys_posterior,
    wilson_interval,
)

Z_95 = 1.959963984540054


def trinomial(n: int, only_a: float, only_b: float) -> dict[tuple[int, int], float]:
    """Probability of each pair of discordant counts."""
    counts = [(b, c, n - b - c) for b in range(n + 1) for c in range(n + 1 - b)]
    chances = multinomial.pmf(counts, n, (only_a, only_b, 1 - only_a - only_b))
    return {(b, c): float(chance) for (b, c, _), chance in zip(counts, chances, strict=True)}


@pytest.mark.parametrize(
    ("interval", "k", "n", "low", "high"),
    [
        (wilson_interval, 13, 25, 0.3350, 0.6997),
        (clopper_pearson_interval, 13, 25, 0.3131, 0.7220),
        (wilson_interval, 0, 24, 0.0, 0.1380),
        (wilson_interval, 45, 50, 0.7864, 0.9565),
    ],
)
def test_golden_proportion_intervals(interval, k, n, low, high):
    assert interval(k, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 7, 50])
def test_proportion_intervals_invert_their_tests(n):
    for k in range(n + 1):
        low, high = wilson_interval(k, n)
        for limit in (low, high):
            if 0 < limit < 1:
                assert abs(k / n - limit) / math.sqrt(limit * (1 - limit) / n) == pytest.approx(Z_95, abs=1e-6)
        exact_low, exact_high = clopper_pearson_interval(k, n)
        if k > 0:
            assert binom.sf(k - 1, n, exact_low) == pytest.approx(0.025, abs=1e-6)
        if k < n:
            assert binom.cdf(k, n, exact_high) == pytest.approx(0.025, abs=1e-6)


def test_proportion_intervals_at_the_edges_and_at_other_confidences():
    for interval in (wilson_interval, clopper_pearson_interval):
        assert interval(0, 30)[0] == 0.0
        assert interval(30, 30)[1] == 1.0
        wide, narrow = interval(20, 30, 0.99), interval(20, 30, 0.8)
        assert wide[0] < narrow[0] < 20 / 30 < narrow[1] < wide[1]


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_proportion_intervals_are_those_of_statsmodels(confidence):
    for k, n in ((13, 25), (0, 24), (45, 50), (7, 7), (1, 1)):
        theirs = {
            name: proportion_confint(k, n, alpha=1 - confidence, method=name) for name in ("wilson", "beta", "jeffreys")
        }
        assert wilson_interval(k, n, confidence) == pytest.approx(theirs["wilson"], abs=1e-9)
        assert clopper_pearson_interval(k, n, confidence) == pytest.approx(theirs["beta"], abs=1e-9)
        posterior = jeffreys_posterior(k, n, confidence)
        assert (posterior.low, posterior.high) == pytest.approx(theirs["jeffreys"], abs=1e-9)


def test_the_posterior_is_a_beta_distribution():
    posterior = jeffreys_posterior(13, 25)
    assert (posterior.alpha, posterior.beta, posterior.mean) == (13.5, 12.5, pytest.approx(13.5 / 26))
    assert beta.cdf([posterior.low, posterior.high], 13.5, 12.5) == pytest.approx([0.025, 0.975])
    assert 0 < jeffreys_posterior(0, 5).low < jeffreys_posterior(0, 5).high < 1


def test_intervals_of_several_episodes_a_start_are_those_of_one():
    described = described_rate(30, 40, starts=20)
    assert (described["k"], described["n"], described["rate"]) == (30, 40, 0.75)
    assert (described["low"], described["high"]) == wilson_interval(15, 20)
    assert described["posterior"]["alpha"] == 15.5
    exact = described_rate(25, 40, 20, interval="clopper_pearson")
    assert clopper_pearson_interval(12, 20)[0] < exact["low"] < clopper_pearson_interval(13, 20)[0]


def test_error_bounds():
    assert error_bounds(3, 8, 2) == {"if_failed": 0.3, "if_succeeded": 0.5}
    assert error_bounds(3, 8, 0) == {"if_failed": 3 / 8, "if_succeeded": 3 / 8}
    assert error_bounds(0, 0, 4) == {"if_failed": 0.0, "if_succeeded": 1.0}
    with pytest.raises(UserError, match="n of at least 1"):
        error_bounds(0, 0, 0)


def test_mcnemar_is_that_of_statsmodels():
    for only_a, only_b in ((9, 2), (6, 16), (1, 0), (5, 5)):
        theirs = mcnemar([[4, only_a], [only_b, 7]], exact=True).pvalue
        assert exact_mcnemar(only_a, only_b) == pytest.approx(theirs)


def test_golden_mcnemar():
    assert exact_mcnemar(9, 2) == pytest.approx(0.0654, abs=5e-5)
    assert exact_mcnemar(6, 16) == pytest.approx(0.052479, abs=5e-7)  # Cavo et al. 2012, as in Fagerland et al.


def test_mcnemar_is_the_enumeration_of_fair_coins():
    for only_a in range(13):
        for only_b in range(13 - only_a):
            n = only_a + only_b
            as_extreme = [k for k in range(n + 1) if abs(2 * k - n) >= abs(only_a - only_b)]
            assert exact_mcnemar(only_a, only_b) == pytest.approx(sum(math.comb(n, k) for k in as_extreme) / 2**n)


def test_paired_interval_of_a_published_example():
    # Complete response before and after consolidation therapy, Cavo et al. 2012, Tango's interval.
    assert paired_difference_interval(59, 6, 16, 80) == pytest.approx((-0.1240, -0.0054), abs=5e-5)


@pytest.mark.parametrize("counts", [(5, 3, 4, 8), (40, 7, 0, 3), (0, 9, 2, 9), (1, 1, 7, 12), (0, 0, 3, 1)])
def test_paired_interval_inverts_the_score_test(counts):
    """The nuisance parameter is maximised numerically here, and not by Tango's formula."""
    both, b, c, neither = counts
    n = sum(counts)
    for limit, sign in zip(paired_difference_interval(*counts), (1, -1), strict=True):
        assert -1 < limit < 1

        def unlikelihood(q: float, limit: float = limit) -> float:
            rest = 1 - 2 * q - limit
            return -(b * math.log(q + limit) + c * math.log(q) + (both + neither) * math.log(rest))

        bounds = (max(0.0, -limit) + 1e-12, (1 - limit) / 2 - 1e-12)
        q = minimize_scalar(unlikelihood, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x
        score = (b - c - n * limit) / math.sqrt(n * (2 * q + limit * (1 - limit)))
        assert score == pytest.approx(sign * Z_95, abs=1e-4)


def test_paired_interval_at_the_edges():
    half = Z_95**2 / (50 + Z_95**2)
    for concordant in ((50, 0, 0, 0), (0, 0, 0, 50), (20, 0, 0, 30)):
        assert paired_difference_interval(*concordant) == pytest.approx((-half, half), abs=1e-8)
    low, high = paired_difference_interval(0, 50, 0, 0)
    assert high == 1.0 and low == pytest.approx(1 - 2 * half, abs=1e-8)
    assert paired_difference_interval(0, 0, 50, 0) == pytest.approx((-high, -low))
    low, high = paired_difference_interval(0, 1, 0, 0)
    assert -1 < low < high == 1.0


def test_paired_interval_mirrors_and_nests():
    low, high = paired_difference_interval(20, 9, 2, 9)
    assert paired_difference_interval(20, 2, 9, 9) == pytest.approx((-high, -low))
    wide = paired_difference_interval(20, 9, 2, 9, confidence=0.99)
    assert wide[0] < low < 7 / 40 < high < wide[1]


def test_coverage_of_the_paired_interval():
    """Exact coverage, by enumeration, stays near the nominal one."""
    n = 25
    intervals = {(b, c): paired_difference_interval(n - b - c, b, c, 0) for b in range(n + 1) for c in range(n + 1 - b)}
    coverages = []
    for only_a, only_b in [(0.3, 0.1), (0.2, 0.2), (0.1, 0.02), (0.05, 0.05), (0.5, 0.3), (0.02, 0.4)]:
        chances = trinomial(n, only_a, only_b)
        covered = [c for key, c in chances.items() if intervals[key][0] <= only_a - only_b <= intervals[key][1]]
        coverages.append(sum(covered))
    assert min(coverages) > 0.92
    assert np.mean(coverages) == pytest.approx(0.955, abs=0.015)


@pytest.mark.parametrize(("n", "counter_rate"), [(20, 0.0), (20, 0.05), (50, 0.04)])
def test_detectable_difference_has_the_power_it_claims(n, counter_rate):
    difference = smallest_detectable_difference(n, counter_rate=counter_rate)
    chances = trinomial(n, difference + counter_rate, counter_rate)
    found = sum(chance for (b, c), chance in chances.items() if b > c and exact_mcnemar(b, c) <= 0.05)
    assert found == pytest.approx(0.8, abs=0.002)


def test_detectable_difference_shrinks_with_n_and_grows_with_noise():
    sizes = [smallest_detectable_difference(n) for n in (6, 10, 20, 50, 200, 1000)]
    assert sizes == sorted(sizes, reverse=True)
    assert smallest_detectable_difference(50) < smallest_detectable_difference(50, counter_rate=0.1)
    assert smallest_detectable_difference(50) < smallest_detectable_difference(50, power=0.95)
    assert smallest_detectable_difference(50) < smallest_detectable_difference(50, confidence=0.99)
    # Six discordant pairs are the fewest with p <= 0.05.
    assert smallest_detectable_difference(5) is None
    assert smallest_detectable_difference(2, counter_rate=0.5) is None


def test_holm_steps_down_and_never_reorders():
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjusted([0.9, 0.8]) == [1.0, 1.0]
    assert holm_adjusted([]) == []


def test_latency_summary():
    summary = latency_summary(np.random.default_rng(0).permutation(np.arange(101)))
    assert summary == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "mean": 50.0, "n": 101}
    assert latency_summary([2.5]) == {"p50": 2.5, "p95": 2.5, "p99": 2.5, "mean": 2.5, "n": 1}


@pytest.mark.parametrize("interval", [wilson_interval, clopper_pearson_interval])
def test_proportion_intervals_refuse_impossible_counts(interval):
    with pytest.raises(UserError, match="expected n of at least 1; found n = 0; evaluate at least one episode"):
        interval(0, 0)
    with pytest.raises(UserError, match="expected at most n = 3 successes; found 4; count each episode once"):
        interval(4, 3)
    with pytest.raises(UserError, match="'successes' of at least 0; found -1"):
        interval(-1, 3)
    with pytest.raises(UserError, match="confidence between 0 and 1; found 95"):
        interval(1, 3, 95)


def test_paired_figures_refuse_impossible_counts():
    with pytest.raises(UserError, match="'only_b' of at least 0; found -2"):
        exact_mcnemar(9, -2)
    with pytest.raises(UserError, match="n of at least 1; found n = 0"):
        paired_difference_interval(0, 0, 0, 0)
    with pytest.raises(UserError, match="'neither' of at least 0; found -1"):
        paired_difference_interval(1, 1, 1, -1)
    with pytest.raises(UserError, match="confidence between 0 and 1; found 1"):
        paired_difference_interval(1, 1, 1, 1, confidence=1)
    with pytest.raises(UserError, match="n of at least 1"):
        smallest_detectable_difference(0)
    with pytest.raises(UserError, match="power between 0 and 1; found 0"):
        smallest_detectable_difference(10, power=0)
    with pytest.raises(UserError, match=r"counter rate from 0 to 0\.5; found 0\.6"):
        smallest_detectable_difference(10, counter_rate=0.6)


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [1.0, float("inf")], [1.0, -0.5]])
def test_latency_summary_refuses_what_no_clock_gives(samples):
    with pytest.raises(UserError, match="each finite and not negative"):
        latency_summary(samples)


def test_sign_flips_of_ones_are_mcnemars_test():
    for only_a, only_b in ((0, 0), (9, 2), (3, 3), (0, 6), (1, 0), (30, 12)):
        assert exact_sign_flip([1] * only_a + [-1] * only_b + [0] * 5) == pytest.approx(exact_mcnemar(only_a, only_b))


def test_sign_flips_are_counted_exactly():
    random = np.random.default_rng(4)
    for n in (1, 2, 5, 8):
        differences = random.integers(-3, 4, n)
        flips = np.array(list(itertools.product((-1, 1), repeat=n))) * np.abs(differences)
        assert exact_sign_flip(differences) == pytest.approx(np.mean(np.abs(flips.sum(1)) >= abs(differences.sum())))


def test_the_interval_takes_means_over_seeds():
    whole = paired_difference_interval(5, 4, 2, 9)
    assert paired_difference_interval(5.0, 4.0, 2.0, 9.0) == whole
    half = paired_difference_interval(5.0, 3.5, 2.5, 9.0)
    assert half[0] < 1 / 20 < half[1] and half[0] < whole[0]


def test_the_bootstrap_of_many_values_is_the_normal_interval():
    values = np.random.default_rng(3).uniform(0, 1, 400)
    low, high = bootstrap_mean_interval(values)
    half_width = Z_95 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert high == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)
    assert bootstrap_mean_interval(values) == (low, high), "the seed is fixed"
    narrower = bootstrap_mean_interval(values, confidence=0.5)
    assert low < narrower[0] < values.mean() < narrower[1] < high


def test_the_bootstrap_stays_within_bounded_rewards():
    low, high = bootstrap_mean_interval([1.0] * 28 + [0.2, 0.4])
    assert 0.85 < low < 28.6 / 30 < high <= 1.0
    assert bootstrap_mean_interval([0.3]) == bootstrap_mean_interval([0.3] * 7) == (0.3, 0.3)


@pytest.mark.parametrize(("arguments", "message"), [(([],), "n of at least 1"), (([1.0], 1.0), "confidence between")])
def test_the_bootstrap_names_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        bootstrap_mean_interval(*arguments)
