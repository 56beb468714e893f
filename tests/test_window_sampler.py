from __future__ import annotations

import itertools

import numpy as np
import pytest
from made_episodes import SPEC, make_episode

from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.window_sampler import WindowSampler, split_episodes
from embodied.errors import UserError

LENGTHS = (1, 5, 12, 2, 7)
ENDS = np.cumsum(LENGTHS)


def make_data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(ENDS[-1], 3)).astype(np.float32), random.normal(size=(ENDS[-1], 2)).astype(np.float32)


def make_sampler(
    history=2, horizon=8, past=0, representation="absolute", episodes=None, executed=None
) -> WindowSampler:
    state, action = make_data()
    return WindowSampler(
        state,
        action,
        ENDS,
        history=history,
        horizon=horizon,
        past=past,
        representation=representation,
        episodes=episodes,
        executed=executed,
    )


def slow_windows(history: int, horizon: int, past: int, representation: str, episodes) -> list[tuple]:
    """Every window, step by step as the padding rules say it, in the episodes' order."""
    state, action = make_data()
    windows = []
    for index in episodes:
        end = int(ENDS[index])
        start = end - LENGTHS[index]
        for t in range(start, end):
            states = []
            for back in reversed(range(history)):
                states.append(state[t - back] if t - back >= start else state[start])
            actions, valid = [], []
            for row in range(t - past, t - past + horizon):
                if row < start:
                    actions.append(action[start])
                elif row >= end:
                    actions.append(action[end - 1])
                else:
                    actions.append(action[row])
                valid.append(representation == "absolute" or start <= row < end)
            windows.append((np.stack(states), np.stack(actions), np.array(valid)))
    return windows


@pytest.mark.parametrize("representation", ["absolute", "delta"])
@pytest.mark.parametrize(
    ("history", "horizon", "past"), [(1, 1, 0), (2, 16, 0), (2, 8, 1), (3, 4, 3), (5, 6, 2), (20, 40, 13)]
)
@pytest.mark.parametrize("episodes", [None, [3], [4, 1, 0]])
def test_gather_equals_the_rules_applied_one_by_one(history, horizon, past, representation, episodes):
    sampler = make_sampler(history, horizon, past, representation, episodes)
    expected = slow_windows(
        history, horizon, past, representation, range(len(LENGTHS)) if episodes is None else episodes
    )
    assert len(sampler) == len(expected)
    order = np.random.default_rng(1).permutation(len(expected))
    window = sampler.gather(order)
    np.testing.assert_array_equal(window.state, np.stack([expected[i][0] for i in order]), strict=True)
    np.testing.assert_array_equal(window.action, np.stack([expected[i][1] for i in order]), strict=True)
    np.testing.assert_array_equal(window.valid, np.stack([expected[i][2] for i in order]), strict=True)


def test_executed_actions_lie_where_the_labels_do():
    _, action = make_data()
    sampler = make_sampler(past=1, executed=action + 1)
    window = sampler.gather(np.arange(len(sampler)))
    np.testing.assert_array_equal(window.executed, window.action + 1, strict=True)
    assert make_sampler().gather(np.arange(3)).executed is None


def test_late_windows_are_not_dropped():
    sampler = make_sampler(horizon=16)
    assert len(sampler) == sum(LENGTHS)
    last = sampler.gather(np.array([len(sampler) - 1]))
    np.testing.assert_array_equal(last.action[0], np.tile(make_data()[1][-1], (16, 1)))
    assert last.valid.all()


