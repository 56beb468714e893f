"""Diffusion Policy's ReplayBuffer, both ways: to the last bit, and bad files in a sentence."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from foreign_files import assert_same_store, decode_zarr_v2, nothing_left_in
from made_episodes import SPEC, fill_store, make_episode
from pusht_data import human_demonstrations, made_arrays, write_zarr_v2

from embodied import pusht_board
from embodied.datasets import replay_buffer_zarr
from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.foreign_episodes import Stated
from embodied.datasets.open_store import open_store
from embodied.datasets.replay_buffer_zarr import export_replay_buffer, import_replay_buffer
from embodied.errors import UserError
from embodied.types import UNKNOWN_UNIT, StateSpec

RATE = Stated(control_hz=10)
NAMES = ["b.zarr", "b.zarr.zip"]


@pytest.fixture
def arrays():
    return made_arrays()


@pytest.fixture
def foreign(tmp_path, arrays) -> Path:
    return write_zarr_v2(tmp_path / "human.zarr", arrays)


@pytest.mark.parametrize("name", NAMES)
def test_a_store_comes_back_as_it_was(tmp_path, store_path, name):
    store = EpisodeStore.open(fill_store(EpisodeStore, store_path, 7))
    lost = export_replay_buffer(store, tmp_path / name)
    assert "dropped" in lost[1]
    assert import_replay_buffer(tmp_path / name, tmp_path / "back.zarr") == []
    assert_same_store(EpisodeStore.open(tmp_path / "back.zarr"), store)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_the_format_as_its_specification_reads_it(tmp_path, store_path, monkeypatch, name):
    monkeypatch.setattr(replay_buffer_zarr, "CHUNK_BYTES", 12 * 16 * 3 * 4)  # four images
    store = EpisodeStore.open(fill_store(EpisodeStore, store_path, 5))
    path = tmp_path / name
    export_replay_buffer(store, path)
    keys = {"position": "state/position", "front": "image/front", "action": "action", "physics": "physics"}
    for theirs, ours in keys.items():
        np.testing.assert_array_equal(decode_zarr_v2(path, f"data/{theirs}"), store.read(ours), strict=True)
    np.testing.assert_array_equal(decode_zarr_v2(path, "meta/episode_ends"), store.episode_ends, strict=True)
    if name.endswith("zip"):
        names = zipfile.ZipFile(path).namelist()
        assert len(names) == len(set(names))


def test_a_foreign_buffer_becomes_a_store_with_an_honest_spec(tmp_path, foreign, arrays):
    lost = import_replay_buffer(foreign, tmp_path / "ours.zarr", RATE)
    assert lost == [
        "not recorded: executed, reward, success, time_s, physics "
        "(executed as the action, reward 0, no success, time from the control rate)"
    ]
    store = EpisodeStore.open(tmp_path / "ours.zarr")
    assert store.spec.task == "imported/human" and store.spec.horizon == 30 and store.is_complete
    assert {state.unit for state in store.spec.state} == {UNKNOWN_UNIT}
    assert {state.name: state.size for state in store.spec.state} == {"keypoint": 18, "n_contacts": 1, "state": 5}
    assert store.spec.action.low == tuple(arrays["data/action"].min(axis=0).tolist())
    assert store.spec.action.high == tuple(arrays["data/action"].max(axis=0).tolist())
    episode = store.episode(1, verify=True)
    np.testing.assert_array_equal(episode.images["img"], arrays["data/img"][30:51].astype("u1"))
    np.testing.assert_array_equal(episode.state["keypoint"], arrays["data/keypoint"][30:51].reshape(21, 18))
    np.testing.assert_allclose(episode.time_s, np.arange(21) / 10)
    assert store.provenance["source"]["arrays"]["img"]["dtype"] == "<f4"


def test_and_goes_back_in_its_own_types_and_shapes(tmp_path, foreign, arrays):
    import_replay_buffer(foreign, tmp_path / "ours.zarr", RATE)
    lost = export_replay_buffer(EpisodeStore.open(tmp_path / "ours.zarr"), tmp_path / "back.zarr.zip")
    assert lost[-1] == "executed, reward, success, time_s, physics: not written, nobody recorded them"
    for key, values in arrays.items():
        np.testing.assert_array_equal(decode_zarr_v2(tmp_path / "back.zarr.zip", key), values, strict=True)
    import_replay_buffer(tmp_path / "back.zarr.zip", tmp_path / "again.zarr")
    assert_same_store(EpisodeStore.open(tmp_path / "again.zarr"), EpisodeStore.open(tmp_path / "ours.zarr"))


def test_demonstrations_read_in_place_are_exported_too(tmp_path, foreign):
    store = open_store(foreign, pusht_board.task_spec("pusht/keypoints"))
    export_replay_buffer(store, tmp_path / "keypoints.zarr")
    import_replay_buffer(tmp_path / "keypoints.zarr", tmp_path / "ours.zarr")
    ours = EpisodeStore.open(tmp_path / "ours.zarr")
    assert ours.spec == store.spec and [row.seed for row in ours.rows] == [0, 1, 2]
    np.testing.assert_array_equal(ours.read("reward"), store.read("reward"), strict=True)


def test_the_caller_may_state_the_spec(tmp_path, foreign):
    board = pusht_board.task_spec("pusht/pixels", cameras=["board"], camera_size=24)
    camera = dataclasses.replace(board.cameras[0], name="img")
    state = StateSpec("state", ("x", "y", "block_x", "block_y", "angle"), "px")
    spec = dataclasses.replace(board, state=(state,), cameras=(camera,))
    lost = import_replay_buffer(foreign, tmp_path / "ours.zarr", Stated(spec=spec))
    assert EpisodeStore.open(tmp_path / "ours.zarr").spec == spec
    assert lost[:2] == ["keypoint (float32 [T, 9, 2]): left out", "n_contacts (float32 [T, 1]): left out"]


def test_actions_may_be_other_arrays_side_by_side(tmp_path, foreign, arrays):
    """As UMI's data, which hold poses of the hand and no array called action."""
    stated = dataclasses.replace(RATE, action=("state", "n_contacts"), representation="delta")
    import_replay_buffer(foreign, tmp_path / "ours.zarr", stated)
    store = EpisodeStore.open(tmp_path / "ours.zarr")
    wanted = np.concatenate([arrays["data/state"], arrays["data/n_contacts"]], axis=1)
    np.testing.assert_array_equal(store.read("action"), wanted)
    assert store.spec.action.elements[4:] == ("state_4", "n_contacts_0")
    assert store.spec.action.representation == "delta"


