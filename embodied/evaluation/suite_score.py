"""One score for several tasks: the mean of their success rates, with an interval that knows what was sampled.

Tasks are fixed, and each counts the same however many episodes it has. Start states are a sample; the episodes from
one of them (seeds of the training, variants of the scene) are alike. So the bootstrap is stratified by task and draws
whole start states: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embodied.errors import UserError
from embodied.evaluation.statistics import Interval, check_fraction

RESAMPLES = 10_000


@dataclass(frozen=True)
class Stratum:
    """One task. Of each start state the sum over its episodes, and their number: float [C]."""

    totals: np.ndarray
    counts: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.totals.sum() / self.counts.sum())


def suite_score(strata: Sequence[Stratum]) -> float:
    """The mean of the tasks' means.

    Raises:
        UserError: no task, or a task without episodes.
    """
    _check(strata)
    return float(np.mean([stratum.mean for stratum in strata]))


def suite_interval(
    strata: Sequence[Stratum], confidence: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile interval of the suite score: in each task as many start states as it has, drawn with replacement.

    Raises:
        UserError: no task, a task without episodes, or a confidence outside (0, 1).
    """
    _check(strata)
    check_fraction("confidence", confidence)
    generator = np.random.default_rng(seed)
    scores_TR = [_means(stratum, _draws(stratum, resamples, generator)) for stratum in strata]
    return _percentiles(np.mean(scores_TR, axis=0), confidence)


def suite_difference_interval(
    strata: Sequence[Stratum],
    reference: Sequence[Stratum],
    shared: Sequence[bool],
    confidence: float = 0.95,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The same of one method's score minus another's.

    Args:
        shared: for each task whether both have the same start states, in the same order: then the same ones are drawn
            for both, which keeps their pairing.

    Raises:
        UserError: as `suite_interval`.
    """
    _check(strata)
    _check(reference)
    check_fraction("confidence", confidence)
    generator = np.random.default_rng(seed)
    scores = np.zeros(resamples)
    for mine, theirs, paired in zip(strata, reference, shared, strict=True):
        times_RC = _draws(mine, resamples, generator)
        others_RC = times_RC if paired else _draws(theirs, resamples, generator)
        scores += (_means(mine, times_RC) - _means(theirs, others_RC)) / len(strata)
    return _percentiles(scores, confidence)


def _draws(stratum: Stratum, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How often each start state is in each resample: int [R C]."""
    clusters = len(stratum.totals)
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)


def _means(stratum: Stratum, times_RC: np.ndarray) -> np.ndarray:
    return (times_RC @ stratum.totals) / (times_RC @ stratum.counts)


def _percentiles(scores: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check(strata: Sequence[Stratum]) -> None:
    if not strata or any(not len(stratum.counts) or not np.all(stratum.counts > 0) for stratum in strata):
        raise UserError(
            expected="at least one task, each with episodes from every start state",
            found=f"{len(strata)} tasks with {[int(np.sum(stratum.counts)) for stratum in strata]} episodes",
            remedy="leave out what was not evaluated",
        )