def take(batches, count: int) -> list[np.ndarray]:
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize("batch_size", [1, 4, 9, 27, 60])
def test_each_window_comes_exactly_once_an_epoch(batch_size):
    sampler, epochs = make_sampler(), 5
    count = -(-len(sampler) * epochs // batch_size)
    batches = take(sampler.batches(3, batch_size), count)
    assert {len(batch) for batch in batches} == {batch_size}
    stream = np.concatenate(batches)[: len(sampler) * epochs].reshape(epochs, len(sampler))
    for epoch, order in enumerate(stream):
        assert sorted(order) == list(range(len(sampler)))
        np.testing.assert_array_equal(order, sampler.epoch_order(3, epoch))
    assert len({tuple(order) for order in stream}) == epochs


def test_the_order_depends_on_the_seed_and_on_nothing_else():
    order = make_sampler().epoch_order(3, 1)
    np.random.default_rng(0).permutation(5)
    np.testing.assert_array_equal(make_sampler().epoch_order(3, 1), order)
    assert (make_sampler().epoch_order(4, 1) != order).any()
    assert (make_sampler().epoch_order(1, 3) != order).any()


@pytest.mark.parametrize("start", [0, 1, 2, 7, 31])
def test_a_resumed_order_goes_on_where_it_stopped(start):
    sampler = make_sampler()
    whole = take(sampler.batches(0, 8), start + 9)
    resumed = take(sampler.batches(0, 8, start_step=start), 9)
    np.testing.assert_array_equal(np.stack(resumed), np.stack(whole[start:]))


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_the_processes_together_take_exactly_the_global_batch(world):
    sampler = make_sampler()
    whole = np.stack(take(sampler.batches(0, 12, start_step=3), 8))
    shares = [np.stack(take(sampler.batches(0, 12, start_step=3, rank=r, world=world), 8)) for r in range(world)]
    assert {share.shape for share in shares} == {(8, 12 // world)}
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)


def test_from_store(tmp_path):
    with EpisodeStore.create(tmp_path / "store", SPEC, expected_episodes=3, provenance={}) as store:
        for seed in range(3):
            store.commit(make_episode(seed))
        chosen = np.array([1])
        sampler = WindowSampler.from_store(store, history=2, horizon=4, past=1, episodes=chosen, executed=True)
    episode = make_episode(1)
    assert len(sampler) == episode.length
    window = sampler.gather(np.array([2]))
    flat = np.concatenate([episode.state["position"], episode.state["gripper"]], axis=1)
    np.testing.assert_array_equal(window.state[0], flat[1:3], strict=True)
    np.testing.assert_array_equal(window.action[0], episode.action[[1, 2, 3, 3]], strict=True)
    np.testing.assert_array_equal(window.executed[0], episode.executed[[1, 2, 3, 3]], strict=True)
    assert window.valid.tolist() == [[True, True, True, False]]  # the spec's actions are deltas


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 2, "past": 2}, "horizon of at least 3: 2 past actions and the present one; found horizon 2"),
        ({"horizon": 0}, "horizon of at least 1"),
        ({"history": 0}, "history of at least 1 .* found history 0, past 0"),
        ({"past": -1}, "found history 2, past -1"),
        ({"representation": "relative"}, "'absolute' or 'delta'; found 'relative'"),
        ({"episodes": []}, "at least one episode to take windows from; found none"),
        ({"episodes": [0, 5]}, "episode indices from 0 to 4; found 0 to 5"),
        ({"episodes": [-1]}, "found -1 to -1"),
    ],
)
def test_wrong_sizes(change, message):
    with pytest.raises(UserError, match=message):
        make_sampler(**change)


def test_data_that_do_not_fit_each_other():
    state, action = make_data()
    sizes = {"history": 1, "horizon": 1, "representation": "absolute"}
    with pytest.raises(UserError, match=r"of 27 rows, .* found state \[26, 3\], action \[27, 2\]"):
        WindowSampler(state[:-1], action, ENDS, **sizes)
    with pytest.raises(UserError, match=r"action \[25, 2\]"):
        WindowSampler(state, action[:25], ENDS, **sizes)
    with pytest.raises(UserError, match="rise by at least 1"):
        WindowSampler(state, action, np.array([3, 3, 27]), **sizes)
    with pytest.raises(UserError, match="found none; collect demonstrations"):
        WindowSampler(state[:0], action[:0], np.array([], np.int64), **sizes)


@pytest.mark.parametrize(("batch_size", "world"), [(0, 1), (-4, 1), (10, 4)])
def test_a_batch_that_cannot_be_shared(batch_size, world):
    with pytest.raises(
        UserError, match=rf"{world} process\(es\) can share equally; found {batch_size}; choose a positive"
    ):
        make_sampler().batches(0, batch_size, world=world)


@pytest.mark.parametrize(
    ("count", "share", "held_out"), [(200, 0.05, 10), (200, 0.0, 0), (3, 0.01, 1), (2, 0.9, 1), (1, 0.5, 0)]
)
def test_split(count, share, held_out):
    training, validation = split_episodes(count, share, seed=0)
    assert len(validation) == held_out
    assert sorted([*training, *validation]) == list(range(count))
    again = split_episodes(count, share, seed=0)
    np.testing.assert_array_equal(again[0], training)


def test_split_depends_on_the_seed():
    assert (split_episodes(100, 0.2, seed=0)[1] != split_episodes(100, 0.2, seed=1)[1]).any()


def test_split_errors():
    for share in (-0.1, 1.0):
        with pytest.raises(UserError, match=f"validation share from 0 to below 1; found {share}"):
            split_episodes(10, share, seed=0)
    with pytest.raises(UserError, match="at least one episode"):
        split_episodes(0, 0.1, seed=0)
