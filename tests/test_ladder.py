"""The levels of the streaming buffer: worked examples, and what must hold for every (Tp, Ta, past, N, k)."""

from itertools import pairwise

import pytest
import torch

from embodied.policies.ladder import Ladder

CASES = [
    (16, 8, 0, 100),
    (16, 4, 0, 100),
    (16, 4, 1, 100),
    (20, 8, 1, 100),
    (16, 2, 1, 100),
    (16, 1, 0, 100),
    (12, 4, 0, 50),
]


def ladders():
    return [Ladder(horizon=Tp, action_steps=Ta, past=past, levels=N) for Tp, Ta, past, N in CASES]


def test_worked_example_where_h_divides_N():
    ladder = Ladder(horizon=16, action_steps=4, past=0, levels=100)
    assert ladder.chunks == 4 and ladder.most_calls == 25
    assert ladder.at(0, 1).tolist() == [25] * 4 + [50] * 4 + [75] * 4 + [100] * 4
    assert ladder.at(1, 1).tolist() == [0] * 4 + [25] * 4 + [50] * 4 + [75] * 4
    assert ladder.at(1, 2).tolist() == [12] * 4 + [37] * 4 + [62] * 4 + [87] * 4


def test_worked_example_of_the_released_layout():
    """To 2: one past position joins chunk 0, three trailing ones share the last level; h = 3."""
    ladder = Ladder(horizon=16, action_steps=4, past=1, levels=100)
    assert ladder.chunks == 3 and ladder.most_calls == 33
    assert ladder.at(0, 1).tolist() == [33] * 5 + [66] * 4 + [100] * 7
    assert ladder.at(1, 1).tolist() == [0] * 5 + [33] * 4 + [66] * 7
    assert ladder.at(1, 3).tolist() == [22] * 5 + [55] * 4 + [88] * 7


@pytest.mark.parametrize(
    ("Tp", "Ta", "calls"), [(16, 8, 100 // 2), (36, 8, 25), (16, 2, 12), (16, 1, 6)], ids=lambda value: str(value)
)
def test_full_ladder_costs(Tp, Ta, calls):
    assert Ladder(horizon=Tp, action_steps=Ta, past=0, levels=100).most_calls == calls


@pytest.mark.parametrize("ladder", ladders(), ids=str)
def test_every_cycle_ends_where_the_next_one_begins(ladder):
    for k in {1, 2, 3, ladder.most_calls}:
        start, end = ladder.at(0, k), ladder.at(k, k)
        assert start.max() == ladder.levels and (start >= 1).all()
        head = slice(ladder.past, ladder.past + ladder.action_steps)
        assert (end[: head.stop] == 0).all()
        covered = ladder.past + ladder.chunks * ladder.action_steps
        rolled = end[head.stop : covered]
        assert torch.equal(rolled, start[ladder.past : ladder.past + len(rolled)])


@pytest.mark.parametrize("ladder", ladders(), ids=str)
def test_levels_fall_with_every_call_and_rise_with_position(ladder):
    for k in range(1, ladder.most_calls + 1):
        cycle = ladder.cycle(k)
        assert len(cycle) == k + 1
        for level, below in pairwise(cycle):
            assert (level >= below).all() and (level[ladder.past] > below[ladder.past])
            assert (level.diff() >= 0).all() and (level >= 1).all()


@pytest.mark.parametrize("ladder", ladders(), ids=str)
def test_training_covers_exactly_what_inference_visits(ladder):
    visited = {tuple(row) for row in ladder.visited().tolist()}
    inference = {tuple(level.tolist()) for k in range(1, ladder.most_calls + 1) for level in ladder.cycle(k)[:-1]}
    assert visited == inference


@pytest.mark.parametrize(("Tp", "Ta"), [(16, 4), (16, 8), (20, 4), (10, 1)])
def test_where_h_divides_N_training_is_the_ladder_minus_j(Tp, Ta):
    ladder = Ladder(horizon=Tp, action_steps=Ta, past=0, levels=100)
    start, steps = ladder.at(0, 1), ladder.levels // ladder.chunks
    expected = {tuple((start - j).tolist()) for j in range(steps)}
    assert {tuple(row) for row in ladder.visited().tolist()} == expected


def test_worked_example_with_a_prefix():
    """Past and prefix are clean throughout; the chunks begin behind them, h = (Tp - past - d) // Ta = 3."""
    ladder = Ladder(horizon=16, action_steps=4, past=1, levels=90, prefix=2)
    assert ladder.head == 3 and ladder.chunks == 3 and ladder.most_calls == 30
    assert ladder.at(0, 1).tolist() == [0] * 3 + [30] * 4 + [60] * 4 + [90] * 5
    assert ladder.at(1, 2).tolist() == [0] * 3 + [15] * 4 + [45] * 4 + [75] * 5
    assert ladder.at(1, 1).tolist() == [0] * 7 + [30] * 4 + [60] * 5


PREFIXED = [(16, 4, 0, 100, 1), (16, 4, 1, 100, 3), (16, 8, 0, 100, 8), (20, 8, 1, 100, 3), (16, 1, 0, 100, 4)]


@pytest.mark.parametrize(("Tp", "Ta", "past", "N", "d"), PREFIXED)
def test_behind_a_prefix_the_ladder_is_that_of_a_shorter_buffer_without_past(Tp, Ta, past, N, d):
    ladder = Ladder(horizon=Tp, action_steps=Ta, past=past, levels=N, prefix=d)
    shorter = Ladder(horizon=Tp - past - d, action_steps=Ta, past=0, levels=N)
    for k in range(1, ladder.most_calls + 1):
        for level, expected in zip(ladder.cycle(k), shorter.cycle(k), strict=True):
            assert (level[: past + d] == 0).all() and torch.equal(level[past + d :], expected)


@pytest.mark.parametrize(("Tp", "Ta", "past", "N", "d"), PREFIXED)
def test_behind_a_prefix_every_cycle_ends_where_the_next_one_begins(Tp, Ta, past, N, d):
    ladder = Ladder(horizon=Tp, action_steps=Ta, past=past, levels=N, prefix=d)
    for k in {1, 2, 3, ladder.most_calls}:
        start, end = ladder.at(0, k), ladder.at(k, k)
        rolled = end[Ta : past + d + ladder.chunks * Ta]
        assert torch.equal(rolled, start[: len(rolled)])


@pytest.mark.parametrize(("Tp", "Ta", "past", "N", "d"), PREFIXED)
def test_training_covers_exactly_what_inference_visits_behind_a_prefix(Tp, Ta, past, N, d):
    ladder = Ladder(horizon=Tp, action_steps=Ta, past=past, levels=N, prefix=d)
    visited = {tuple(row) for row in ladder.visited().tolist()}
    inference = {tuple(level.tolist()) for k in range(1, ladder.most_calls + 1) for level in ladder.cycle(k)[:-1]}
    assert visited == inference and all(max(row[: past + d]) == 0 and min(row[past + d :]) > 0 for row in visited)
