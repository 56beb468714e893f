"""One success rate, or one mean, from few episodes: intervals that hold for small n and at the edges.

Confidences and probabilities lie in 0..1.

SciPy, which takes seconds to import, is imported where it is called: most processes that import this file never do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from embodied.errors import UserError
from embodied.types import Json

Interval = tuple[float, float]


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a success rate. Successes may be a fraction, where each is a mean over seeds.

    Raises:
        UserError: n below 1, successes outside 0..n, or a confidence outside (0, 1).
    """
    check_successes(successes, n)
    check_fraction("confidence", confidence)
    from scipy.stats import norm

    z = float(norm.isf((1 - confidence) / 2))
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # Rounding can leave the end at the edge a hair beside it.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def clopper_pearson_interval(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Clopper and Pearson's exact interval of a success rate: wider, and never below its nominal coverage.

    Successes may be a fraction, where each is a mean over seeds.

    Raises:
        UserError: n below 1, successes outside 0..n, or a confidence outside (0, 1).
    """
    check_successes(successes, n)
    check_fraction("confidence", confidence)
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, n - successes + 1))
    return low, 1.0 if successes == n else float(beta.isf(tail, successes + 1, n - successes))


INTERVALS = {"wilson": wilson_interval, "clopper_pearson": clopper_pearson_interval}


@dataclass(frozen=True)
class BetaPosterior:
    """What is known of a success rate after the episodes, as a Beta distribution."""

    alpha: float
    beta: float
    mean: float
    low: float  # ends of the central interval
    high: float


def jeffreys_posterior(successes: float, n: int, confidence: float = 0.95) -> BetaPosterior:
    """Posterior of a success rate under Jeffreys' prior Beta(1/2, 1/2), with its central credible interval.

    Raises:
        UserError: n below 1, successes outside 0..n, or a confidence outside (0, 1).
    """
    check_successes(successes, n)
    check_fraction("confidence", confidence)
    from scipy.stats import beta

    a, b, tail = successes + 0.5, n - successes + 0.5, (1 - confidence) / 2
    return BetaPosterior(a, b, a / (a + b), float(beta.ppf(tail, a, b)), float(beta.isf(tail, a, b)))


def described_rate(
    k: int, n: int, starts: int | None = None, *, confidence: float = 0.95, interval: str = "wilson"
) -> Json:
    """k successes of n episodes as a summary holds them, with an interval of INTERVALS and the posterior.

    Episodes from one start are alike whatever the seed of the training and however the scene looks, so interval and
    posterior count starts: they are those of one episode a start, and wider than they need be.

    Args:
        starts: that the episodes began at; as many as episodes unless given.

    Raises:
        UserError: no episodes, impossible counts, or an unknown interval.
    """
    if interval not in INTERVALS:
        raise UserError(
            expected=f"an interval of {', '.join(INTERVALS)}", found=f"'{interval}'", remedy="set interval=wilson"
        )
    check_successes(k, n)
    independent = n if starts is None else starts
    successes = k if independent == n else min(k / n * independent, independent)
    low, high = INTERVALS[interval](successes, independent, confidence)
    posterior = jeffreys_posterior(successes, independent, confidence)
    return {"k": k, "n": n, "rate": k / n, "low": low, "high": high, "posterior": asdict(posterior)}


def error_bounds(k: int, n: int, errors: int) -> Json:
    """The success rate if the episodes that could not be run had all failed, and if they had all succeeded.

    Args:
        n: episodes that ran, k of them with success.

    Raises:
        UserError: no episode at all, or impossible counts.
    """
    check_n(n + errors)
    check_counts(k=k, errors=errors)
    return {"if_failed": k / (n + errors), "if_succeeded": (k + errors) / (n + errors)}


def bootstrap_mean_interval(
    values: Sequence[float], confidence: float = 0.95, *, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a mean (Efron): for values that are bounded and skewed, such as rewards.

    It never leaves the range of the values. One value, or equal values, give an interval of no width.

    Args:
        seed: of the resampling.

    Raises:
        UserError: no values, or a confidence outside (0, 1).
    """
    check_n(len(values))
    check_fraction("confidence", confidence)
    sample, generator = np.asarray(values, np.float64), np.random.default_rng(seed)
    means = [sample[generator.integers(len(sample), size=len(sample))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    # The mean of equal values can lie a rounding beside them.
    return float(max(low, sample.min())), float(min(high, sample.max()))


def check_successes(successes: float, n: int) -> None:
    check_n(n)
    check_counts(successes=successes)
    if successes > n:
        raise UserError(
            expected=f"at most n = {n} successes",
            found=f"{successes}",
            remedy="count each episode once",
        )


def check_n(n: float) -> None:
    if n < 1:
        raise UserError(expected="n of at least 1", found=f"n = {n}", remedy="evaluate at least one episode")


def check_counts(**counts: float) -> None:
    for name, count in counts.items():
        if count < 0:
            raise UserError(
                expected=f"'{name}' of at least 0", found=f"{count}", remedy="count episodes, starting from 0"
            )


def check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise UserError(expected=f"a {name} between 0 and 1", found=f"{value}", remedy=f"give for example {name}=0.95")
