"""Two success rates on the same starts, such as two policies that both ran each of them.

Of n starts that two policies A and B both ran, `both` were solved by both, `only_a` and `only_b` by one of them,
`neither` by none.

SciPy, which takes seconds to import, is imported where it is called: most processes that import this file never do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from embodied.errors import UserError
from embodied.evaluation.statistics import Interval, check_counts, check_fraction, check_n


def exact_mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p that A and B succeed equally often, given the pairs that only one of them solved.

    Raises:
        UserError: a negative count.
    """
    from scipy.stats import binomtest

    check_counts(only_a=only_a, only_b=only_b)
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def exact_sign_flip(differences: Sequence[int]) -> float:
    """Two-sided exact p that differences are as likely to one side as to the other, whatever their sizes.

    The share of the 2^n ways to give each difference a sign whose sum lies at least as far from 0 as the sum found.
    With differences of -1, 0 and 1 this is `exact_mcnemar`.

    Args:
        differences: one for each independent unit, for example of each start the successes of A minus those of B.
    """
    sizes = [abs(int(difference)) for difference in differences if difference != 0]
    total = sum(sizes)
    probability = np.ones(1)  # of each sum, from -total in steps of 1
    for size in sizes:
        flipped = np.zeros(len(probability) + 2 * size)
        flipped[: len(probability)] += probability / 2
        flipped[2 * size :] += probability / 2
        probability = flipped
    sums = np.arange(-total, total + 1)
    return float(min(1.0, probability[np.abs(sums) >= abs(int(sum(differences)))].sum()))


def paired_difference_interval(
    both: float, only_a: float, only_b: float, neither: float, confidence: float = 0.95
) -> Interval:
    """Score interval of A's success rate minus B's, from paired episodes.

    T. Tango, Statistics in Medicine 17 (1998) 891-908: the differences D whose score statistic

        z(D) = (b - c - n D) / sqrt(n (2 q(D) + D (1 - D)))

    lies within the normal quantiles, with b = only_a, c = only_b and q(D) the maximum-likelihood estimate of
    P(only B) given D. At D = 0 it is McNemar's statistic. It also holds without discordant pairs, where it is
    z^2 / (n + z^2) to both sides, and never leaves -1..1. Counts may be fractions, where each start's outcome is a
    mean over seeds: the interval is then that of one seed, and wider than it need be.

    Raises:
        UserError: a negative count, no pairs, or a confidence outside (0, 1).
    """
    from scipy.optimize import root_scalar
    from scipy.stats import norm

    check_counts(both=both, only_a=only_a, only_b=only_b, neither=neither)
    check_fraction("confidence", confidence)
    n = both + only_a + only_b + neither
    check_n(n)
    z_squared = float(norm.isf((1 - confidence) / 2)) ** 2

    def outside(difference: float) -> float:
        """Negative inside the interval, positive outside."""
        variance = n * (2 * _only_b_rate(only_a, only_b, n, difference) + difference * (1 - difference))
        return (only_a - only_b - n * difference) ** 2 - z_squared * variance

    estimate = (only_a - only_b) / n
    limits = []
    for end in (-1.0, 1.0):
        # The estimate itself is a second root when no pair is discordant: search from just beside it.
        start = estimate + end * 1e-9
        limits.append(end if abs(start) >= 1 else float(root_scalar(outside, bracket=(start, end), xtol=1e-12).root))
    return limits[0], limits[1]


def smallest_detectable_difference(
    n: int, *, confidence: float = 0.95, power: float = 0.8, counter_rate: float = 0.0
) -> float | None:
    """The smallest true difference of two success rates that n pairs would reveal with the given power.

    Revealed means: the exact McNemar test rejects at 1 - confidence, in the right direction. Assumed is that the
    worse policy alone solves a share `counter_rate` of the starts; at 0, the most favourable case, the better one
    solves all that the worse one solves. The answer is exact under that assumption, to 0.0001.

    Returns:
        The difference, or None where even the largest one possible would be missed too often.

    Raises:
        UserError: n below 1, a confidence or power outside (0, 1), or a counter rate outside [0, 0.5].
    """
    from scipy.optimize import root_scalar

    check_n(n)
    check_fraction("confidence", confidence)
    check_fraction("power", power)
    if not 0 <= counter_rate <= 0.5:
        raise UserError(
            expected="a counter rate from 0 to 0.5",
            found=f"{counter_rate}",
            remedy="give the share of starts that only the worse policy solves",
        )
    needed = _wins_needed(n, 1 - confidence)

    def shortfall(difference: float) -> float:
        return power - _mcnemar_power(n, difference, counter_rate, needed)

    largest = 1 - 2 * counter_rate
    if shortfall(largest) > 0:
        return None
    return float(root_scalar(shortfall, bracket=(0.0, largest), xtol=1e-4).root)


def _only_b_rate(only_a: float, only_b: float, n: float, difference: float) -> float:
    """Maximum-likelihood P(only B solves a start) when A's rate minus B's is `difference`."""
    a = 2 * n
    b = (2 * n - only_a + only_b) * difference - only_a - only_b
    c = -only_b * difference * (1 - difference)
    return (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)


def _wins_needed(n: int, alpha: float) -> np.ndarray:
    """The fewest wins among m = 0..n discordant pairs for a two-sided p <= alpha, [n + 1]; m + 1 if none suffices."""
    from scipy.stats import binom

    discordant = np.arange(1, n + 1)
    return np.concatenate([[1], binom.isf(alpha / 2, discordant, 0.5).astype(int) + 1])


def _mcnemar_power(n: int, difference: float, counter_rate: float, needed: np.ndarray) -> float:
    """Probability that the better policy wins `needed[m]` of the m discordant pairs, m being random too."""
    from scipy.stats import binom

    discordant_rate = difference + 2 * counter_rate
    if discordant_rate == 0:
        return 0.0
    discordant = np.arange(n + 1)
    win_rate = (difference + counter_rate) / discordant_rate
    rejects = binom.sf(needed - 1, discordant, win_rate)
    return float(binom.pmf(discordant, n, min(discordant_rate, 1.0)) @ rejects)
