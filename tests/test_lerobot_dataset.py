"""LeRobotDatasets, both ways: what LeRobot's own reader, and its own training, make of ours, and we of theirs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from foreign_files import assert_same_store, nothing_left_in
from lerobot.datasets import LeRobotDataset
from lerobot_data import (
    FPS,
    LENGTHS,
    MOTORS,
    SIZE,
    TWO_CAMERAS,
    instruction,
    picture,
    two_camera_store,
    values,
    write_v3,
    write_v21,
)
from made_episodes import SPEC, make_episode
from pusht_data import made_arrays, write_zarr_v2

from embodied.conversion import convert
from embodied.datasets import lerobot_dataset
from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.foreign_episodes import Stated
from embodied.datasets.lerobot_dataset import LeRobotFolder, import_lerobot
from embodied.datasets.lerobot_export import export_lerobot, export_lerobot_video
from embodied.errors import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whatever asks the hub fails here, and so do LeRobot's readers where something is missing."""

    def refuse(*args, **kwargs):
        raise AssertionError("the hub was called")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("lerobot.datasets.dataset_metadata.snapshot_download", refuse)
    monkeypatch.setattr("lerobot.datasets.dataset_metadata.get_safe_version", refuse)
    monkeypatch.setattr("lerobot.datasets.lerobot_dataset.get_safe_version", refuse)


@pytest.fixture(scope="module", params=["image", "video"])
def recorded(request, tmp_path_factory) -> Path:
    """A recording of LeRobot's, version 3."""
    return write_v3(tmp_path_factory.mktemp(request.param) / "recorded", request.param)


def read_by_lerobot(path: Path) -> LeRobotDataset:
    return LeRobotDataset("local/any", root=path, video_backend="pyav", return_uint8=True)


def image_of(frame, key: str) -> np.ndarray:
    """As bytes, [h w 3]: images in parquet come as floats of 0 to 1."""
    image = frame[key].numpy().transpose(1, 2, 0)
    return image if image.dtype == np.uint8 else np.rint(image * 255).astype(np.uint8)


def test_a_store_comes_back_as_it_was(tmp_path, store_path):
    store = two_camera_store(store_path)
    export_lerobot(store, tmp_path / "b")
    assert import_lerobot(tmp_path / "b", tmp_path / "back.zarr") == []
    assert_same_store(EpisodeStore.open(tmp_path / "back.zarr"), store)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["data", "meta"]


@pytest.mark.parametrize("export", [export_lerobot, export_lerobot_video])
def test_what_is_written_is_what_lerobot_reads(tmp_path, store_path, export, capfd):
    store = two_camera_store(store_path)
    lost = export(store, tmp_path / "b")
    assert capfd.readouterr().err == "", "encoder and muxer say nothing of themselves"
    assert any("images to the last bit" in line for line in lost) is (export is export_lerobot_video)
    dataset = read_by_lerobot(tmp_path / "b")
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (4, store.total_steps, 20)
    described = dataset.meta.features
    assert described["observation.state"]["names"] == ["position.x", "position.y", "position.z", "gripper.opening"]
    assert described["action"]["names"] == ["dx", "dy"]
    rows = iter(range(len(dataset)))
    for index in range(len(store)):
        episode = store.episode(index)
        for step in range(episode.length):
            frame = dataset[next(rows)]
            state = np.concatenate([episode.state["position"][step], episode.state["gripper"][step]])
            np.testing.assert_array_equal(frame["observation.state"].numpy(), state, strict=True)
            np.testing.assert_array_equal(frame["action"].numpy(), episode.action[step], strict=True)
            np.testing.assert_array_equal(frame["physics"].numpy(), episode.physics[step].astype(np.float32))
            assert frame["next.reward"].item() == episode.reward[step]
            assert frame["next.success"].item() == episode.success[step]
            assert frame["next.done"].item() is (step == episode.length - 1)
            assert frame["timestamp"].item() == pytest.approx(step / 20)
            assert (frame["episode_index"].item(), frame["task"]) == (index, "lift the cube")
            for camera in ("front", "wrist"):
                image = image_of(frame, f"observation.images.{camera}")
                assert image.shape == episode.images[camera][step].shape
                if export is export_lerobot:
                    np.testing.assert_array_equal(image, episode.images[camera][step])


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system's scheduler is not asked by Python")
def test_the_videos_encoder_leaves_the_process_no_real_time_one(tmp_path, store_path):
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    export_lerobot_video(two_camera_store(store_path), tmp_path / "b")
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before


