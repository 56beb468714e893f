"""Pairs of methods: the exact test, the interval of the difference, what so many starts can show, and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embodied.errors import UserError
from embodied.evaluation.compared_methods import Outcomes, Row
from embodied.evaluation.multiple_comparisons import compact_letters, holm_adjusted
from embodied.evaluation.paired_proportions import (
    exact_sign_flip,
    paired_difference_interval,
    smallest_detectable_difference,
)
from embodied.evaluation.sequential_test import watch
from embodied.evaluation.unpaired_proportions import (
    barnard_p,
    newcombe_interval,
    smallest_detectable_difference_unpaired,
)
from embodied.types import Json

POWER = 0.8  # of the smallest detectable difference


@dataclass(frozen=True)
class PairTest:
    """The exact test of one pair of rows."""

    shared: tuple[int, ...]  # starts; none: the rows are separate samples
    name: str
    p: float


def pair_test(row: Row, other: Row) -> PairTest:
    mine, theirs = row.outcomes, other.outcomes
    shared = tuple(sorted(set(mine.starts) & set(theirs.starts)))
    if shared:
        name = "McNemar" if mine.episodes_each == theirs.episodes_each == 1 else "sign flips"
        return PairTest(shared, name, exact_sign_flip(_differences(mine, theirs, shared)))
    for of_row in (row, other):
        if of_row.outcomes.episodes_each > 1:
            raise UserError(
                expected=f"one episode a start, since '{row.label}' and '{other.label}' share no start",
                found=f"{of_row.outcomes.episodes_each} of '{of_row.label}'",
                remedy="evaluate them on the same starts, or keep the seeds apart: pool_seeds=false",
            )
    return PairTest((), "Barnard", barnard_p(mine.k, mine.n, theirs.k, theirs.n))


def all_pairs(
    rows: Sequence[Row], tests: dict[tuple[int, int], PairTest], confidence: float
) -> tuple[list[Json], list[str | None]]:
    """Every pair of three methods or more, adjusted together, and the letters that show which are told apart."""
    if len(rows) < 3:
        return [], [None] * len(rows)
    adjusted = holm_adjusted([test.p for test in tests.values()])
    different = np.zeros((len(rows), len(rows)), bool)
    pairs = []
    for ((a, b), test), p in zip(tests.items(), adjusted, strict=True):
        different[a, b] = different[b, a] = p <= 1 - confidence
        pairs.append({"a": rows[a].label, "b": rows[b].label, "test": test.name, "p": test.p, "p_holm": p})
    return pairs, list(compact_letters(different, [row.outcomes.k / row.outcomes.n for row in rows]))


def reference_pairs(rows: Sequence[Row], tests: Sequence[PairTest], confidence: float) -> list[Json]:
    """Each method against the reference."""
    pairs = [_pair(row, rows[0], test, confidence) for row, test in zip(rows[1:], tests, strict=True)]
    adjusted = holm_adjusted([pair["p"] for pair in pairs])
    for pair, row, test, p in zip(pairs, rows[1:], tests, adjusted, strict=True):
        pair["p_holm"] = p
        pair["sequential"] = _watched(row, rows[0], test, (1 - confidence) / len(pairs))
        pair["sentence"] = _verdict(pair, confidence, len(pairs))
    return pairs


def _pair(row: Row, reference: Row, test: PairTest, confidence: float) -> Json:
    described = {"label": row.label, "reference": reference.label, "test": test.name, "p": test.p}
    figures = _paired(row, reference, test, confidence) if test.shared else _unpaired(row, reference, confidence)
    return {**described, **figures}


def _paired(row: Row, reference: Row, test: PairTest, confidence: float) -> Json:
    """Counts are starts: with several episodes a start, the mean over the pairs of episodes."""
    both = only_this = only_reference = neither = 0.0
    for start in test.shared:
        rate, reference_rate = row.outcomes.rate(start), reference.outcomes.rate(start)
        both += rate * reference_rate
        only_this += rate * (1 - reference_rate)
        only_reference += (1 - rate) * reference_rate
        neither += (1 - rate) * (1 - reference_rate)
    low, high = paired_difference_interval(both, only_this, only_reference, neither, confidence)
    n = len(test.shared)
    return {
        "design": "paired",
        "n": n,
        "n_reference": n,
        "discordant": {"only_this": only_this, "only_reference": only_reference},
        "difference": {"estimate": (only_this - only_reference) / n, "low": low, "high": high},
        "smallest_detectable_difference": smallest_detectable_difference(
            n, confidence=confidence, power=POWER, counter_rate=min(only_this, only_reference) / n
        ),
    }


def _unpaired(row: Row, reference: Row, confidence: float) -> Json:
    k, n = row.outcomes.k, row.outcomes.n
    reference_k, reference_n = reference.outcomes.k, reference.outcomes.n
    low, high = newcombe_interval(k, n, reference_k, reference_n, confidence)
    rate, reference_rate = k / n, reference_k / reference_n
    sizes = (n, reference_n) if rate >= reference_rate else (reference_n, n)
    return {
        "design": "unpaired",
        "n": n,
        "n_reference": reference_n,
        "discordant": None,
        "difference": {"estimate": rate - reference_rate, "low": low, "high": high},
        "smallest_detectable_difference": smallest_detectable_difference_unpaired(
            *sizes, min(rate, reference_rate), confidence=confidence, power=POWER
        ),
    }


def _watched(row: Row, reference: Row, test: PairTest, alpha: float) -> Json | None:
    """What the sequential test would have said, looked at after every start.

    None for separate samples, and where one of the two has more episodes a start: the sign of a difference of rates is
    then no fair coin even between equals.
    """
    if not test.shared or row.outcomes.episodes_each != reference.outcomes.episodes_each:
        return None
    verdict = watch(_differences(row.outcomes, reference.outcomes, test.shared), alpha)
    favours = None if verdict.favours_a is None else row.label if verdict.favours_a else reference.label
    watched = f"looked at after every start, the sequential test of '{row.label}' and '{reference.label}' would have"
    if favours is None:
        sentence = f"{watched} decided nothing in {len(test.shared)} starts (p {p_in_words(verdict.p)} at any time)."
    else:
        sentence = f"{watched} ended after {verdict.decided_after} of {len(test.shared)} starts, for '{favours}'."
    return {
        "p": verdict.p,
        "alpha": alpha,
        "decided_after": verdict.decided_after,
        "favours": favours,
        "sentence": sentence[0].upper() + sentence[1:],
    }


def _verdict(pair: Json, confidence: float, tests: int) -> str:
    """What can and what cannot be said of a pair at its n."""
    difference, smallest = pair["difference"], pair["smallest_detectable_difference"]
    p = f"{pair['test']} p {p_in_words(pair['p'])}"
    if tests > 1:
        p += f" ({p_in_words(pair['p_holm'])} after Holm's correction for {tests} tests)"
    figures = (
        f"difference {difference['estimate']:+.3f}, {confidence:.0%} interval {difference['low']:+.3f} to "
        f"{difference['high']:+.3f}, {p}"
    )
    paired = pair["design"] == "paired"
    starts = (
        f"{pair['n']} shared starts"
        if paired
        else f"{pair['n']} starts against {pair['n_reference']}, none of them shared,"
    )
    if pair["p_holm"] <= 1 - confidence:
        more = "more" if difference["estimate"] > 0 else "less"
        return f"'{pair['label']}' succeeds {more} often than '{pair['reference']}' on {starts}: {figures}."
    if smallest is None:
        limit = "so few starts would not reliably reveal even the largest difference"
    else:
        assumed = "with as much disagreement as seen here" if paired else "if the worse one's rate is as seen here"
        limit = (
            f"{assumed}, a true difference below {smallest:.2f} would show in less than {POWER:.0%} of such comparisons"
        )
    return (
        f"{starts} do not tell '{pair['label']}' and '{pair['reference']}' apart, nor show that they are equal: "
        f"{figures}; {limit}."
    )


def _differences(mine: Outcomes, theirs: Outcomes, shared: Sequence[int]) -> list[int]:
    """Of each start, in units of one episode of mine times one of theirs."""
    return [mine.ever[start] * theirs.episodes_each - theirs.ever[start] * mine.episodes_each for start in shared]


def p_in_words(p: float) -> str:
    """A probability as a table shows it."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
