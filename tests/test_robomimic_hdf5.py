"""robomimic's HDF5 files, both ways: to the last bit, and bad files in a sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from foreign_files import assert_same_store, nothing_left_in
from made_episodes import SPEC, fill_store
from pusht_data import made_arrays, write_zarr_v2

from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.foreign_episodes import Stated
from embodied.datasets.replay_buffer_zarr import import_replay_buffer
from embodied.datasets.robomimic_hdf5 import export_robomimic, import_robomimic
from embodied.errors import UserError
from embodied.types import UNKNOWN_UNIT

ENV_ARGS = {
    "env_name": "Lift",
    "type": 1,
    "env_kwargs": {"control_freq": 20, "controller_configs": {"type": "OSC_POSE", "control_delta": True}},
}
LENGTHS = (4, 6, 5)


def write_robomimic(path: Path) -> Path:
    """A file as robomimic's own scripts write it: float64, next_obs, model_file, demonstrations out of order."""
    random = np.random.default_rng(3)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(ENV_ARGS)
        data.attrs["total"] = sum(LENGTHS)
        for number, length in zip((10, 2, 3), LENGTHS, strict=True):
            demonstration = data.create_group(f"demo_{number}")
            demonstration.attrs["num_samples"] = length
            demonstration.attrs["model_file"] = "<mujoco/>"
            demonstration["actions"] = random.uniform(-1, 1, (length, 7))
            demonstration["states"] = random.normal(size=(length, 32))
            demonstration["rewards"] = (np.arange(length) >= length - 2).astype("f8")
            demonstration["dones"] = (np.arange(length) >= length - 2).astype("i8")
            for folder in ("obs", "next_obs"):
                demonstration[f"{folder}/robot0_eef_pos"] = random.normal(size=(length, 3))
                demonstration[f"{folder}/agentview_image"] = random.integers(0, 256, (length, 8, 9, 3), np.uint8)
        file["mask/train"] = np.array(["demo_2", "demo_10"], dtype="S")
        file["mask/valid"] = np.array(["demo_3"], dtype="S")
    return path


@pytest.fixture
def foreign(tmp_path) -> Path:
    return write_robomimic(tmp_path / "demo.hdf5")


def test_a_store_comes_back_as_it_was(tmp_path, store_path):
    store = EpisodeStore.open(fill_store(EpisodeStore, store_path, 12))
    lost = export_robomimic(store, tmp_path / "b.hdf5")
    assert any("next_obs" in line for line in lost)
    assert import_robomimic(tmp_path / "b.hdf5", tmp_path / "back.zarr") == []
    assert_same_store(EpisodeStore.open(tmp_path / "back.zarr"), store)


def test_what_is_written_is_what_robomimic_reads(tmp_path, store_path):
    store = EpisodeStore.open(fill_store(EpisodeStore, store_path, 12))
    export_robomimic(store, tmp_path / "b.hdf5")
    with h5py.File(tmp_path / "b.hdf5") as file:
        env_args = json.loads(file["data"].attrs["env_args"])
        assert env_args["env_name"] == "robosuite/lift" and env_args["env_kwargs"] == {"control_freq": 20.0}
        assert file["data"].attrs["total"] == store.total_steps
        assert sorted(file["data"], key=lambda name: int(name[5:])) == [f"demo_{index}" for index in range(12)]
        for index in range(12):
            episode, demonstration = store.episode(index), file[f"data/demo_{index}"]
            assert demonstration.attrs["num_samples"] == episode.length
            assert sorted(demonstration["obs"]) == ["front", "gripper", "position"]
            np.testing.assert_array_equal(demonstration["obs/front"][()], episode.images["front"], strict=True)
            np.testing.assert_array_equal(demonstration["actions"][()], episode.action, strict=True)
            np.testing.assert_array_equal(demonstration["rewards"][()], episode.reward, strict=True)
            np.testing.assert_array_equal(demonstration["states"][()], episode.physics, strict=True)
            assert demonstration["dones"][()].tolist() == [0] * (episode.length - 1) + [1]
        train, valid = (set(file[f"mask/{name}"][()].astype(str)) for name in ("train", "valid"))
        assert len(valid) == 1 and not train & valid and len(train | valid) == 12


