"""The sequential test: its error is computed exactly over all paths of coins, not simulated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad

from embodied.errors import UserError
from embodied.evaluation.paired_proportions import exact_mcnemar
from embodied.evaluation.sequential_test import log_wealth, watch


def ever_decides(rejects, win_rate: float, flips: int) -> tuple[float, float]:
    """Exact probability that a test ever rejects within so many discordant starts, and the mean number used.

    Args:
        rejects: of (wins, losses).
        win_rate: probability that a discordant start is A's.
    """
    going_on = {(0, 0): 1.0}
    decided, used = 0.0, 0.0
    for _ in range(flips):
        used += sum(going_on.values())
        after: dict[tuple[int, int], float] = {}
        for (wins, losses), chance in going_on.items():
            for state, step in (((wins + 1, losses), win_rate), ((wins, losses + 1), 1 - win_rate)):
                after[state] = after.get(state, 0.0) + chance * step
        decided += sum(chance for state, chance in after.items() if rejects(*state))
        going_on = {state: chance for state, chance in after.items() if not rejects(*state)}
    return decided, used


def wealth_reaches(alpha: float):
    return lambda wins, losses: log_wealth(wins, losses) >= -math.log(alpha)


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.05 / 3])
def test_it_ever_decides_wrongly_with_at_most_alpha(alpha):
    wrongly, _ = ever_decides(wealth_reaches(alpha), 0.5, 400)
    assert 0.3 * alpha < wrongly <= alpha


def test_looking_again_and_again_at_mcnemars_test_would_not_keep_it():
    wrongly, _ = ever_decides(lambda wins, losses: exact_mcnemar(wins, losses) <= 0.05, 0.5, 100)
    assert wrongly > 0.12


def test_it_needs_few_starts_where_the_difference_is_large():
    decided, used = ever_decides(wealth_reaches(0.05), 0.9, 50)
    assert decided > 0.99 and used < 15
    decided, _ = ever_decides(wealth_reaches(0.05), 0.7, 100)
    assert decided > 0.85


def test_the_wealth_is_a_martingale_and_the_mixture_that_is_claimed():
    for wins in range(8):
        for losses in range(8):
            after = math.exp(log_wealth(wins + 1, losses)) + math.exp(log_wealth(wins, losses + 1))
            assert after / 2 == pytest.approx(math.exp(log_wealth(wins, losses)))

    def bet(angle: float, wins: int, losses: int) -> float:
        """q = sin^2 makes Beta(1/2, 1/2) uniform."""
        q = math.sin(angle) ** 2
        return (2 * q) ** wins * (2 * (1 - q)) ** losses * 2 / math.pi

    for wins, losses in ((0, 0), (5, 1), (3, 7)):
        mixture, _ = quad(bet, 0, math.pi / 2, args=(wins, losses))
        assert math.exp(log_wealth(wins, losses)) == pytest.approx(mixture)


def test_concordant_starts_change_nothing_and_sizes_do_not_count():
    plain = watch([1] * 8)
    assert (plain.decided_after, plain.favours_a, plain.discordant) == (7, True, 8)
    spread = watch([0, 1, 0, 1, 3, 2, 0, 1, 1, 1, 1])
    assert (spread.decided_after, spread.p) == (10, pytest.approx(plain.p))
    mirrored = watch([-1] * 8)
    assert (mirrored.decided_after, mirrored.favours_a, mirrored.p) == (7, False, plain.p)


def test_the_p_value_is_the_best_so_far_and_stays_in_range():
    differences = [1] * 7 + [-1] * 7
    verdict = watch(differences)
    assert verdict.p == pytest.approx(math.exp(-log_wealth(7, 0))) and verdict.decided_after == 7
    assert [watch(d).p for d in ([], [0, 0], [1, -1] * 20)] == pytest.approx([1.0] * 3)
    assert 0 < watch([1] * 1000).p < 1e-200


def test_the_p_value_is_valid_at_any_time():
    """P(p ever <= u) <= u for every u: the exact version over all paths of 60 coins."""
    for u in np.linspace(0.02, 0.9, 12):
        wrongly, _ = ever_decides(wealth_reaches(float(u)), 0.5, 60)
        assert wrongly <= u + 1e-12


def test_mistakes_are_named():
    with pytest.raises(UserError, match="alpha between 0 and 1; found 5"):
        watch([1], alpha=5)
    with pytest.raises(UserError, match="'wins_b' of at least 0; found -1"):
        log_wealth(1, -1)