def test_video_comes_back_but_for_the_images(tmp_path, store_path):
    store = two_camera_store(store_path)
    export_lerobot_video(store, tmp_path / "b")
    assert import_lerobot(tmp_path / "b", tmp_path / "back.zarr") == []
    back = EpisodeStore.open(tmp_path / "back.zarr")
    assert (back.spec, back.provenance) == (store.spec, store.provenance)
    for key in ("state/position", "action", "executed", "reward", "success", "time_s", "physics"):
        np.testing.assert_array_equal(back.read(key), store.read(key), strict=True)
    assert back.read("image/wrist").shape == store.read("image/wrist").shape


def test_a_recording_becomes_a_store_with_an_honest_spec(tmp_path, recorded):
    lost = import_lerobot(recorded, tmp_path / "ours.zarr")
    assert lost == [
        "next.done (bool [T, 1]): left out",
        "not recorded: executed, physics (executed as the action, reward 0, no success, time from the control rate)",
    ]
    store = EpisodeStore.open(tmp_path / "ours.zarr")
    spec = store.spec
    assert (spec.task, spec.control_hz, spec.horizon) == ("imported/recorded", FPS, max(LENGTHS))
    assert {state.name: list(state.elements) for state in spec.state} == {
        "state": MOTORS,
        "environment_state": ["environment_state_0", "environment_state_1"],
    }
    assert list(spec.action.elements) == MOTORS
    assert [(camera.name, camera.height, camera.width) for camera in spec.cameras] == [("top", *SIZE)]
    assert store.provenance["source"]["robot_type"] == "so100"
    theirs = read_by_lerobot(recorded)
    frames = iter(range(len(theirs)))
    for index, length in enumerate(LENGTHS):
        episode = store.episode(index)
        assert (episode.length, episode.instruction) == (length, instruction(index))
        for step in range(length):
            frame, expected = theirs[next(frames)], values(index, step)
            np.testing.assert_array_equal(episode.images["top"][step], image_of(frame, "observation.images.top"))
            np.testing.assert_array_equal(episode.state["state"][step], expected["observation.state"])
            np.testing.assert_array_equal(episode.action[step], expected["action"])
            assert (episode.reward[step], episode.success[step]) == (step, step > 3)
            assert episode.time_s[step] == pytest.approx(step / FPS)


def test_and_goes_back_with_its_features(tmp_path, recorded):
    import_lerobot(recorded, tmp_path / "ours.zarr")
    export_lerobot(EpisodeStore.open(tmp_path / "ours.zarr"), tmp_path / "back")
    one, other = read_by_lerobot(recorded), read_by_lerobot(tmp_path / "back")
    assert one.meta.features.keys() == other.meta.features.keys()
    assert (other.meta.robot_type, one.meta.shapes) == ("so100", other.meta.shapes)
    for key in set(one.features) - {"observation.images.top"}:
        np.testing.assert_array_equal(one.hf_dataset[key], other.hf_dataset[key])
    for index in range(len(one)):
        image = image_of(one[index], "observation.images.top")
        np.testing.assert_array_equal(image, image_of(other[index], "observation.images.top"))


@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
def test_the_older_layout_is_read(tmp_path, version):
    import_lerobot(write_v21(tmp_path / "old", version), tmp_path / "ours.zarr")
    store = EpisodeStore.open(tmp_path / "ours.zarr")
    assert store.provenance["source"]["version"] == version
    assert list(store.spec.action.elements) == MOTORS
    for index, length in enumerate(LENGTHS):
        episode = store.episode(index)
        assert (episode.length, episode.instruction) == (length, instruction(index))
        for step in range(length):
            np.testing.assert_array_equal(episode.action[step], values(index, step)["action"])
            error = np.abs(episode.images["top"][step].astype(int) - picture(index, step))
            next_error = np.abs(episode.images["top"][step].astype(int) - picture(index, step + 1))
            assert error.mean() < 4 < next_error.mean()


def test_episodes_are_read_in_any_order(recorded):
    data = LeRobotFolder(recorded)
    for column in data.columns:
        forwards = [data.read(index, column) for index in range(3)]
        for index in (2, 0, 1, 1):
            np.testing.assert_array_equal(data.read(index, column), forwards[index], strict=True)
    data.close()


