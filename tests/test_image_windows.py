"""Images of training windows: those of the store, whether they are kept in memory or read as they are needed."""

from __future__ import annotations

import dataclasses
import errno
import shutil

import numpy as np
import pytest
import torch
from made_episodes import SPEC, make_episode
from pusht_data import made_arrays, write_zarr_v2

from embodied.datasets import image_rows, mapped_images
from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.image_rows import ImageRows
from embodied.datasets.open_store import open_store
from embodied.datasets.window_sampler import WindowSampler
from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.pusht_board import task_spec
from embodied.types import CameraSpec

FRONT, WRIST = CameraSpec("front", 24, 24), CameraSpec("wrist", 12, 16)
TWO_CAMERAS = dataclasses.replace(SPEC, cameras=(FRONT, WRIST))
EPISODES = 5
BYTES_A_STEP = (24 * 24 + 12 * 16) * 3
PLACES = {"from a memory map": 10**9, "from the shards": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cameras.zarr"
    with EpisodeStore.create(path, TWO_CAMERAS, expected_episodes=EPISODES, provenance={}) as store:
        for seed in range(EPISODES):
            store.commit(make_episode(seed, spec=TWO_CAMERAS))
    return EpisodeStore.open(path)


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def place(request, tmp_path):
    return {"cache": tmp_path / "cache", "most_bytes": request.param}


class Watched:
    """A store that writes down which rows of which arrays were read."""

    def __init__(self, store):
        self._store, self.seen = store, []

    def __getattr__(self, name):
        return getattr(self._store, name)

    def read_rows(self, key, start, end):
        self.seen.append((key, start, end))
        return self._store.read_rows(key, start, end)

    def read_at(self, key, rows):
        self.seen.append((key, *rows.tolist()))
        return self._store.read_at(key, rows)


def sampler(store, images, history=3, **options):
    return WindowSampler.from_store(store, history=history, horizon=4, images=images, **options)


@pytest.mark.parametrize("history", [1, 2, 5])
@pytest.mark.parametrize("episodes", [None, [3], [4, 0]])
def test_windows_show_what_the_episodes_hold(store, place, history, episodes):
    """Step by step: the history up to t, the episode's first image before it."""
    windows = sampler(
        store,
        ImageRows(store, TWO_CAMERAS.cameras, **place),
        history,
        episodes=None if episodes is None else np.array(episodes),
    )
    expected = {"front": [], "wrist": []}
    for index in range(EPISODES) if episodes is None else episodes:
        episode = store.episode(index)
        for t in range(episode.length):
            for name, images in episode.images.items():
                expected[name].append(np.stack([images[max(t - back, 0)] for back in reversed(range(history))]))
    order = np.random.default_rng(0).permutation(len(windows))
    assert len(order) == len(expected["front"])
    window = windows.gather(order)
    assert window.images.keys() == expected.keys()
    for name, rows in expected.items():
        np.testing.assert_array_equal(window.images[name], np.stack([rows[i] for i in order]), strict=True)
        assert window.images[name].dtype == np.uint8


def test_the_same_window_twice_in_a_batch(store, place):
    images = sampler(store, ImageRows(store, [FRONT], **place)).gather(np.array([7, 2, 7])).images
    np.testing.assert_array_equal(images["front"][0], images["front"][2])
    assert (images["front"][0] != images["front"][1]).any()


def test_images_go_with_the_states_of_their_rows(store, place):
    window = sampler(store, ImageRows(store, [WRIST], **place)).gather(np.arange(9))
    rows = store.read("state/position"), store.read("image/wrist")
    for state, images in zip(window.state[:, -1, :3], window.images["wrist"][:, -1], strict=True):
        row = np.flatnonzero((rows[0] == state).all(1))
        assert len(row) == 1 and (rows[1][row[0]] == images).all()


def test_cameras_that_nobody_sees_are_not_read(store, place):
    watched = Watched(store)
    window = sampler(watched, ImageRows(watched, [WRIST], **place)).gather(np.arange(6))
    assert set(window.images) == {"wrist"} and {key for key, *_ in watched.seen} == {"image/wrist"}
    watched.seen.clear()
    assert sampler(watched, None).gather(np.arange(6)).images == {} and watched.seen == []


def test_nothing_is_read_before_the_first_window_and_nothing_twice_where_it_is_mapped(store, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_images, "BLOCK_ROWS", 4)
    watched = Watched(store)
    images = ImageRows(watched, TWO_CAMERAS.cameras, cache=tmp_path)
    one, other = (sampler(watched, images, episodes=np.array(chosen)) for chosen in ([0, 1], [2]))
    assert watched.seen == []
    one.gather(np.arange(3))
    ends = [*range(4, store.total_steps, 4), store.total_steps]
    blocks = [(end - 4 if end % 4 == 0 else end // 4 * 4, end) for end in ends]
    assert watched.seen == [(f"image/{name}", *block) for name in ("front", "wrist") for block in blocks]
    other.gather(np.arange(3))
    sampler(watched, ImageRows(watched, [FRONT], cache=tmp_path)).gather(np.arange(3))  # a later run
    assert len(watched.seen) == 2 * len(blocks)


def test_a_history_is_read_from_the_store_at_once(store):
    watched = Watched(store)
    windows = sampler(watched, ImageRows(watched, [FRONT], most_bytes=0))
    assert store.episode_ends.tolist() == [3, 7, 12, 18, 25]
    windows.gather(np.array([20, 8, 10]))
    assert watched.seen == [("image/front", 7, 8, 9, 10, 18, 19, 20)]


def test_images_are_mapped_where_they_fit_the_bound_exactly(store, tmp_path):
    total = store.total_steps * BYTES_A_STEP
    for most, mapped in ((total - 1, False), (total, True)):
        images = ImageRows(store, TWO_CAMERAS.cameras, cache=tmp_path, most_bytes=most)
        assert images.bytes == total
        images.gather(np.array([[0, 1]]))
        assert images.are_mapped == mapped


def test_half_of_the_free_disk_is_the_bound_for_what_is_not_there_yet(store, tmp_path, monkeypatch):
    total = store.total_steps * BYTES_A_STEP
    for free, mapped in ((2 * total - 2, False), (2 * total, True), (0, True)):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(image_rows.shutil, "disk_usage", lambda _, usage=usage: usage)
        images = ImageRows(store, TWO_CAMERAS.cameras, cache=tmp_path / "cache")
        images.gather(np.array([[0]]))
        assert images.are_mapped == mapped


def test_a_full_disk_leaves_nothing_half_written_and_the_shards_are_read(store, tmp_path, monkeypatch, capsys):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mapped_images.os, "fsync", full)
    images = ImageRows(store, [FRONT], cache=tmp_path)
    np.testing.assert_array_equal(images.gather(np.array([3]))["front"], store.read_rows("image/front", 3, 4))
    assert not images.are_mapped and not list(tmp_path.rglob("*.npy*")) and not list(tmp_path.rglob("*.json"))
    assert "images are read from the shards of" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["marker", "truncated", "other rows"])
def test_a_map_that_is_not_whole_is_made_again(store, tmp_path, damage):
    ImageRows(store, [FRONT], cache=tmp_path).gather(np.array([0]))
    file = tmp_path / store.content_hash() / "front.npy"
    whole, marker = file.read_bytes(), file.with_suffix(".json")
    if damage == "marker":
        marker.unlink()
        file.write_bytes(bytes(len(whole)))
    elif damage == "truncated":
        file.write_bytes(whole[:-1])
    else:
        marker.write_text(marker.read_text().replace(f"[{store.total_steps},", "[1,"))
    images = ImageRows(store, [FRONT], cache=tmp_path)
    np.testing.assert_array_equal(images.gather(np.arange(store.total_steps))["front"], store.read("image/front"))
    assert file.read_bytes() == whole


def test_numpy_reads_the_map(store, tmp_path):
    mapped = mapped_images.map_images(store, WRIST, tmp_path)
    assert not mapped.flags.writeable
    (file,) = tmp_path.rglob("*.npy")
    np.testing.assert_array_equal(np.load(file), store.read("image/wrist"), strict=True)


def test_a_shard_that_is_gone_is_an_error_and_not_black_images(store, tmp_path):
    shutil.copytree(store.path, tmp_path / "copy")
    (tmp_path / "copy" / "data" / "image" / "front" / "c" / "0" / "0" / "0" / "0").unlink()
    images = ImageRows(EpisodeStore.open(tmp_path / "copy"), [FRONT])
    with pytest.raises(UserError, match="rows 0 to 2 of 'image/front' intact"):
        images.gather(np.array([0, 1]))


def test_a_camera_that_the_store_lacks_is_named(store, place):
    images = ImageRows(store, [CameraSpec("side", 8, 8)], **place)
    with pytest.raises(UserError, match="found 'image/side'"):
        images.gather(np.array([[0]]))


def test_images_reach_the_batch_as_bytes(store):
    window = sampler(store, ImageRows(store, [FRONT])).gather(np.arange(4))
    batch = Batch.from_window(window, torch.device("cpu"))
    assert batch.images["front"].dtype == torch.uint8
    np.testing.assert_array_equal(batch.images["front"].numpy(), window.images["front"])


def test_human_push_t_images_likewise(tmp_path, place):
    arrays = made_arrays()
    spec = task_spec("pusht/pixels", cameras=["board"], camera_size=24)
    store = open_store(write_zarr_v2(tmp_path / "human.zarr", arrays), spec)
    windows = sampler(store, ImageRows(store, spec.cameras, **place), history=2)
    for index, rows in ((0, [0, 0]), (29, [28, 29]), (30, [30, 30]), (75, [74, 75])):
        image = windows.gather(np.array([index])).images["board"]
        np.testing.assert_array_equal(image[0], arrays["data/img"][rows].astype(np.uint8), strict=True)
