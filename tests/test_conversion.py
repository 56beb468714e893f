"""Conversion between formats: the source's is found by looking, and the guide's examples run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import h5py
import numpy as np
import pytest
from foreign_files import assert_same_store, decode_zarr_v2, nothing_left_in
from made_episodes import SPEC, fill_store
from pusht_data import made_arrays, write_zarr_v2

from embodied import pusht_board
from embodied.conversion import convert
from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.foreign_episodes import Stated
from embodied.errors import UserError

DOCS = Path(__file__).parent.parent / "docs" / "formats.md"


@pytest.mark.parametrize(
    ("name", "format"),
    [("b.zarr", "replay_buffer"), ("b.zarr.zip", "replay_buffer"), ("b.hdf5", "robomimic"), ("b", "lerobot")],
)
def test_there_and_back(tmp_path, store_path, name, format):
    store = EpisodeStore.open(fill_store(EpisodeStore, store_path, 4))
    there = convert(str(store_path), str(tmp_path / name), format)
    assert (there["source_format"], there["episodes"], there["steps"]) == ("embodied", 4, store.total_steps)
    back = convert(str(tmp_path / name), str(tmp_path / "back.zarr"), "embodied")
    assert (back["source_format"], back["episodes"], back["lost"]) == (format, 4, [])
    assert_same_store(EpisodeStore.open(tmp_path / "back.zarr"), store)


def test_a_mask_chooses_demonstrations(tmp_path, store_path):
    store = EpisodeStore.open(fill_store(EpisodeStore, store_path, 4))
    convert(str(store_path), str(tmp_path / "b.hdf5"), "robomimic")
    with h5py.File(tmp_path / "b.hdf5") as file:
        chosen = [int(name.decode().removeprefix("demo_")) for name in file["mask/train"]]
    assert len(chosen) == 3
    for target, format in (("train.zarr", "embodied"), ("train.zarr.zip", "replay_buffer")):
        result = convert(str(tmp_path / "b.hdf5"), str(tmp_path / target), format, Stated(filter_key="train"))
        assert result["episodes"] == 3
    back = EpisodeStore.open(tmp_path / "train.zarr")
    assert [row.seed for row in back.rows] == [store.rows[index].seed for index in chosen]
    with pytest.raises(UserError, match="filter key for one of robomimic's files alone; found stated.filter_key=train"):
        convert(str(store_path), str(tmp_path / "c"), "lerobot", Stated(filter_key="train"))


def test_from_one_foreign_format_to_another(tmp_path):
    arrays = made_arrays()
    write_zarr_v2(tmp_path / "human.zarr", arrays)
    result = convert(str(tmp_path / "human.zarr"), str(tmp_path / "b.hdf5"), "robomimic", Stated(control_hz=10))
    assert (result["source_format"], result["episodes"], result["steps"]) == ("replay_buffer", 3, 76)
    assert "rewards: zeros, nobody recorded them" in result["lost"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.hdf5", "human.zarr"]
    with h5py.File(tmp_path / "b.hdf5") as file:
        np.testing.assert_array_equal(file["data/demo_1/obs/state"][()], arrays["data/state"][30:51])


def test_push_t_as_one_of_its_tasks_shows_it(tmp_path):
    write_zarr_v2(tmp_path / "human.zarr", made_arrays())
    stated = Stated(spec=pusht_board.task_spec("pusht/keypoints"))
    convert(str(tmp_path / "human.zarr"), str(tmp_path / "b.zarr"), "replay_buffer", stated)
    assert decode_zarr_v2(tmp_path / "b.zarr", "data/block_keypoints").shape == (76, 16)


class TestBadRequests:
    def test_an_unknown_format(self, tmp_path):
        with pytest.raises(UserError, match="a known format; found 'robomimc'; did you mean 'robomimic'"):
            convert("a", str(tmp_path / "b"), "robomimc")

    def test_a_source_in_no_known_format(self, tmp_path):
        with pytest.raises(
            UserError, match="at .*nowhere; found nothing; known formats: embodied, .*; robomimic, HDF5"
        ):
            convert(str(tmp_path / "nowhere"), str(tmp_path / "b"), "robomimic")
        (tmp_path / "text").write_text("no data")
        with pytest.raises(UserError, match="found something else; known formats"):
            convert(str(tmp_path / "text"), str(tmp_path / "b"), "robomimic")

    def test_a_copy(self, tmp_path, store_path):
        fill_store(EpisodeStore, store_path, 1)
        with pytest.raises(UserError, match="found 'embodied' for both; copy the folder"):
            convert(str(store_path), str(tmp_path / "b"), "embodied")

    def test_a_source_that_cannot_be_converted_leaves_nothing(self, tmp_path):
        write_zarr_v2(tmp_path / "human.zarr", made_arrays())
        with nothing_left_in(tmp_path), pytest.raises(UserError, match="the control rate"):
            convert(str(tmp_path / "human.zarr"), str(tmp_path / "b.hdf5"), "robomimic")

    def test_something_at_the_target(self, tmp_path, store_path):
        fill_store(EpisodeStore, store_path, 1)
        (tmp_path / "b.hdf5").write_text("mine")
        with nothing_left_in(tmp_path), pytest.raises(UserError, match="nothing at .*b.hdf5 yet; found a file"):
            convert(str(store_path), str(tmp_path / "b.hdf5"), "robomimic")
        assert (tmp_path / "b.hdf5").read_text() == "mine"


def test_the_examples_of_the_guide_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill_store(EpisodeStore, Path("demonstrations.zarr"), 3)
    write_zarr_v2(Path("pusht_cchi_v7_replay.zarr"), made_arrays())
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        Path(f"{number}.py").write_text(block)
        runpy.run_path(f"{number}.py")
    assert EpisodeStore.open("pusht.zarr").spec.control_hz == 10
    assert EpisodeStore.open("lift.zarr").spec == SPEC
    hashes = {EpisodeStore.open(name).content_hash() for name in ("demonstrations.zarr", "lift.zarr", "lift_2.zarr")}
    assert len(hashes) == 1
