"""Several stores as one source: which windows, how often, in which order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from test_window_sampler import ENDS, make_data, make_sampler

from embodied.datasets.streaming_statistics import StreamingStatistics
from embodied.datasets.window_mixture import WindowMixture, mixed_statistics, whole_shares
from embodied.errors import UserError

PARTS = ([0, 1], [2], [3, 4])  # 6, 12 and 9 windows
LENGTHS = (6, 12, 9)


def make_mixture(weights=None, executed=None) -> WindowMixture:
    return WindowMixture([make_sampler(episodes=part, executed=executed) for part in PARTS], weights)


def take(batches, count: int) -> np.ndarray:
    return np.stack(list(itertools.islice(batches, count)))


def owners(indices: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(LENGTHS), indices, side="right")


def test_without_weights_it_is_one_sampler_over_everything():
    mixture, whole = make_mixture(), make_sampler()
    assert len(mixture) == len(whole) == ENDS[-1]
    np.testing.assert_array_equal(take(mixture.batches(4, 6, 3), 20), take(whole.batches(4, 6, 3), 20))
    order = mixture.epoch_order(0, 1)
    ours, theirs = mixture.gather(order), whole.gather(order)
    for name in ("state", "action", "valid"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), strict=True)


def test_executed_actions_come_along():
    _, action = make_data()
    mixture = make_mixture(executed=action + 1)
    window = mixture.gather(mixture.epoch_order(0, 1))
    np.testing.assert_array_equal(window.executed, window.action + 1, strict=True)
    assert make_mixture().gather(np.arange(len(mixture))).executed is None


@pytest.mark.parametrize(
    ("weights", "deck"), [([0.7, 0.2, 0.1], [7, 2, 1]), ([1, 2, 3], [1, 2, 3]), ([0.5, 0.25, 0.25], [2, 1, 1])]
)
def test_shares_are_exact_in_every_deck(weights, deck):
    stream = take(make_mixture(weights).batches(3, sum(deck)), 50)
    for batch in stream:
        assert np.bincount(owners(batch), minlength=3).tolist() == deck
    assert len({tuple(owners(batch)) for batch in stream}) > 3  # shuffled


def test_each_store_gives_every_window_once_before_any_comes_again():
    stream = take(make_mixture([0.7, 0.2, 0.1]).batches(3, 7), 200).ravel()
    orders = []
    for store, length in enumerate(LENGTHS):
        drawn = stream[owners(stream) == store]
        epochs = drawn[: len(drawn) // length * length].reshape(-1, length)
        assert len(epochs) > 10
        for epoch in epochs:
            assert len(set(epoch)) == length
        orders.append(len({tuple(epoch) for epoch in epochs}))
    assert min(orders) > 10


@pytest.mark.parametrize("start", [0, 1, 13, 77])
def test_a_weighted_stream_goes_on_where_it_stopped_and_is_shared_out(start):
    mixture = make_mixture([0.5, 0.3, 0.2])
    whole = take(mixture.batches(1, 8), start + 9)[start:]
    np.testing.assert_array_equal(take(make_mixture([5, 3, 2]).batches(1, 8, start), 9), whole)
    shares = [take(mixture.batches(1, 8, start, rank=rank, world=4), 9) for rank in range(4)]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)
    assert (take(mixture.batches(2, 8, start), 9) != whole).any()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "3 weights, one for each store of data.store; found 2"),
        ([1, 0, 1], r"weights above 0; found \[1, 0, 1\]; leave a store without weight out"),
        ([1, float("nan"), 1], "weights above 0"),
        ([1, "half", 1], r"weights above 0; found \[1, 'half', 1\]"),
        ([1, 0.123456789, 1], "exact within 1,000,000 draws; .* fewer digits"),
    ],
)
def test_weights_that_do_not_fit(weights, message):
    with pytest.raises(UserError, match=message):
        make_mixture(weights)


def test_whole_shares():
    assert whole_shares([0.7, 0.3], 2) == (7, 3)
    assert whole_shares([2, 4, 6], 3) == (1, 2, 3)


def statistics(rows):
    stream = StreamingStatistics()
    stream.add(rows)
    return stream.result()


@pytest.mark.parametrize("weights", [None, [3, 1]])
def test_statistics_are_those_of_what_is_drawn(weights):
    random = np.random.default_rng(0)
    one, other = random.normal(size=(40, 2)), random.normal(3, 2, size=(40 if weights else 90, 2))
    rows = np.concatenate([np.tile(one, (3 if weights else 1, 1)), other])
    mixed = mixed_statistics([statistics(one), statistics(other)], weights)
    for name in ("minimum", "maximum", "mean", "std"):
        np.testing.assert_allclose(getattr(mixed, name), getattr(statistics(rows), name), atol=1e-12)