def test_a_reward_is_a_reward_and_wide_numbers_are_rounded_aloud(tmp_path, arrays):
    arrays["data/reward"] = np.linspace(0, 1, 76)
    arrays["data/state"] = arrays["data/state"].astype("f8") + 1e-9
    lost = import_replay_buffer(write_zarr_v2(tmp_path / "a.zarr", arrays), tmp_path / "ours.zarr", RATE)
    assert lost[:2] == ["reward: rounded to float32", "state: rounded to float32"]
    np.testing.assert_array_equal(
        EpisodeStore.open(tmp_path / "ours.zarr").read("reward"), arrays["data/reward"].astype("f4")
    )


def test_an_empty_store_has_nothing_to_export(tmp_path, store_path):
    store = EpisodeStore.open(fill_store(EpisodeStore, store_path, 0))
    with nothing_left_in(tmp_path), pytest.raises(UserError, match="at least one episode"):
        export_replay_buffer(store, tmp_path / "b.zarr")


def test_a_damaged_store_leaves_no_export(tmp_path, store_path):
    fill_store(EpisodeStore, store_path, 3)
    (store_path / "data" / "action" / "c" / "0" / "0").write_bytes(b"damage")
    with nothing_left_in(tmp_path), pytest.raises(UserError, match="'action' intact"):
        export_replay_buffer(EpisodeStore.open(store_path), tmp_path / "b.zarr.zip")


