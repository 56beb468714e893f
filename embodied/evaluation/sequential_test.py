"""A paired test that may be watched after every start, and stopped as soon as it decides.

A fixed-n test that is looked at again and again finds a difference sooner or later where there is none. This one does
not: it bets on the starts that only one policy solved. If both succeed equally often, each such start is a fair coin,
and the wealth of a player who begins with 1 and bets on it,

    E_m = integral over q of  (2 q)^w (2 (1 - q))^l  Beta(q; 1/2, 1/2) dq  =  2^m B(w + 1/2, l + 1/2) / B(1/2, 1/2)

with w wins of A and l of B among m = w + l, is a martingale: whatever the order of looks, it ever reaches 1/alpha with
probability at most alpha (Ville's inequality). 1 / max E is therefore a p-value at any time.
The mixture over q is Krichevsky and Trofimov's; A. Ramdas et al., Statistical Science 38 (2023) 576-601, is a survey.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from embodied.evaluation.statistics import check_counts, check_fraction


@dataclass(frozen=True)
class SequentialVerdict:
    """What watching a paired comparison from its first start on would have shown."""

    p: float  # valid whenever one stops
    decided_after: int | None  # starts; None where all of them do not decide
    favours_a: bool | None  # at that moment
    discordant: int  # starts that only one policy solved, or solved more often, of all


def log_wealth(wins_a: int, wins_b: int) -> float:
    """The natural logarithm of E after so many starts that only A, and only B, solved.

    Raises:
        UserError: a negative count.
    """
    check_counts(wins_a=wins_a, wins_b=wins_b)
    together = wins_a + wins_b
    log_beta = math.lgamma(wins_a + 0.5) + math.lgamma(wins_b + 0.5) - math.lgamma(together + 1)
    return together * math.log(2) + log_beta - math.log(math.pi)  # B(1/2, 1/2) is pi


def watch(differences: Sequence[float], alpha: float = 0.05) -> SequentialVerdict:
    """Look after each start, in the order given, which must not depend on the outcomes.

    Args:
        differences: of each start, successes of A minus those of B, from equally many episodes. Only the sign counts,
            which is then a fair coin between equals, whatever the number of episodes.
        alpha: of ever deciding although both succeed equally often.

    Raises:
        UserError: an alpha outside (0, 1).
    """
    check_fraction("alpha", alpha)
    wins_a = wins_b = 0
    most, decided_after, favours_a = 0.0, None, None
    for count, difference in enumerate(differences, 1):
        wins_a += difference > 0
        wins_b += difference < 0
        most = max(most, log_wealth(wins_a, wins_b))
        if decided_after is None and most >= -math.log(alpha):
            decided_after, favours_a = count, wins_a > wins_b
    return SequentialVerdict(math.exp(-most), decided_after, favours_a, wins_a + wins_b)
