"""`embodied bench data`: that all readers give the same windows, the arithmetic of rows, and a small real run."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from lerobot_data import TWO_CAMERAS
from made_episodes import SPEC, make_episode

from embodied.benchmarks import data_sampling
from embodied.benchmarks.data_sampling import MeasuredReader, ReaderProcess, SamplingBenchmark, measure
from embodied.benchmarks.made_demonstrations import copy_without_images, made_episode, made_spec, make_store
from embodied.benchmarks.window_readers import LeRobotWindows, NumpyWindows, SampledWindows, ZarrWindows
from embodied.commands import bench, bench_data
from embodied.configuration import check
from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.lerobot_export import export_lerobot_video
from embodied.errors import UserError
from embodied.types import Window

SMALL = "{episodes: 2, steps: 6, camera_size: 32, batch_size: 4, blocks: 2, block_s: 0.01, cold_starts: 1}"


def config(tmp_path, *overrides):
    return check("bench", ["what=data", f"run_root={tmp_path}/runs", f"results={tmp_path}/results", *overrides])


def silent() -> None:
    """Nobody looks at the progress."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Made demonstrations: a store without cameras and one with two, each beside its LeRobotDataset."""
    root = tmp_path_factory.mktemp("data")
    for name, cameras in (("state", 0), ("images", 2)):
        make_store(root / name / "store.zarr", made_spec(cameras, 32, 9), 3, silent)
        export_lerobot_video(EpisodeStore.open(root / name / "store.zarr"), root / name / "lerobot")
    return root


def test_readers_give_the_same_windows_of_states(data, tmp_path):
    path = data / "state" / "store.zarr"
    limit = NumpyWindows(path)
    every = np.random.default_rng(0).permutation(len(limit))
    expected = limit.gather(every)
    assert len(limit) == 27
    assert (expected.state.shape, expected.action.shape) == ((27, 2, 6), (27, 16, 2))
    for reader in (SampledWindows(path), LeRobotWindows(data / "state" / "lerobot", tmp_path)):
        assert len(reader) == 27
        window = reader.gather(every)
        np.testing.assert_array_equal(window.state, expected.state)
        np.testing.assert_array_equal(window.action, expected.action)


def test_readers_give_the_same_windows_of_images(data, tmp_path):
    """Of a video nearly the same: each window's images are far closer to its own than to the next window's."""
    path = data / "images" / "store.zarr"
    limit = NumpyWindows(path)
    every = np.random.default_rng(0).permutation(len(limit))
    expected = limit.gather(every)
    for reader in (SampledWindows(path), SampledWindows(path, tmp_path / "maps"), ZarrWindows(path)):
        window = reader.gather(every)
        np.testing.assert_array_equal(window.state, expected.state)
        np.testing.assert_array_equal(window.action, expected.action)
        assert sorted(window.images) == ["camera0", "camera1"]
        for name, images in expected.images.items():
            np.testing.assert_array_equal(window.images[name], images)
    video = LeRobotWindows(data / "images" / "lerobot", tmp_path / "tables").gather(every)
    for name, images in expected.images.items():
        own = np.abs(video.images[name].astype(int) - images).mean()
        other = np.abs(video.images[name].astype(int) - np.roll(images, 1, axis=0)).mean()
        assert video.images[name].shape == images.shape and video.images[name].dtype == np.uint8
        assert own < 6 < other


def test_episodes_are_made_from_their_seeds():
    spec = made_spec(2, 32, 9)
    first, again, other = made_episode(spec, 1), made_episode(spec, 1), made_episode(spec, 2)
    np.testing.assert_array_equal(first.images["camera1"], again.images["camera1"])
    assert (first.images["camera0"] != other.images["camera0"]).any()
    moved = np.abs(np.diff(first.images["camera0"].astype(int), axis=0))
    assert 0 < moved.mean() < 10, "the shapes move, and slowly"


def test_a_copy_has_all_but_the_images(tmp_path):
    with EpisodeStore.create(tmp_path / "a.zarr", TWO_CAMERAS, expected_episodes=2, provenance={}) as store:
        for seed in (3, 5):
            store.commit(make_episode(seed, spec=TWO_CAMERAS))
    copy_without_images(store, tmp_path / "b.zarr", silent)
    copy = EpisodeStore.open(tmp_path / "b.zarr")
    assert copy.spec.cameras == () and copy.spec.state == SPEC.state
    np.testing.assert_array_equal(copy.read("action"), store.read("action"))
    np.testing.assert_array_equal(copy.episode_ends, store.episode_ends)


class Scripted:
    """A reader whose rates were written beforehand, the first one for the warm-up."""

    def __init__(self, rates, cold):
        self._rates, self._cold = iter(rates), iter(cold)

    def start(self, batch_size, seed):
        assert batch_size == 8
        return {"open_s": 0.5, "windows_per_s": next(self._cold)}

    def windows_per_s(self, batch_size, seed, seconds):
        assert (batch_size, seconds) == (8, 0.25)
        return next(self._rates)

    def memory(self):
        return {"peak_mb": 90.0, "own_mb": 70.0}


