"""`embodied data convert`: formats by name, facts that the source does not state, a summary that says what was lost."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from damaged_stores import data
from made_episodes import fill_store

from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import UserError


@pytest.fixture
def store(tmp_path):
    return fill_store(EpisodeStore, tmp_path / "own.zarr", 3)


@pytest.mark.parametrize(
    ("format", "file"), [("robomimic", "there.hdf5"), ("replay_buffer", "there.zarr.zip"), ("lerobot", "there")]
)
def test_there_and_back_is_the_same_content(store, tmp_path, capsys, format, file):
    there, back = tmp_path / file, tmp_path / "back.zarr"
    summary = data("convert", store, to=format, target=there)
    assert (summary["format"], summary["source_format"]) == (format, "embodied")
    assert (summary["target"], summary["episodes"], summary["steps"]) == (str(there), 3, 12)
    printed = capsys.readouterr().out
    assert summary["lost"] and all(f"not held: {words}\n" in printed for words in summary["lost"])
    assert data("convert", there, to="embodied", target=back)["lost"] == []
    assert EpisodeStore.open(back).content_hash() == EpisodeStore.open(store).content_hash()
    data("convert", store, to=format, target=there)
    assert f"{there} is there already" in capsys.readouterr().out


def test_what_a_file_does_not_say_is_stated(tmp_path):
    foreign = tmp_path / "foreign.hdf5"
    with h5py.File(foreign, "w") as file:
        file.create_group("data").attrs["env_args"] = '{"env_name": "Toy", "type": 2, "env_kwargs": {}}'
        demo = file["data"].create_group("demo_0")
        demo.attrs["num_samples"] = 4
        demo["actions"] = np.zeros((4, 2))
        demo["obs/eef"] = np.arange(12.0).reshape(4, 3)
    with pytest.raises(UserError, match="the control rate of .*foreign.hdf5"):
        data("convert", foreign, to="embodied", target=tmp_path / "a.zarr")
    settings = {"stated.control_hz": 20, "stated.representation": "delta", "stated.task": "toy/reach"}
    data("convert", foreign, to="embodied", target=tmp_path / "a.zarr", **settings)
    spec = EpisodeStore.open(tmp_path / "a.zarr").spec
    assert (spec.task, spec.control_hz, spec.action.representation) == ("toy/reach", 20.0, "delta")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "the format to convert to; found to=None"),
        ({"to": "hdf5"}, "the format to convert to; found to=hdf5;.*robomimic"),
        ({"to": "robomimic"}, "where to write; found target=null"),
        ({"to": "robomimic", "target": "x.hdf5", "stated.representation": "both"}, "absolute or delta; found both"),
    ],
)
def test_settings_that_cannot_work(store, settings, message):
    with pytest.raises(UserError, match=message):
        data("convert", store, **settings)


def test_a_source_of_no_known_format(tmp_path):
    source = tmp_path / "notes.txt"
    source.write_text("nothing")
    with pytest.raises(UserError, match="a store's folder, a run of collect"):
        data("convert", source, to="robomimic", target=tmp_path / "x.hdf5")
