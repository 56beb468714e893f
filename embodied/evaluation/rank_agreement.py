"""Does the simulation rank policies as the real robot does? MMRV and Pearson's r, as SimplerEnv defines them.

X. Li et al., "Evaluating Real-World Robot Manipulation Policies in Simulation", arXiv 2405.05941, section 4. R_i is the
real success rate of policy i, S_i the simulated one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embodied.errors import UserError
from embodied.evaluation.statistics import Interval, check_fraction

RESAMPLES = 10_000
PARTS = 20
FEWEST_POLICIES = 5  # below it neither figure says much


@dataclass(frozen=True)
class Agreement:
    """MMRV and r over N policies, with bootstrap intervals."""

    mmrv: float
    mmrv_interval: Interval
    pearson: float | None  # None where all simulated or all real rates are equal
    pearson_interval: Interval | None
    warnings: tuple[str, ...]


def mean_maximum_rank_violation(real: Sequence[float], sim: Sequence[float]) -> float:
    """Mean over policies i of the largest real gap |R_i - R_j| to a j that the simulation ranks the other way round.

        MMRV = 1/N sum_i max_j |R_i - R_j| [(S_i > S_j) != (R_i > R_j)]

    0 is best. A tie in simulation of what is no tie in reality counts, once for each of the two.

    Raises:
        UserError: lists of different lengths, fewer than two, or a rate outside 0..1.
    """
    return float(_violations(*_checked(real, sim)))


def pearson_r(real: Sequence[float], sim: Sequence[float]) -> float | None:
    """Pearson's correlation of the rates; None where one side is constant.

    Raises:
        UserError: as `mean_maximum_rank_violation`.
    """
    r = float(_correlations(*_checked(real, sim)))
    return None if np.isnan(r) else r


def rank_agreement(
    real: Sequence[float],
    sim: Sequence[float],
    confidence: float = 0.95,
    *,
    real_episodes: Sequence[int] | None = None,
    sim_episodes: Sequence[int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Agreement:
    """Both figures with percentile bootstrap intervals over the policies.

    Policies are drawn with replacement; where the number of episodes behind the rates is known, the successes of each
    policy drawn are drawn anew too. Draws that leave one side constant have no r and count for MMRV only.

    Raises:
        UserError: as `mean_maximum_rank_violation`, or a confidence outside (0, 1).
    """
    real_N, sim_N = _checked(real, sim)
    check_fraction("confidence", confidence)
    generator = np.random.default_rng(seed)
    drawn_MN = generator.integers(len(real_N), size=(resamples, len(real_N)))
    real_MN = _redrawn(real_N, real_episodes, drawn_MN, generator)
    sim_MN = _redrawn(sim_N, sim_episodes, drawn_MN, generator)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    parts = zip(np.array_split(real_MN, PARTS), np.array_split(sim_MN, PARTS), strict=True)  # the pairs take memory
    mmrv_low, mmrv_high = np.quantile(np.concatenate([_violations(*part) for part in parts]), tails)
    correlations_M = _correlations(real_MN, sim_MN)
    correlations_M = correlations_M[~np.isnan(correlations_M)]
    r = pearson_r(real, sim)
    interval = None
    if r is not None and len(correlations_M):
        low, high = np.quantile(correlations_M, tails)
        interval = (float(low), float(high))
    return Agreement(
        mean_maximum_rank_violation(real, sim),
        (float(mmrv_low), float(mmrv_high)),
        r,
        interval,
        _warnings(real_N, sim_N),
    )


def _warnings(real_N: np.ndarray, sim_N: np.ndarray) -> tuple[str, ...]:
    warnings = []
    if len(real_N) < FEWEST_POLICIES:
        warnings.append(f"only {len(real_N)} policies: below {FEWEST_POLICIES} neither MMRV nor r says much")
    for name, rates_N in (("real", real_N), ("simulated", sim_N)):
        if np.ptp(rates_N) == 0:
            warnings.append(f"all {name} rates are equal: there is no ranking to agree with, and no r")
    return tuple(warnings)


def _redrawn(
    rates_N: np.ndarray, episodes: Sequence[int] | None, drawn_MN: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    if episodes is None:
        return rates_N[drawn_MN]
    episodes_N = np.asarray(episodes)
    if episodes_N.shape != rates_N.shape or np.any(episodes_N < 1):
        raise UserError(
            expected=f"{len(rates_N)} numbers of episodes of at least 1",
            found=f"{list(episodes)}",
            remedy="give one each",
        )
    return generator.binomial(episodes_N[drawn_MN], rates_N[drawn_MN]) / episodes_N[drawn_MN]


def _violations(real_MN: np.ndarray, sim_MN: np.ndarray) -> np.ndarray:
    """MMRV over the last axis."""
    gaps = real_MN[..., :, None] - real_MN[..., None, :]
    ranked = sim_MN[..., :, None] > sim_MN[..., None, :]
    return np.where(ranked != (gaps > 0), np.abs(gaps), 0.0).max(-1).mean(-1)


def _correlations(real_MN: np.ndarray, sim_MN: np.ndarray) -> np.ndarray:
    """Pearson's r over the last axis; NaN where one side is constant."""
    constant = (np.ptp(real_MN, axis=-1) == 0) | (np.ptp(sim_MN, axis=-1) == 0)
    real_MN = real_MN - real_MN.mean(-1, keepdims=True)
    sim_MN = sim_MN - sim_MN.mean(-1, keepdims=True)
    size = np.sqrt((real_MN**2).sum(-1) * (sim_MN**2).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(constant, np.nan, np.clip((real_MN * sim_MN).sum(-1) / size, -1, 1))  # past 1 by rounding


def _checked(real: Sequence[float], sim: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    real_N, sim_N = np.asarray(real, np.float64), np.asarray(sim, np.float64)
    if real_N.shape != sim_N.shape or real_N.ndim != 1 or len(real_N) < 2:
        raise UserError(
            expected="a real and a simulated rate of each of at least two policies",
            found=f"{real_N.size} real and {sim_N.size} simulated",
            remedy="give both lists in the same order of policies",
        )
    for rate in (*real_N, *sim_N):
        if not 0 <= rate <= 1:
            raise UserError(
                expected="success rates from 0 to 1", found=f"{rate}", remedy="give successes over episodes"
            )
    return real_N, sim_N