def test_ratios_are_taken_block_by_block():
    readers = {"a": Scripted([1.0, 8.0, 30.0, 12.0], [3.0, 5.0]), "b": Scripted([99.0, 4.0, 10.0, 12.0], [1.0, 1.0])}
    reports = []
    settings = SamplingBenchmark(blocks=3, block_s=0.25, cold_starts=2, batch_size=8, seed=0)
    rows = measure(readers, settings, ["b", "absent"], lambda: reports.append(1))
    assert rows["a"] == {
        "windows_per_s": {"median": 12.0, "low": 8.0, "high": 30.0},
        "cold_windows_per_s": {"median": 4.0, "low": 3.0, "high": 5.0},
        "open_s": 0.5,
        "peak_mb": 90.0,
        "own_mb": 70.0,
        "ratios": {"b": {"median": 2.0, "low": 1.0, "high": 3.0}},
    }
    assert rows["b"]["ratios"] == {}
    assert len(reports) == 2 * (2 + 4)


class Counted:
    """Ten windows, which notes what it was asked for."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 10

    def gather(self, indices):
        self.asked.append(indices)
        return Window(np.zeros((len(indices), 2, 1)), np.zeros((len(indices), 16, 1)), np.ones((len(indices), 16)))


def test_a_block_ends_with_the_batch_that_fills_its_time(monkeypatch, tmp_path):
    reader = Counted()
    measured = MeasuredReader(lambda: reader, tmp_path)
    moments_s = iter([0.0, 2.0, 5.0, 5.5, 10.0, 10.4, 10.8, 11.0])  # start: 2 s to open, a batch in 0.5 s; then a block
    monkeypatch.setattr(data_sampling.time, "perf_counter", lambda: next(moments_s))
    assert measured.start(4, seed=0) == {"open_s": 2.0, "windows_per_s": 8.0}
    assert measured.windows_per_s(4, seed=0, seconds=1.0) == 3 * 4 / 1.0
    first, second, third = reader.asked[1:]
    assert len({*first, *second}) == 8, "no window twice before all whole batches were had"
    np.testing.assert_array_equal(third, first)
    memory = measured.memory()
    assert memory["peak_mb"] >= memory["own_mb"] > 10


def test_a_target_is_met_by_what_was_measured(tmp_path):
    def row(data, reader, **ratios):
        timings = {"ratios": {name: {"median": value} for name, value in ratios.items()}}
        return {"data": data, "reader": reader, "is_installed": True, "timings": timings}

    numpy, zarr = bench_data.LIMIT, bench_data.ZARR
    rows = [
        row("state", "embodied", **{numpy: 0.49}),
        row("images", "embodied, shards", **{zarr: 2.5, "LeRobotDataset": 9.0}),
        row("images", "embodied, memory map", **{zarr: 25.0, "LeRobotDataset": 1000.0}),
    ]
    assert [line[-2:] for line in bench_data.target_cells(rows)] == [
        ["not installed", "-"],
        ["0.49", "NO"],
        ["9", "NO"],
        ["1,000", "yes"],
        ["2.5", "yes"],
        ["25", "yes"],
    ]


@pytest.mark.heavy
def test_a_small_real_run(tmp_path, capsys):
    path = bench.run(config(tmp_path, f"data={SMALL}"))
    rows = json.loads(path.read_text())["rows"]
    assert [(row["data"], row["reader"]) for row in rows] == [
        ("state", "numpy, in memory"),
        ("state", "embodied"),
        ("state", "LeRobotDataset"),
        ("images", "numpy, in memory"),
        ("images", "embodied, shards"),
        ("images", "embodied, memory map"),
        ("images", "zarr, default pipeline"),
        ("images", "LeRobotDataset"),
    ]
    assert all(row["timings"]["peak_mb"] > 10 and row["timings"]["cold_windows_per_s"]["low"] > 0 for row in rows)
    assert sorted(rows[1]["timings"]["ratios"]) == ["LeRobotDataset", "numpy, in memory"]
    page = (tmp_path / "results" / "data.md").read_text()
    assert "2 episodes, 12 windows, made for this, 2 cameras of 32x32" in page
    assert "| state | embodied | LeRobotDataset | 1000 |" in page
    assert not (path.parent / "data").exists()
    assert "memory map" in capsys.readouterr().out


def test_without_lerobot_its_rows_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_data, "_is_lerobot_installed", lambda: False)
    with EpisodeStore.create(tmp_path / "mine.zarr", SPEC, expected_episodes=2, provenance={}) as store:
        for seed in range(2):
            store.commit(make_episode(seed, spec=SPEC))
    path = bench.run(config(tmp_path, f"data={SMALL}", f"data.store={store.path}"))
    rows = json.loads(path.read_text())["rows"]
    assert [row["is_installed"] for row in rows if row["reader"] == "LeRobotDataset"] == [False, False]
    page = (tmp_path / "results" / "data.md").read_text()
    assert f"2 episodes, {store.total_steps} windows, those of mine.zarr" in page
    assert "| state | LeRobotDataset | not installed |" in page


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.blocks=0"], "data.blocks of at least 1; found 0"),
        (["data.batch_size=0"], "data.batch_size of at least 1; found 0"),
        (["data.block_s=0"], "data.block_s above 0; found 0"),
        (["data.camera_size=16"], "data.camera_size of at least 32; found 16"),
        (["data.episodes=0"], "data.episodes of at least 1; found 0"),
        (["data.store=/nowhere.zarr"], "nowhere.zarr"),
    ],
)
def test_what_cannot_be_measured(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        bench.run(config(tmp_path, *overrides))


def test_a_reader_that_fails_is_named(tmp_path):
    process = ReaderProcess(functools.partial(NumpyWindows, tmp_path / "none.zarr"), tmp_path)
    try:
        with pytest.raises(UserError, match="a reader that gives windows; found UserError: .*none.zarr"):
            process.start(4, 0)
    finally:
        process.close()
