"""Several tests at once: Holm's adjustment, and letters that show which of several methods are told apart."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment for several tests at once, in the order given."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def compact_letters(different: np.ndarray, rates: Sequence[float]) -> list[str]:
    """Letters for each of several methods: two share a letter exactly if they are not told apart.

    H.-P. Piepho, Journal of Computational and Graphical Statistics 13 (2004) 456-466, insert and absorb: start with
    one letter for all; for each pair told apart, split every letter that both have; drop letters whose methods another
    letter has too. The best method has an `a`.

    Args:
        different: bool [K K], symmetric: which pairs are told apart.
        rates: of the methods, which give the order of the letters.
    """
    count = len(rates)
    groups: list[frozenset[int]] = [frozenset(range(count))]
    for i in range(count):
        for j in range(i + 1, count):
            if different[i, j]:
                split = [part for group in groups for part in _split(group, i, j)]
                groups = _absorb(split)
    best_first = sorted(range(count), key=lambda method: -rates[method])
    groups.sort(key=lambda group: sorted(best_first.index(method) for method in group))
    names = [_letter(index) for index in range(len(groups))]
    return ["".join(name for name, group in zip(names, groups, strict=True) if m in group) for m in range(count)]


def _split(group: frozenset[int], i: int, j: int) -> list[frozenset[int]]:
    return [group - {i}, group - {j}] if {i, j} <= group else [group]


def _absorb(groups: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    unique = list(dict.fromkeys(groups))
    return [group for group in unique if not any(group < other for other in unique)]


def _letter(index: int) -> str:
    """a .. z, then a1 .. z1 and so on: letters written one after another stay readable."""
    round_, letter = divmod(index, 26)
    return string.ascii_lowercase[letter] + (str(round_) if round_ else "")