def test_a_foreign_file_becomes_a_store_with_an_honest_spec(tmp_path, foreign):
    lost = import_robomimic(foreign, tmp_path / "ours.zarr")
    assert lost == [
        "dones (int64 [T]): left out",
        "next_obs (the next step's obs): left out",
        "model_file (each demonstration's MuJoCo model): left out",
        "actions: rounded to float32",
        "obs/robot0_eef_pos: rounded to float32",
        "not recorded: executed, success, time_s "
        "(executed as the action, reward 0, no success, time from the control rate)",
    ]
    store = EpisodeStore.open(tmp_path / "ours.zarr")
    spec = store.spec
    assert (spec.task, spec.control_hz, spec.horizon) == ("imported/lift", 20.0, 6)
    assert spec.action.representation == "delta" and set(spec.action.units) == {UNKNOWN_UNIT}
    assert [state.name for state in spec.state] == ["robot0_eef_pos"]
    assert [(camera.name, camera.height, camera.width) for camera in spec.cameras] == [("agentview_image", 8, 9)]
    with h5py.File(foreign) as file:
        for index, name in enumerate(("demo_2", "demo_3", "demo_10")):
            episode, demonstration = store.episode(index, verify=True), file["data"][name]
            np.testing.assert_array_equal(episode.action, demonstration["actions"][()].astype("f4"))
            np.testing.assert_array_equal(episode.physics, demonstration["states"][()], strict=True)
            np.testing.assert_array_equal(episode.images["agentview_image"], demonstration["obs/agentview_image"][()])
            assert episode.provenance["name"] == name
        assert min(spec.action.low) == pytest.approx(
            min(file[f"data/{name}/actions"][()].min() for name in file["data"]), rel=1e-6
        )
    assert [row.provenance["masks"] for row in store.rows] == [["train"], ["valid"], ["train"]]


def test_and_goes_back_with_its_environment_and_masks(tmp_path, foreign):
    import_robomimic(foreign, tmp_path / "ours.zarr")
    export_robomimic(EpisodeStore.open(tmp_path / "ours.zarr"), tmp_path / "back.hdf5")
    with h5py.File(tmp_path / "back.hdf5") as back, h5py.File(foreign) as file:
        assert json.loads(back["data"].attrs["env_args"]) == ENV_ARGS
        assert back["mask/train"][()].tolist() == [b"demo_0", b"demo_2"]
        for ours, theirs in (("demo_0", "demo_2"), ("demo_2", "demo_10")):
            for key in ("rewards", "states", "obs/agentview_image"):
                there, here = file[f"data/{theirs}/{key}"], back[f"data/{ours}/{key}"]
                np.testing.assert_array_equal(here[()], there[()], strict=True)
            assert back[f"data/{ours}/actions"].dtype == "f8"


def test_success_and_a_mask_may_be_named(tmp_path, foreign):
    import_robomimic(foreign, tmp_path / "ours.zarr", Stated(success="rewards", filter_key="train"))
    store = EpisodeStore.open(tmp_path / "ours.zarr")
    assert [(row.length, row.first_success) for row in store.rows] == [(6, 5), (4, 3)]
    assert store.provenance["source"]["made_up"] == ["executed", "time_s"]


def test_rewards_that_nobody_recorded_are_zeros_and_said_so(tmp_path):
    buffer = write_zarr_v2(tmp_path / "human.zarr", made_arrays())
    import_replay_buffer(buffer, tmp_path / "ours.zarr", Stated(control_hz=10))
    lost = export_robomimic(EpisodeStore.open(tmp_path / "ours.zarr"), tmp_path / "b.hdf5")
    assert lost[-2:] == [
        "executed, success, time_s, physics: not written, nobody recorded them",
        "rewards: zeros, nobody recorded them",
    ]
    with h5py.File(tmp_path / "b.hdf5") as file:
        assert sorted(file["data/demo_0"]) == ["actions", "dones", "obs", "rewards"]


