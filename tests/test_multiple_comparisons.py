"""Holm's adjustment against statsmodels; compact letters against the definition, by brute force."""

from __future__ import annotations

import itertools
import re

import networkx
import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from embodied.evaluation.multiple_comparisons import compact_letters, holm_adjusted


def split(letters: str) -> set[str]:
    return set(re.findall(r"[a-z][0-9]*", letters))


def matrix(count: int, pairs: list[tuple[int, int]]) -> np.ndarray:
    different = np.zeros((count, count), bool)
    for i, j in pairs:
        different[i, j] = different[j, i] = True
    return different


def test_holm_is_that_of_statsmodels():
    random = np.random.default_rng(0)
    for count in (1, 2, 5, 12):
        p_values = random.uniform(0, 0.2, count)
        assert holm_adjusted(list(p_values)) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_letters_of_cases_known_by_hand():
    assert compact_letters(matrix(3, []), [0.1, 0.5, 0.3]) == ["a", "a", "a"]
    assert compact_letters(matrix(3, [(0, 1), (0, 2), (1, 2)]), [0.1, 0.9, 0.5]) == ["c", "a", "b"]
    # The ends are told apart, the middle from neither.
    assert compact_letters(matrix(3, [(0, 2)]), [0.9, 0.5, 0.1]) == ["a", "ab", "b"]
    # Piepho 2004: four treatments, 1-4, 2-4 and 1-3 are different.
    assert compact_letters(matrix(4, [(0, 3), (1, 3), (0, 2)]), [4, 3, 2, 1]) == ["a", "ab", "bc", "c"]


@pytest.mark.parametrize("seed", range(20))
def test_two_share_a_letter_exactly_if_they_are_not_told_apart(seed):
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 9))
    pairs = [pair for pair in itertools.combinations(range(count), 2) if random.uniform() < 0.5]
    different = matrix(count, pairs)
    rates = list(random.uniform(size=count))
    letters = [split(of_one) for of_one in compact_letters(different, rates)]
    for i, j in itertools.combinations(range(count), 2):
        assert bool(letters[i] & letters[j]) == (not different[i, j])
    assert "a" in letters[int(np.argmax(rates))]
    alike = networkx.from_numpy_array(~different & ~np.eye(count, dtype=bool))
    groups = {frozenset(m for m in range(count) if letter in letters[m]) for letter in set().union(*letters)}
    assert groups == {frozenset(clique) for clique in networkx.find_cliques(alike)}, "no letter too many"


def test_more_than_26_letters_stay_readable():
    count = 30
    letters = compact_letters(matrix(count, list(itertools.combinations(range(count), 2))), list(range(count)))
    assert letters[::-1][:2] == ["a", "b"] and letters[0] == "d1" and len(set(letters)) == count
