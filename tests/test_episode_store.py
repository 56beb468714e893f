"""The contract of every store format, then what is particular to the Zarr one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import zarr
from made_episodes import SPEC, assert_same_episode, make_episode, snapshot

from embodied.datasets import episode_layout
from embodied.errors import UserError
from embodied.types import CameraSpec, Episode

# The contract: any format.


def test_round_trip_is_bit_exact(store_class, make_store):
    store = store_class.open(make_store(12))
    assert len(store) == 12
    for seed in range(12):
        assert_same_episode(store.episode(seed, verify=True), make_episode(seed))
    assert store.ignored == ()


def test_whole_arrays_and_ends(store_class, make_store):
    store = store_class.open(make_store(6))
    episodes = [make_episode(seed) for seed in range(6)]
    np.testing.assert_array_equal(store.read("action"), np.concatenate([e.action for e in episodes]), strict=True)
    np.testing.assert_array_equal(store.read("success"), np.concatenate([e.success for e in episodes]), strict=True)
    np.testing.assert_array_equal(
        store.read("state/position"), np.concatenate([e.state["position"] for e in episodes]), strict=True
    )
    np.testing.assert_array_equal(store.episode_ends, np.cumsum([e.length for e in episodes]))
    assert store.episode_ends.dtype == np.int64
    assert store.total_steps == sum(e.length for e in episodes)


def test_the_spec_and_plan_travel_with_the_store(store_class, store_path):
    with store_class.create(store_path, SPEC, expected_episodes=7, provenance={"noise": 0.2}):
        pass
    store = store_class.open(store_path)
    assert store.spec == SPEC
    assert store.expected_episodes == 7
    assert store.provenance == {"noise": 0.2}
    assert not store.is_complete
    assert store.episode_ends.shape == (0,)
    assert store.read("action").shape == (0, 2)


def test_rows_tell_success_and_rows(store_class, make_store):
    rows = store_class.open(make_store(3)).rows
    assert [(row.start, row.end, row.length) for row in rows] == [(0, 3, 3), (3, 7, 4), (7, 12, 5)]
    assert [row.success for row in rows] == [True, False, True]
    assert [row.first_success for row in rows] == [2, None, 3]
    assert [row.id for row in rows] == ["base-00000000", "base-00000001", "base-00000002"]


def test_a_collection_resumes_with_what_was_attempted(store_class, store_path):
    with store_class.create(store_path, SPEC, expected_episodes=2, provenance={}) as store:
        store.commit(make_episode(4))
        store.drop(5, "no success within the horizon", provenance={"noise": 0.1})
    with store_class.create(store_path, SPEC, expected_episodes=2, provenance={}) as store:
        assert store.attempted_seeds == {4, 5}
        assert [(row.seed, row.reason) for row in store.dropped] == [(5, "no success within the horizon")]
        assert not store.is_complete
        store.commit(make_episode(6))
        assert store.is_complete
    assert [row.seed for row in store_class.open(store_path).rows] == [4, 6]


def test_content_hash_is_of_the_content_in_its_order(store_class, make_store, store_path, tmp_path, monkeypatch):
    reference = store_class.open(make_store(5)).content_hash()
    monkeypatch.setattr(episode_layout, "CHUNK_ROWS", 4)
    monkeypatch.setattr(episode_layout, "SHARD_BYTES", 64)
    monkeypatch.setattr(episode_layout, "IMAGE_SHARD_BYTES", 1)
    other = store_class.open(make_store(5, folder=tmp_path / "other chunks"))
    assert other.content_hash() == reference
    assert_same_episode(other.episode(4, verify=True), make_episode(4))

    def hash_of(name: str, episodes: list[Episode]) -> str:
        with store_class.create(tmp_path / name, SPEC, expected_episodes=5, provenance={}) as store:
            for episode in episodes:
                store.commit(episode)
            return store.content_hash()

    episodes = [make_episode(seed) for seed in range(5)]
    assert hash_of("other order", episodes[::-1]) != reference
    episodes[2].action[1, 1] = np.nextafter(episodes[2].action[1, 1], np.float32(9))
    assert hash_of("one bit", episodes) != reference


def test_statistics_equal_those_of_numpy(store_class, make_store, monkeypatch):
    monkeypatch.setattr(episode_layout, "CHUNK_ROWS", 4)
    monkeypatch.setattr(episode_layout, "SHARD_BYTES", 64)  # several blocks, the last one short
    store = store_class.open(make_store(12))
    statistics = store.statistics(["action", "reward", "image/front"])
    for key, rows in (("action", store.read("action")), ("image/front", store.read("image/front").reshape(-1, 3))):
        expected = rows.astype(np.float64)
        np.testing.assert_array_equal(statistics[key].minimum, expected.min(axis=0))
        np.testing.assert_array_equal(statistics[key].maximum, expected.max(axis=0))
        np.testing.assert_allclose(statistics[key].mean, expected.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(statistics[key].std, expected.std(axis=0), rtol=1e-12)
        assert statistics[key].count == len(expected)
    assert statistics["reward"].mean.shape == (1,)


def test_a_constant_far_from_zero_has_no_deviation(store_class, store_path):
    episode = make_episode(0, steps=50)
    episode.action[:] = np.float32(1234.567)
    with store_class.create(store_path, SPEC, expected_episodes=1, provenance={}) as store:
        store.commit(episode)
        statistics = store.statistics(["action"])["action"]
    assert (statistics.std == 0).all()
    assert (statistics.mean == np.float64(np.float32(1234.567))).all()


def test_physics_may_be_absent(store_class, store_path):
    with store_class.create(store_path, SPEC, expected_episodes=2, provenance={}) as store:
        for seed in range(2):
            store.commit(make_episode(seed, physics_size=0))
    store = store_class.open(store_path)
    assert store.read("physics").shape == (7, 0)
    assert store.statistics(["physics"])["physics"].mean.shape == (0,)
    assert_same_episode(store.episode(1, verify=True), make_episode(1, physics_size=0))


def spoiled(change) -> Episode:
    episode = make_episode(1, steps=6)
    change(episode)
    return episode


def put(name: str, place: tuple, value: float):
    def change(episode: Episode) -> None:
        episode_layout.episode_arrays(episode)[name][place] = value

    return change


BAD_EPISODES = {
    "no steps": (make_episode(1, steps=0), "at least 1 step for seed 1; found 0 steps"),
    "nan action": (
        spoiled(put("action", (4, 1), np.nan)),
        "'action' in the episode of seed 1; found nan at step 4, elem",
    ),
    "inf state": (spoiled(put("state/gripper", (2, 0), np.inf)), "'state/gripper' .* found inf at step 2, element 0"),
    "nan reward": (spoiled(put("reward", (3,), np.nan)), "'reward' .* found nan at step 3"),
    "nan physics": (spoiled(put("physics", (5, 4), -np.inf)), "'physics' .* found -inf at step 5, element 4"),
    "short key": (
        spoiled(lambda e: setattr(e, "reward", e.reward[:-1])),
        r"'reward' as float32 \[6\] .* found float32 \[5\]",
    ),
    "wrong width": (
        spoiled(lambda e: setattr(e, "executed", np.zeros((6, 3), np.float32))),
        r"'executed' as float32 \[6, 2\] .* found float32 \[6, 3\]",
    ),
    "wrong type": (
        spoiled(lambda e: setattr(e, "action", e.action.astype(np.float64))),
        r"'action' as float32 \[6, 2\] .* found float64",
    ),
    "image size": (
        spoiled(lambda e: e.images.update(front=np.zeros((6, 16, 12, 3), np.uint8))),
        r"'image/front' as uint8 \[6, 12, 16, 3\]",
    ),
    "missing state": (spoiled(lambda e: e.state.pop("gripper")), "missing: state/gripper; surplus: none"),
    "surplus image": (
        spoiled(lambda e: e.images.update(wrist=e.images["front"])),
        "missing: none; surplus: image/wrist",
    ),
    "other task": (
        spoiled(lambda e: setattr(e, "task", "robosuite/can")),
        "robosuite/lift; found one of task robosuite/can",
    ),
    "other physics": (make_episode(1, physics_size=4), r"'physics' as float64 \[4, 5\] .* found float64 \[4, 4\]"),
    "flat physics": (spoiled(lambda e: setattr(e, "physics", e.physics[:, 0])), r"'physics' .* found float64 \[6\]"),
    "same seed": (make_episode(0), "seed that was not attempted yet .* found seed 0 again"),
    "dropped seed": (make_episode(3), "found seed 3 again"),
    "provenance": (spoiled(lambda e: e.provenance.update(at=Path("x"))), "provenance of seed 1 as plain JSON"),
}


@pytest.mark.parametrize("name", BAD_EPISODES)
def test_a_bad_episode_is_refused_and_nothing_written(store_class, make_store, store_path, name):
    episode, message = BAD_EPISODES[name]
    with store_class.open(make_store(1), writable=True) as store:
        store.drop(3, "no success")
        before = snapshot(store_path)
        with pytest.raises(UserError, match=message):
            store.commit(episode)
        assert snapshot(store_path) == before
        store.commit(make_episode(2))
        assert_same_episode(store.episode(1, verify=True), make_episode(2))


def test_numbers_of_numpy_are_taken_as_seeds(store_class, store_path):
    episode = make_episode(3)
    episode.seed = np.int64(3)
    with store_class.create(store_path, SPEC, expected_episodes=1, provenance={}) as store:
        store.commit(episode)
        store.drop(np.int64(4), "no success")
    assert store_class.open(store_path).attempted_seeds == {3, 4}


def test_the_provenance_of_a_store_is_json(store_class, store_path):
    with pytest.raises(
        UserError, match=r"provenance of the store .* as plain JSON values; found Object of type PosixPath"
    ):
        store_class.create(store_path, SPEC, expected_episodes=1, provenance={"from": store_path})
    assert not store_path.exists()


def test_a_flat_physics_is_refused_as_the_first_episode_too(store_class, store_path):
    with (
        store_class.create(store_path, SPEC, expected_episodes=1, provenance={}) as store,
        pytest.raises(UserError, match="'physics'"),
    ):
        store.commit(BAD_EPISODES["flat physics"][0])


def test_a_seed_is_dropped_once(store_class, make_store):
    with store_class.open(make_store(1), writable=True) as store:
        store.drop(9, "no success")
        for seed in (0, 9):
            with pytest.raises(UserError, match=f"seed {seed} again"):
                store.drop(seed, "no success")


def test_a_reader_cannot_write(store_class, make_store):
    store = store_class.open(make_store(1))
    with pytest.raises(UserError, match="open for writing; found a store open for reading; open it with writable=True"):
        store.commit(make_episode(1))
    with pytest.raises(UserError, match="writable=True"):
        store.drop(1, "no success")


def test_a_reader_keeps_its_view_while_a_writer_goes_on(store_class, make_store):
    folder = make_store(2)
    reader = store_class.open(folder)
    with store_class.open(folder, writable=True) as writer:
        writer.commit(make_episode(2))
        assert len(reader) == 2
        assert_same_episode(reader.episode(1, verify=True), make_episode(1))
        assert len(store_class.open(folder)) == 3


def test_an_unknown_array_lists_the_known(store_class, make_store):
    store = store_class.open(make_store(1))
    with pytest.raises(UserError, match=r"found 'state/positions'; did you mean 'state/position'\? known: action"):
        store.read("state/positions")


def test_statistics_of_an_empty_store(store_class, make_store):
    with pytest.raises(UserError, match="at least one episode"):
        store_class.open(make_store(0)).statistics(["action"])


# What is particular to Zarr.


def test_layout_on_disk_is_plain_sharded_zarr(make_store):
    group = zarr.open_group(make_store(4), mode="r")
    assert group.attrs["format"] == "embodied-episodes"
    assert group.attrs["version"] == 2
    images = group["data/image/front"]
    assert images.shape == (18, 12, 16, 3)
    assert images.shards is not None
    np.testing.assert_array_equal(images[3:7], make_episode(1).images["front"])
    assert "zstd" in str(images.compressors).lower()


@pytest.mark.parametrize(("height", "chunk"), [(84, 2), (128, 1), (480, 1)])
def test_image_chunks_are_a_few_frames_in_bounded_shards(height, chunk):
    spec = dataclasses.replace(SPEC, cameras=(CameraSpec("front", height, height),))
    layout = episode_layout.array_layouts(spec, 0)["image/front"]
    assert layout.chunk_rows == chunk
    assert layout.shard_rows % layout.chunk_rows == 0
    assert layout.shard_rows * layout.row_bytes <= 16 * 1024 * 1024
    assert layout.shard_rows > 10


def test_episodes_span_shards(store_class, store_path):
    rows = episode_layout.array_layouts(SPEC, 200)["physics"].shard_rows
    lengths = [rows - 3, 7, 2 * rows, 1]
    with store_class.create(store_path, SPEC, expected_episodes=4, provenance={}) as store:
        for seed, steps in enumerate(lengths):
            store.commit(make_episode(seed, steps=steps, physics_size=200))
    store = store_class.open(store_path)
    for seed, steps in enumerate(lengths):
        assert_same_episode(store.episode(seed, verify=True), make_episode(seed, steps=steps, physics_size=200))