class TestBadFiles:
    """One sentence each; the target is not made."""

    def refused(self, path: Path, match: str, stated: Stated | None = None) -> None:
        with nothing_left_in(path.parent), pytest.raises(UserError, match=match):
            import_robomimic(path, path.parent / "ours.zarr", stated)

    def changed(self, path: Path, key: str, values) -> None:
        with h5py.File(path, "r+") as file:
            del file[key]
            if values is not None:
                file[key] = values

    def test_no_env_args(self, foreign):
        with h5py.File(foreign, "r+") as file:
            del file["data"].attrs["env_args"]
        self.refused(foreign, r"the attribute env_args of data in .*; found none \(a raw robosuite file\?\); write")

    @pytest.mark.parametrize("text", ["{", "[]", "\xff"])
    def test_env_args_that_are_no_json_object(self, foreign, text):
        with h5py.File(foreign, "r+") as file:
            file["data"].attrs["env_args"] = text
        self.refused(foreign, "JSON in the attribute env_args")

    def test_no_control_rate(self, foreign):
        with h5py.File(foreign, "r+") as file:
            file["data"].attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": True}})
        self.refused(foreign, "the control rate of .*; found none; state it")

    def test_arrays_of_differing_length(self, foreign):
        self.changed(foreign, "data/demo_3/obs/robot0_eef_pos", np.zeros((3, 3)))
        self.refused(foreign, "5 rows of each array of demo_3, as of its actions .*; found obs/robot0_eef_pos 3; cut")

    def test_num_samples_that_are_not_there(self, foreign):
        with h5py.File(foreign, "r+") as file:
            file["data/demo_2"].attrs["num_samples"] = 9
        self.refused(foreign, "9 rows of demo_2, as its num_samples says in .*; found 6")

    def test_an_episode_without_steps(self, foreign):
        self.changed(foreign, "data/demo_3/actions", np.zeros((0, 7)))
        self.refused(foreign, "at least one step of demo_3 in .*; found none; take that demonstration out")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_actions_that_are_not_finite(self, foreign, value):
        with h5py.File(foreign, "r+") as file:
            file["data/demo_10/actions"][2, 1] = value
        self.refused(foreign, f"finite values of actions in .*; found {value} in demo_10, step 2, element 1; take that")

    def test_a_file_that_was_cut_off(self, foreign):
        content = foreign.read_bytes()
        foreign.write_bytes(content[: len(content) // 2])
        self.refused(foreign, "an HDF5 file, whole, at .*; found .*truncated file.*; copy it again")

    def test_a_file_that_is_none(self, foreign):
        foreign.write_bytes(b"no HDF5")
        self.refused(foreign, "an HDF5 file, whole, at .*; found .*signature not found")

    def test_a_damaged_chunk(self, foreign):
        images = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), np.uint8)
        with h5py.File(foreign, "r+") as file:
            del file["data/demo_3/obs/agentview_image"]
            array = file["data/demo_3"].create_dataset(
                "obs/agentview_image", data=images, chunks=(1, 8, 9, 3), compression="gzip"
            )
            offset = array.id.get_chunk_info(2).byte_offset
        content = bytearray(foreign.read_bytes())
        content[offset : offset + 40] = bytes(40)
        foreign.write_bytes(content)
        self.refused(foreign, "obs/agentview_image of demo_3 intact in ")

    def test_no_observations(self, foreign):
        self.changed(foreign, "data/demo_2/obs", None)
        self.refused(foreign, r"observations \(obs/...\) of demo_2 .*; found none; add them .*dataset_states_to_obs.py")

    def test_no_actions_and_no_demonstrations(self, foreign):
        self.changed(foreign, "data/demo_2/actions", None)
        self.refused(foreign, "actions of demo_2 in .*; found dones, next_obs/")
        for name in ("demo_2", "demo_3", "demo_10"):
            self.changed(foreign, f"data/{name}", None)
        self.refused(foreign, "at least one demonstration in .*; found none")
        self.changed(foreign, "data", None)
        self.refused(foreign, "the group data of a robomimic file in .*; found no such group")

    def test_demonstrations_of_two_kinds(self, foreign):
        self.changed(foreign, "data/demo_3/obs/robot0_eef_pos", np.zeros((5, 4)))
        self.refused(foreign, "the same arrays in demo_3 as in demo_2 .*; found a difference in obs/robot0_eef_pos")

    def test_another_name_and_another_mask(self, foreign):
        self.refused(foreign, "a filter key in .*; found 'trian'; did you mean 'train'", Stated(filter_key="trian"))
        with h5py.File(foreign, "r+") as file:
            file["data"].move("demo_3", "third")
        self.refused(foreign, "demonstrations called demo_<number> .*; found data/third")

    def test_objects_are_never_read(self, foreign):
        with h5py.File(foreign, "r+") as file:
            del file["data/demo_3/rewards"]
            file["data/demo_3"].create_dataset("rewards", data=["text"] * 5, dtype=h5py.string_dtype())
        self.refused(foreign, "numbers with a leading axis of steps in rewards of demo_3 .*; found object")

    def test_links_to_other_files_are_not_followed(self, foreign, tmp_path):
        with h5py.File(tmp_path / "other.hdf5", "w") as other:
            other["rewards"] = np.zeros(5)
        self.changed(foreign, "data/demo_3/rewards", h5py.ExternalLink("other.hdf5", "/rewards"))
        self.refused(foreign, r"/data/demo_3/rewards itself in .*; found a link \(ExternalLink\); copy those data")

    def test_data_kept_in_other_files_are_not_read(self, foreign, tmp_path):
        (tmp_path / "secret").write_bytes(bytes(40))
        with h5py.File(foreign, "r+") as file:
            del file["data/demo_3/rewards"]
            file["data/demo_3"].create_dataset("rewards", (5,), "f8", external=[(str(tmp_path / "secret"), 0, 40)])
        self.refused(foreign, "/data/demo_3/rewards itself in .*; found data kept in other files")

    def test_a_claim_beyond_any_memory(self, foreign):
        with h5py.File(foreign, "w") as file:
            file.create_group("data").attrs["env_args"] = json.dumps(ENV_ARGS)
            file["data"].create_dataset("demo_0/actions", (10**12, 7), "f4", chunks=(10, 7))
            file["data"].create_dataset("demo_0/obs/x", (10**12, 3), "f4", chunks=(10, 3))
        self.refused(foreign, "the actions of demo_0 of .* to fit into memory .*; found 56,000,000 MB")

    def test_a_record_that_is_none(self, foreign):
        with h5py.File(foreign, "r+") as file:
            file["embodied"] = "{}"
        self.refused(foreign, "a record 'embodied' as an export writes it .*; found KeyError")

    def test_a_spec_that_does_not_fit(self, foreign):
        self.refused(foreign, "actions of 7 values, not 2; no state vector 'position'", stated=Stated(spec=SPEC))


def test_the_spec_of_a_task_may_be_stated(tmp_path, store_path):
    export_robomimic(EpisodeStore.open(fill_store(EpisodeStore, store_path, 3)), tmp_path / "b.hdf5")
    with h5py.File(tmp_path / "b.hdf5", "r+") as file:
        del file["embodied"]
    spec = dataclasses.replace(SPEC, cameras=())
    lost = import_robomimic(tmp_path / "b.hdf5", tmp_path / "ours.zarr", Stated(spec=spec))
    assert "obs/front (uint8 [T, 12, 16, 3]): left out" in lost
    assert EpisodeStore.open(tmp_path / "ours.zarr").spec == spec
