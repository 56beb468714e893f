"""Success of methods on the same starts, counted from the small files that `embodied bench policy` keeps of them.

A cell says the outcome of each start as one character: 1 success, 0 failure, e where the episode could not be run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embodied.evaluation.paired_proportions import exact_mcnemar, paired_difference_interval
from embodied.evaluation.statistics import Interval, bootstrap_mean_interval
from embodied.evaluation.suite_score import Stratum, suite_difference_interval, suite_score
from embodied.types import Json

ALPHA = 0.05
RESAMPLES = 10_000


@dataclass(frozen=True)
class Paired:
    """One method against another on the starts that both ran."""

    n: int
    only_mine: int
    only_theirs: int
    p: float  # exact McNemar, two-sided
    difference: float  # mine minus theirs
    low: float  # of its 95 % interval
    high: float

    @property
    def is_below(self) -> bool:
        """Whether it succeeds significantly less often."""
        return self.p < ALPHA and self.difference < 0


def outcomes(cell: Json) -> dict[int, bool]:
    """Whether each start that ran was ever solved."""
    return {cell["first_start"] + i: one == "1" for i, one in enumerate(cell["ever"]) if one != "e"}


def paired(mine: Json, theirs: Json) -> Paired | None:
    """Of two cells; None without a shared start."""
    a, b = outcomes(mine), outcomes(theirs)
    shared = a.keys() & b.keys()
    if not shared:
        return None
    both = sum(a[start] and b[start] for start in shared)
    only_mine, only_theirs = sum(a[start] for start in shared) - both, sum(b[start] for start in shared) - both
    neither = len(shared) - both - only_mine - only_theirs
    low, high = paired_difference_interval(both, only_mine, only_theirs, neither)
    difference = (only_mine - only_theirs) / len(shared)
    return Paired(len(shared), only_mine, only_theirs, exact_mcnemar(only_mine, only_theirs), difference, low, high)


@dataclass(frozen=True)
class RewardDifference:
    """Mean largest reward of one method minus another's, over the starts that both ran."""

    n: int
    difference: float
    low: float  # of its 95 % interval: a bootstrap of starts
    high: float


def reward_difference(mine: Json, theirs: Json) -> RewardDifference | None:
    """Of two cells of a task that grades how near an episode came; None for others, and without a shared start."""
    a, b = _rewards(mine), _rewards(theirs)
    differences = [a[start] - b[start] for start in sorted(a.keys() & b.keys())]
    if not differences:
        return None
    low, high = bootstrap_mean_interval(differences, 1 - ALPHA)
    return RewardDifference(len(differences), float(np.mean(differences)), low, high)


def _rewards(cell: Json) -> dict[int, float]:
    """The largest reward of each start that ran."""
    first = cell["first_start"]
    return {first + i: reward for i, reward in enumerate(cell["max_reward"] or ()) if reward is not None}


def is_saturated(cells: Sequence[Json], reference: Json) -> bool:
    """Whether every method keeps the reference's success (`keeps_success`) and lies within its intervals.

    The intervals are of success and of a graded task's largest reward. Such a column tells no methods apart.
    """
    success, reward = reference["success"]["ever"], reference["mean_max_reward"]
    return all(
        keeps_success(cell, reference)
        and cell["success"]["ever"]["rate"] <= success["high"]
        and (reward is None or reward["low"] <= cell["mean_max_reward"]["mean"] <= reward["high"])
        for cell in cells
    )


def keeps_success(cell: Json, reference: Json) -> bool:
    """Not significantly below the reference on shared starts, and not below its interval.

    On a task that grades episodes neither is its largest reward: where few starts are solved, success alone would let
    everything pass.
    """
    if cell is reference:
        return True
    pair, graded = paired(cell, reference), reward_difference(cell, reference)
    within = cell["success"]["ever"]["rate"] >= reference["success"]["ever"]["low"]
    return pair is not None and not pair.is_below and within and (graded is None or graded.high >= 0)


def cheapest_keeping(cells: Sequence[Json], reference: Json) -> Json | None:
    """Of the cells that keep the reference's success the one with the fewest network calls an observation."""
    keeping = [cell for cell in cells if keeps_success(cell, reference)]
    return min(keeping, key=lambda cell: cell["calls_per_observation"], default=None)


@dataclass(frozen=True)
class MeanComparison:
    """Two methods over the columns that both have, each column counting the same."""

    columns: tuple[str, ...]
    mine: float  # mean success on shared starts
    theirs: float
    difference: float
    difference_interval: Interval  # 95 %: bootstrap over shared starts within each column
    ratio: float | None  # mine over theirs; None where theirs is 0
    ratio_interval: Interval | None


def mean_comparison(mine: Mapping[str, Json], theirs: Mapping[str, Json], seed: int = 0) -> MeanComparison | None:
    """Of cells by column; None without a column that both have.

    Args:
        seed: of the bootstrap.
    """
    pairs = {}
    for column in mine.keys() & theirs.keys():
        a, b = outcomes(mine[column]), outcomes(theirs[column])
        if shared := sorted(a.keys() & b.keys()):
            pairs[column] = np.array([[a[s], b[s]] for s in shared], np.float64).T
    if not pairs:
        return None
    columns = tuple(name for name in mine if name in pairs)
    ours, others = ([Stratum(pairs[c][i], np.ones(pairs[c].shape[1])) for c in columns] for i in (0, 1))
    a, b = suite_score(ours), suite_score(others)
    interval = suite_difference_interval(ours, others, [True] * len(columns), resamples=RESAMPLES, seed=seed)
    return MeanComparison(
        columns=columns,
        mine=a,
        theirs=b,
        difference=a - b,
        difference_interval=interval,
        ratio=a / b if b else None,
        ratio_interval=_ratio_interval([pairs[c] for c in columns], seed) if b else None,
    )


def _ratio_interval(pairs: Sequence[np.ndarray], seed: int) -> Interval | None:
    """Percentile bootstrap of the ratio of mean rates; None where a resample has no success to divide by."""
    generator = np.random.default_rng(seed)
    sums_2R = np.zeros((2, RESAMPLES))
    for pair_2N in pairs:
        n = pair_2N.shape[1]
        times_RN = generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        sums_2R += pair_2N @ times_RN.T / n
    if not sums_2R[1].all():
        return None
    low, high = np.quantile(sums_2R[0] / sums_2R[1], [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)