@pytest.mark.parametrize("kind", ["image", "video"])
def test_episodes_in_several_files(tmp_path, kind):
    path = write_v3(tmp_path / "a", kind, file_mb=0.001)
    assert len(list((path / "data").rglob("*.parquet"))) == 3
    assert len(list((path / "videos").rglob("*.mp4"))) == (3 if kind == "video" else 0)
    import_lerobot(path, tmp_path / "ours.zarr")
    store, theirs = EpisodeStore.open(tmp_path / "ours.zarr"), read_by_lerobot(path)
    for row in range(len(theirs)):
        image = image_of(theirs[row], "observation.images.top")
        np.testing.assert_array_equal(store.read_rows("image/top", row, row + 1)[0], image)
        np.testing.assert_array_equal(store.read_rows("action", row, row + 1)[0], theirs[row]["action"].numpy())


def test_many_instructions_in_an_episode(tmp_path):
    path = tmp_path / "many"
    feature = {"action": {"dtype": "float32", "shape": (2,), "names": None}}
    feature["observation.state"] = feature["action"]
    dataset = LeRobotDataset.create("local/many", fps=FPS, features=feature, root=path, video_backend="pyav")
    for task in ("reach", "grasp", "reach"):
        dataset.add_frame({**dict.fromkeys(feature, np.ones(2, np.float32)), "task": task})
    dataset.save_episode()
    dataset.finalize()
    lost = import_lerobot(path, tmp_path / "ours.zarr")
    assert any(line.startswith("instructions after the first in 1 episodes") for line in lost)
    (row,) = EpisodeStore.open(tmp_path / "ours.zarr").rows
    assert (row.instruction, row.provenance["instructions"]) == ("reach", ["reach", "grasp"])


def test_what_nobody_recorded_is_not_written(tmp_path):
    write_zarr_v2(tmp_path / "human.zarr", made_arrays())
    stated = Stated(control_hz=10)
    result = convert(str(tmp_path / "human.zarr"), str(tmp_path / "b"), "lerobot", stated)
    assert "executed, reward, success, time_s, physics: not written, nobody recorded them" in result["lost"]
    written = set(read_by_lerobot(tmp_path / "b").features)
    assert written & {"executed", "next.reward", "next.success", "time_s", "physics"} == set()


def test_times_that_are_not_lerobots_are_kept(tmp_path):
    write_v3(tmp_path / "a")
    import_lerobot(tmp_path / "a", tmp_path / "ours.zarr")
    store = EpisodeStore.open(tmp_path / "ours.zarr")
    with EpisodeStore.create(
        tmp_path / "late.zarr", store.spec, expected_episodes=3, provenance=store.provenance
    ) as late:
        for index in range(3):
            episode = store.episode(index)
            late.commit(dataclasses.replace(episode, time_s=episode.time_s + 0.01))
    export_lerobot(late, tmp_path / "b")
    found = read_by_lerobot(tmp_path / "b").hf_dataset["time_s"]
    np.testing.assert_array_equal(np.array(found), late.read("time_s").astype(np.float32))


