"""Two success rates that share no start: k successes of n episodes of A, and of others of B.

Such a comparison needs more episodes than a paired one (paired_proportions.py), since it also has to average out which
starts were hard. SciPy, which takes seconds to import, is imported where it is called.
"""

from __future__ import annotations

import math

import numpy as np

from embodied.errors import UserError
from embodied.evaluation.statistics import Interval, check_fraction, check_n, check_successes, wilson_interval

NUISANCE = 101  # common success rates that tables are looked at under, at least


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
    """Two-sided exact p that A and B succeed equally often: Barnard's unconditional test with the pooled score.

    The chance of a table with at least as large a score, at the common success rate where it is largest. Not SciPy's
    `barnard_exact`, which compares scores without a tolerance and so leaves out tables of an equal score by rounding:
    14 of 15 against 6 of 10 gives 0.0484 there instead of 0.0509.

    Raises:
        UserError: n below 1, or successes outside 0..n.
    """
    check_successes(k_a, n_a)
    check_successes(k_b, n_b)
    from scipy.optimize import minimize_scalar

    scores = _scores(n_a, n_b)
    extreme = scores >= scores[k_a, k_b]

    def chance(rates: np.ndarray) -> np.ndarray:
        return np.einsum("aG,ab,bG->G", _binomial(n_a, rates), extreme, _binomial(n_b, rates), optimize=True)

    rates = _common_rates(NUISANCE + 2 * (n_a + n_b))
    chances = chance(rates)
    best = int(np.argmax(chances))
    around = (rates[max(best - 1, 0)], rates[min(best + 1, len(rates) - 1)])
    refined = minimize_scalar(lambda rate: -chance(np.array([rate]))[0], bounds=around, method="bounded")
    return float(min(1.0, max(chances[best], -refined.fun)))


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
    scores = _scores(n_a, n_b)
    values, group = np.unique(-scores.ravel(), return_inverse=True)  # the most extreme first
    worst = np.zeros(len(values))
    for rate in _common_rates(NUISANCE):
        chances = np.outer(_binomial(n_a, rate), _binomial(n_b, rate)).ravel()
        worst = np.maximum(worst, np.cumsum(np.bincount(group, chances, len(values))))
    return (worst <= alpha)[group].reshape(scores.shape)


def _scores(n_a: int, n_b: int) -> np.ndarray:
    """Absolute pooled score of each table, float [n_a + 1, n_b + 1], rounded so that equal ones are equal."""
    k_a, k_b = np.arange(n_a + 1)[:, None], np.arange(n_b + 1)[None, :]
    pooled = (k_a + k_b) / (n_a + n_b)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / n_a + 1 / n_b))
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.abs(k_a / n_a - k_b / n_b) / spread).round(9)  # 0 where all fail or all succeed


def _common_rates(count: int) -> np.ndarray:
    """Success rates between 0 and 1, denser towards the ends, where the chances of tables change faster."""
    return np.sin(np.linspace(0, np.pi / 2, count + 2)[1:-1]) ** 2


def _binomial(n: int, rate: float | np.ndarray) -> np.ndarray:
    """Probability of 0..n successes: [n + 1], with an axis of rates behind it where there are several."""
    from scipy.stats import binom

    successes = np.arange(n + 1) if np.ndim(rate) == 0 else np.arange(n + 1)[:, None]
    return binom.pmf(successes, n, np.clip(rate, 0.0, 1.0))
