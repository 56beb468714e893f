"""Two success rates that share no start: k successes of n episodes of A, and of others of B.

Such a comparison needs more episodes than a paired one (paired_proportions.py), since it also has to average out which
starts were hard. SciPy, which takes seconds to import, is imported where it is called.
"""

from __future__ import annotations

import math

import numpy as np

from embodied.errors import UserError
from embodied.evaluation.statistics import Interval, check_counts, check_fraction, check_n, wilson_interval

NUISANCE = 101  # common success rates that the rejection region is checked at


def newcombe_interval(k_a: int, n_a: int, k_b: int, n_b: int, confidence: float = 0.95) -> Interval:
    """Interval of A's success rate minus B's, from Wilson's intervals of the two.

    R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10: with Wilson's limits l and u of each,

        D - sqrt((p_a - l_a)^2 + (u_b - p_b)^2)   to   D + sqrt((u_a - p_a)^2 + (p_b - l_b)^2)

    Raises:
        UserError: n below 1, successes outside 0..n, or a confidence outside (0, 1).
    """
    low_a, high_a = wilson_interval(k_a, n_a, confidence)
    low_b, high_b = wilson_interval(k_b, n_b, confidence)
    rate_a, rate_b = k_a / n_a, k_b / n_b
    difference = rate_a - rate_b
    return (
        difference - math.hypot(rate_a - low_a, high_b - rate_b),
        difference + math.hypot(high_a - rate_a, rate_b - low_b),
    )


def barnard_p(k_a: int, n_a: int, k_b: int, n_b: int) -> float:
    """Two-sided exact p that A and B succeed equally often (Barnard's unconditional test, pooled score statistic).

    Raises:
        UserError: n below 1, or successes outside 0..n.
    """
    table = _table(k_a, n_a, k_b, n_b)
    from scipy.stats import barnard_exact

    if k_a + k_b in (0, n_a + n_b):
        return 1.0  # the statistic is not defined where all fail or all succeed
    return float(min(1.0, barnard_exact(table).pvalue))


def boschloo_p(k_a: int, n_a: int, k_b: int, n_b: int) -> float:
    """The same question by Boschloo's test, which orders tables by Fisher's p and is never weaker than Fisher's.

    Raises:
        UserError: n below 1, or successes outside 0..n.
    """
    table = _table(k_a, n_a, k_b, n_b)
    from scipy.stats import boschloo_exact

    return float(min(1.0, boschloo_exact(table).pvalue))


def smallest_detectable_difference_unpaired(
    n_a: int, n_b: int, worse_rate: float, *, confidence: float = 0.95, power: float = 0.8
) -> float | None:
    """The smallest true difference of two success rates that Barnard's test would reveal with the given power.

    Revealed means: p at most 1 - confidence, in the right direction. The first of the two is the better one.

    Args:
        worse_rate: true success rate of the worse one.

    Returns:
        The difference, to 0.0001, or None where even a better one that never fails would be missed too often.

    Raises:
        UserError: n below 1, a confidence or power outside (0, 1), or a rate outside [0, 1].
    """
    check_n(n_a)
    check_n(n_b)
    check_fraction("confidence", confidence)
    check_fraction("power", power)
    if not 0 <= worse_rate <= 1:
        raise UserError(expected="a rate from 0 to 1", found=f"{worse_rate}", remedy="give successes over episodes")
    from scipy.optimize import root_scalar

    better = np.arange(n_a + 1)[:, None] / n_a > np.arange(n_b + 1)[None, :] / n_b
    found = rejection_region(n_a, n_b, 1 - confidence) & better

    def shortfall(difference: float) -> float:
        return power - float(_binomial(n_a, worse_rate + difference) @ found @ _binomial(n_b, worse_rate))

    largest = 1 - worse_rate
    if shortfall(largest) > 0:
        return None
    return float(root_scalar(shortfall, bracket=(0.0, largest), xtol=1e-4).root)


def rejection_region(n_a: int, n_b: int, alpha: float) -> np.ndarray:
    """Which counts of successes Barnard's test rejects: bool [n_a + 1, n_b + 1]. All tables at once, on a grid of
    common success rates; `barnard_p` searches the worst rate of one table."""
    k_a, k_b = np.arange(n_a + 1)[:, None], np.arange(n_b + 1)[None, :]
    pooled = (k_a + k_b) / (n_a + n_b)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / n_a + 1 / n_b))
    with np.errstate(invalid="ignore"):
        statistic = np.nan_to_num(np.abs(k_a / n_a - k_b / n_b) / spread).round(9)  # equal ones stay equal
    values, group = np.unique(-statistic.ravel(), return_inverse=True)  # the most extreme first
    worst = np.zeros(len(values))
    for rate in np.linspace(0, 1, NUISANCE + 2)[1:-1]:
        chances = np.outer(_binomial(n_a, rate), _binomial(n_b, rate)).ravel()
        worst = np.maximum(worst, np.cumsum(np.bincount(group, chances, len(values))))
    return (worst <= alpha)[group].reshape(statistic.shape)


def _table(k_a: int, n_a: int, k_b: int, n_b: int) -> list[list[int]]:
    """Successes above failures, a column each, as SciPy wants it."""
    check_n(n_a)
    check_n(n_b)
    check_counts(k_a=k_a, k_b=k_b)
    for k, n in ((k_a, n_a), (k_b, n_b)):
        if k > n:
            raise UserError(expected=f"at most n = {n} successes", found=f"{k}", remedy="count each episode once")
    return [[k_a, k_b], [n_a - k_a, n_b - k_b]]


def _binomial(n: int, rate: float) -> np.ndarray:
    """Probability of 0..n successes."""
    from scipy.stats import binom

    return binom.pmf(np.arange(n + 1), n, min(max(rate, 0.0), 1.0))