class TestBadFiles:
    """One sentence each; the target is not made."""

    def refused(self, path: Path, match: str, stated: Stated = RATE) -> None:
        with nothing_left_in(path.parent), pytest.raises(UserError, match=match):
            import_replay_buffer(path, path.parent / "ours.zarr", stated)

    def test_something_at_the_target(self, tmp_path, foreign):
        (tmp_path / "ours.zarr").mkdir()
        self.refused(foreign, "nothing at .*ours.zarr yet; found a folder")

    def test_no_control_rate(self, foreign):
        self.refused(foreign, r"the control rate of .*; found none; state it", Stated())

    def test_images_of_no_whole_numbers(self, tmp_path, arrays):
        arrays["data/img"][33, 2, 1, 0] = 12.5
        path = write_zarr_v2(tmp_path / "a.zarr", arrays)
        self.refused(path, r"whole numbers from 0 to 255 in img of .*; found 12\.5 in episode 1, step 3")

    def test_images_beyond_a_byte(self, tmp_path, arrays):
        arrays["data/img"][3, 2, 1, 0] = 256
        self.refused(write_zarr_v2(tmp_path / "a.zarr", arrays), r"found 256\.0 in episode 0, step 3")

    def test_values_beyond_float32(self, tmp_path, arrays):
        arrays["data/state"] = arrays["data/state"].astype("f8")
        arrays["data/state"][31, 2] = 1e300
        self.refused(write_zarr_v2(tmp_path / "a.zarr", arrays), r"within float32's range; found 1e\+300 in episode 1")

    def test_an_array_that_is_too_short(self, tmp_path, arrays):
        arrays["data/keypoint"] = arrays["data/keypoint"][:70]
        self.refused(write_zarr_v2(tmp_path / "a.zarr", arrays), "76 rows of data/keypoint .*; found 70")

    def test_no_actions(self, tmp_path, arrays):
        del arrays["data/action"]
        path = write_zarr_v2(tmp_path / "a.zarr", arrays)
        self.refused(path, "actions in .*; found the arrays img, keypoint, n_contacts, state; say which")
        self.refused(path, "'stat'; did you mean 'state'", dataclasses.replace(RATE, action=("stat",)))

    def test_a_spec_that_does_not_fit(self, foreign):
        self.refused(
            foreign, "no state vector 'position' of 3 values; .*no camera 'front'; there are ", Stated(spec=SPEC)
        )

    def test_a_spec_against_the_files_own(self, tmp_path, store_path):
        export_replay_buffer(EpisodeStore.open(fill_store(EpisodeStore, store_path, 1)), tmp_path / "b.zarr")
        other = dataclasses.replace(SPEC, horizon=7)
        self.refused(tmp_path / "b.zarr", "horizon: 100 against 7; state no spec", Stated(spec=other))

    def test_a_filter_that_runs_code(self, foreign):
        file = foreign / "data" / "n_contacts" / ".zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), "filters": [{"id": "pickle", "protocol": 5}]}))
        self.refused(foreign, "n_contacts .* without filters.*; found .*pickle")

    def test_a_codec_that_is_not_here(self, foreign):
        file = foreign / "data" / "img" / ".zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), "compressor": {"id": "imagecodecs_avif"}}))
        self.refused(foreign, "img .* compressed by one of blosc.*; found .*imagecodecs_avif.*write the array again")

    def test_objects(self, foreign):
        file = foreign / "data" / "state" / ".zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), "dtype": "|O"}))
        self.refused(foreign, "data/state .* as floats .*; found object")

    def test_a_chunk_that_claims_more_than_any_memory(self, foreign):
        file = foreign / "data" / "state" / ".zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), "chunks": [10**12, 5]}))
        self.refused(foreign, "data/state intact .*; found chunks of 20,000.0 GB")

    def test_an_array_whose_name_climbs_out(self, tmp_path, arrays):
        path = tmp_path / "a.zarr.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in write_zarr_v2(tmp_path / "a.zarr", arrays).rglob("*"):
                if file.is_file():
                    name = str(file.relative_to(tmp_path / "a.zarr"))
                    archive.writestr(name.replace("data/keypoint/", "data/../../keypoint/"), file.read_bytes())
        self.refused(path, "data/../../keypoint intact .*contains '.' or '..' segments")

    @pytest.mark.parametrize("change", [{"episodes": []}, {"spec": {}}, {"arrays": {"../x": "action"}}])
    def test_a_record_that_is_none(self, tmp_path, store_path, change):
        export_replay_buffer(EpisodeStore.open(fill_store(EpisodeStore, store_path, 2)), tmp_path / "b.zarr")
        file = tmp_path / "b.zarr" / "meta" / ".zattrs"
        record = json.loads(file.read_text())["embodied"]
        file.write_text(json.dumps({"embodied": {**record, **change}}))
        self.refused(tmp_path / "b.zarr", "a record 'embodied' as an export writes it")

    def test_a_zip_file_that_was_cut_off(self, tmp_path, store_path):
        export_replay_buffer(EpisodeStore.open(fill_store(EpisodeStore, store_path, 3)), tmp_path / "b.zarr.zip")
        content = (tmp_path / "b.zarr.zip").read_bytes()
        (tmp_path / "b.zarr.zip").write_bytes(content[: len(content) // 2])
        self.refused(tmp_path / "b.zarr.zip", "a Zarr v2 group at .*zip; found a file that is none")

    def test_a_zip_file_with_a_damaged_chunk(self, tmp_path, store_path):
        export_replay_buffer(EpisodeStore.open(fill_store(EpisodeStore, store_path, 3)), tmp_path / "b.zarr.zip")
        content = bytearray((tmp_path / "b.zarr.zip").read_bytes())
        with zipfile.ZipFile(tmp_path / "b.zarr.zip") as archive:
            offset = archive.getinfo("data/action/0.0").header_offset + 60
        content[offset : offset + 8] = b"\xff" * 8
        (tmp_path / "b.zarr.zip").write_bytes(content)
        self.refused(tmp_path / "b.zarr.zip", "the array data/action intact")

    def test_nothing_there_and_a_store_of_ours(self, tmp_path, store_path):
        with pytest.raises(UserError, match="a Zarr v2 group at .*; found nothing"):
            import_replay_buffer(tmp_path / "nowhere", tmp_path / "ours.zarr")
        with pytest.raises(UserError, match="a Zarr v2 group at .*; found something else"):
            import_replay_buffer(fill_store(EpisodeStore, store_path, 1), tmp_path / "ours.zarr")


def test_the_record_holds_bounds_that_are_infinite(tmp_path, store_path):
    export_replay_buffer(EpisodeStore.open(fill_store(EpisodeStore, store_path, 1)), tmp_path / "b.zarr")
    import_replay_buffer(tmp_path / "b.zarr", tmp_path / "back.zarr")
    assert EpisodeStore.open(tmp_path / "back.zarr").spec.action.high == (1.0, float("inf"))
    assert EpisodeStore.open(tmp_path / "back.zarr").episode(0).length == make_episode(0).length


class TestOriginal:
    """The human Push-T demonstrations, there and back."""

    def test_to_our_store_and_back_bit_for_bit(self, tmp_path):
        original = human_demonstrations()
        import_replay_buffer(original, tmp_path / "ours.zarr", RATE)
        export_replay_buffer(EpisodeStore.open(tmp_path / "ours.zarr"), tmp_path / "back.zarr")
        there, back = (zarr.open_group(path, mode="r", zarr_format=2) for path in (original, tmp_path / "back.zarr"))
        assert sorted(there["data"].array_keys()) == sorted(back["data"].array_keys())
        for key in ("meta/episode_ends", *(f"data/{key}" for key in there["data"].array_keys())):
            assert there[key].dtype == back[key].dtype and there[key].shape == back[key].shape
            for start in range(0, there[key].shape[0], 2000):
                rows = slice(start, start + 2000)
                assert there[key][rows].tobytes() == back[key][rows].tobytes(), key