class TestMemory:
    def test_a_column_is_read_a_batch_at_a_time(self, tmp_path, monkeypatch):
        """One row group of 2,000 rows: what is held is a batch, however many rows the file has."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from embodied.datasets.parquet_columns import ColumnReader

        rows = np.arange(2000 * 64, dtype=np.float64).reshape(2000, 64)
        cells = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 64)
        pq.write_table(pa.table({"x": cells}), tmp_path / "x.parquet", row_group_size=2000)
        reader = ColumnReader("x", 16)
        for start in range(0, 2000, 50):
            parts = list(reader.rows(tmp_path / "x.parquet", start, start + 50))
            assert max(map(len, parts)) <= 16
            assert sum(map(len, parts)) == 50
            assert parts[0][0].as_py() == rows[start].tolist()
        reader.close()

    def test_the_peak_does_not_grow_with_the_episodes(self, tmp_path):
        import tracemalloc

        def peak(episodes: int) -> int:
            folder = tmp_path / str(episodes)
            spec = dataclasses.replace(TWO_CAMERAS, task="toy/many")
            with EpisodeStore.create(folder / "a.zarr", spec, expected_episodes=episodes, provenance={}) as store:
                for seed in range(episodes):
                    store.commit(make_episode(seed, steps=12, spec=spec))
            export_lerobot(EpisodeStore.open(folder / "a.zarr"), folder / "b")
            data = LeRobotFolder(folder / "b")
            tracemalloc.start()
            for index in range(episodes):
                for column in data.columns:
                    data.read(index, column)
                data.details(index)
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            data.close()
            return found

        peak(2)  # whatever is imported late
        assert peak(24) < 1.5 * peak(4)


class TestSettings:
    def test_a_fractional_rate_is_refused(self, tmp_path, store_path):
        spec = dataclasses.replace(SPEC, control_hz=12.5)
        with EpisodeStore.create(store_path, spec, expected_episodes=1, provenance={}) as store:
            store.commit(make_episode(0, spec=spec))
        with nothing_left_in(tmp_path), pytest.raises(UserError, match="a whole number of control steps.*12.5 Hz"):
            export_lerobot(store, tmp_path / "b")

    def test_images_too_small_for_the_encoder(self, tmp_path, store_path):
        with EpisodeStore.create(store_path, SPEC, expected_episodes=1, provenance={}) as store:
            store.commit(make_episode(0))
        with pytest.raises(UserError, match="at least 32x32 for a video; found 12x16 of camera 'front'.*to=lerobot"):
            export_lerobot_video(store, tmp_path / "b")

    def test_an_export_that_fails_leaves_nothing(self, tmp_path, store_path):
        two_camera_store(store_path)
        for shard in sorted((store_path / "data" / "action").rglob("c/*/*")):
            shard.write_bytes(b"damaged" * 10)
        with nothing_left_in(tmp_path), pytest.raises(UserError):
            export_lerobot(EpisodeStore.open(store_path), tmp_path / "b")

    def test_without_lerobots_packages(self, tmp_path, store_path, monkeypatch):
        store = two_camera_store(store_path, 1)
        monkeypatch.setattr(lerobot_dataset, "find_spec", lambda name: None if name == "av" else find_spec(name))
        for action in (lambda: export_lerobot(store, tmp_path / "b"), lambda: import_lerobot(tmp_path, tmp_path / "c")):
            with pytest.raises(UserError, match=r"found no av; pip install 'embodied-policies\[lerobot\]'"):
                action()


def test_a_record_that_does_not_fit(tmp_path, store_path):
    export_lerobot(two_camera_store(store_path, 2), tmp_path / "b")
    file = tmp_path / "b" / "meta" / "embodied.json"
    record = json.loads(file.read_text())
    for changes, message in (
        ({"episodes": record["episodes"][:1]}, "does not fit the 2 episodes"),
        ({"arrays": {**record["arrays"], "extra": "action"}}, "a feature 'extra', as its record says"),
        ({"arrays": {"observation.state/position": "state/position"}}, "3 values of observation.state"),
    ):
        file.write_text(json.dumps({**record, **changes}))
        with pytest.raises(UserError, match=message):
            import_lerobot(tmp_path / "b", tmp_path / "c.zarr")
    file.write_text("{")
    with pytest.raises(UserError, match="this program's record, meta/embodied.json"):
        import_lerobot(tmp_path / "b", tmp_path / "c.zarr")
    shutil.rmtree(tmp_path / "b")


@pytest.mark.heavy
@pytest.mark.parametrize("format", ["lerobot", "lerobot_video"])
def test_lerobots_own_script_trains_a_step_on_it(tmp_path, store_path, format):
    two_camera_store(store_path)
    convert(str(store_path), str(tmp_path / "b"), format)
    settings = {
        **{"dataset.repo_id": "local/b", "dataset.root": tmp_path / "b", "output_dir": tmp_path / "out"},
        **{"policy.type": "act", "policy.device": "cpu", "policy.push_to_hub": "false"},
        **{"policy.chunk_size": 4, "policy.n_action_steps": 4, "policy.dim_model": 32, "policy.n_heads": 2},
        **{"policy.dim_feedforward": 32, "policy.n_encoder_layers": 1, "policy.n_vae_encoder_layers": 1},
        **{"policy.pretrained_backbone_weights": "null", "dataset.video_backend": "pyav"},
        **{"steps": 1, "batch_size": 2, "num_workers": 0, "log_freq": 1, "save_freq": 1, "wandb.enable": "false"},
    }
    words = [sys.executable, "-m", "lerobot.scripts.lerobot_train", *(f"--{k}={v}" for k, v in settings.items())]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (checkpoint,) = (tmp_path / "out" / "checkpoints").glob("[0-9]*")
    config = json.loads((checkpoint / "pretrained_model" / "config.json").read_text())
    # What the policy sees and does, and nothing that only this program recorded.
    assert config["input_features"] == {
        "observation.state": {"type": "STATE", "shape": [4]},
        "observation.images.front": {"type": "VISUAL", "shape": [3, 48, 40]},
        "observation.images.wrist": {"type": "VISUAL", "shape": [3, 36, 36]},
    }
    assert config["output_features"] == {"action": {"type": "ACTION", "shape": [2]}}
    assert (checkpoint / "pretrained_model" / "model.safetensors").is_file()
