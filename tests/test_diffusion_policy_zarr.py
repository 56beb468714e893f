"""Human Push-T demonstrations read in place: made stores of the same layout, and the original where it is given."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from pusht_data import CHUNK_ROWS, human_demonstrations, made_arrays, write_zarr_v2

from embodied import pusht_board
from embodied.datasets.diffusion_policy_zarr import DiffusionPolicyZarr
from embodied.datasets.episode_store import EpisodeStore, check_specs, require_complete
from embodied.datasets.open_store import is_store, open_store
from embodied.datasets.window_sampler import WindowSampler
from embodied.errors import UserError
from embodied.sim.pusht import PushTKeypoints

KEYPOINTS = pusht_board.task_spec("pusht/keypoints")
STATE = pusht_board.task_spec("pusht/state", horizon=50)
PIXELS = pusht_board.task_spec("pusht/pixels", cameras=["board"], camera_size=24)


@pytest.fixture
def arrays():
    return made_arrays()


@pytest.fixture
def path(tmp_path, arrays):
    return write_zarr_v2(tmp_path / "human.zarr", arrays)


def fingerprint(path: Path) -> dict[str, str]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_what_lies_at_the_path_chooses_the_reader(path, tmp_path):
    with EpisodeStore.create(tmp_path / "ours.zarr", STATE, expected_episodes=1, provenance={}):
        pass
    assert isinstance(open_store(path, STATE), DiffusionPolicyZarr)
    assert isinstance(open_store(tmp_path / "ours.zarr", STATE), EpisodeStore)
    assert is_store(path) and is_store(tmp_path / "ours.zarr") and not is_store(tmp_path)
    with pytest.raises(UserError, match="no store at .*nowhere"):
        open_store(tmp_path / "nowhere", STATE)


@pytest.mark.parametrize("spec", [STATE, KEYPOINTS, PIXELS], ids=lambda spec: spec.task)
def test_it_is_a_complete_store_of_the_asked_task(path, arrays, spec):
    store = open_store(path, spec)
    check_specs(store, spec)
    require_complete(store, allow_partial=False)
    assert (len(store), store.total_steps, store.episode_ends.tolist()) == (3, 76, [30, 51, 76])
    assert [row.seed for row in store.rows] == [0, 1, 2]
    np.testing.assert_array_equal(store.read("action"), arrays["data/action"])
    np.testing.assert_array_equal(store.read("state/agent_position"), arrays["data/state"][:, :2])


def test_state_vectors_are_the_simulators_to_the_last_bit(path):
    store, task = open_store(path, KEYPOINTS), PushTKeypoints()
    episode = store.episode(1)
    for row in (0, 10, 20):
        task.reset_to(episode.physics[row])
        shown = pusht_board.state_vectors("pusht/keypoints", task.physics_state())
        np.testing.assert_allclose(shown["block_keypoints"], episode.state["block_keypoints"][row], atol=1e-4)
    expected = pusht_board.keypoints(episode.physics[:, 2:]).reshape(-1, 16).astype("f4")
    np.testing.assert_array_equal(episode.state["block_keypoints"], expected)


def test_an_episode_holds_what_was_recorded_and_what_follows_from_it(path, arrays):
    episode = open_store(path, PIXELS).episode(0)
    state = arrays["data/state"][:30]
    assert (episode.task, episode.seed, episode.length) == ("pusht/pixels", 0, 30)
    np.testing.assert_array_equal(episode.images["board"], arrays["data/img"][:30].astype("u1"))
    np.testing.assert_array_equal(episode.executed, episode.action)
    np.testing.assert_array_equal(episode.physics, state.astype("f8"))
    np.testing.assert_allclose(episode.time_s, np.arange(30) / 10)
    covered = [pusht_board.coverage(row[2:]) for row in state]
    expected = np.minimum(np.array([*covered[1:], covered[-1]]) / 0.95, 1)
    np.testing.assert_allclose(episode.reward, expected, rtol=1e-6)
    assert episode.success.tolist() == [False] * 26 + [True] * 4
    assert open_store(path, PIXELS).episode(1).time_s[0] == 0.0


def test_statistics_and_windows_are_those_of_the_arrays(path, arrays):
    store = open_store(path, STATE)
    angle = arrays["data/state"][:, 4].astype("f8") % (2 * np.pi)
    statistics = store.statistics(["state/block_angle", "action"])
    assert statistics["state/block_angle"].mean[0] == pytest.approx(angle.mean(), rel=1e-6)
    np.testing.assert_allclose(statistics["action"].std, arrays["data/action"].astype("f8").std(axis=0), rtol=1e-6)
    assert statistics["action"].count == 76
    windows = WindowSampler.from_store(store, history=2, horizon=4)
    assert len(windows) == 76
    last = windows.gather(np.array([29]))
    assert last.valid.all(), "an absolute action is repeated, and trained"
    np.testing.assert_array_equal(last.action[0], np.repeat(arrays["data/action"][29:30], 4, axis=0))


def test_rows_at_any_places(path):
    store = open_store(path, PIXELS)
    rows = np.array([0, 3, 4, 29, 30, 75])
    for key in ("image/board", "state/agent_position", "action"):
        np.testing.assert_array_equal(store.read_at(key, rows), store.read(key)[rows], strict=True)


def test_the_content_hash_is_of_what_the_task_shows(path, arrays, tmp_path):
    hashes = {spec.task: open_store(path, spec).content_hash() for spec in (STATE, KEYPOINTS, PIXELS)}
    assert len(set(hashes.values())) == 3
    arrays["data/img"][3, 2, 1, 0] += 1
    other = write_zarr_v2(tmp_path / "other.zarr", arrays)
    assert open_store(other, STATE).content_hash() == hashes["pusht/state"]
    assert open_store(other, PIXELS).content_hash() != hashes["pusht/pixels"]
    arrays["data/action"][40, 1] += 1
    third = write_zarr_v2(tmp_path / "third.zarr", arrays)
    assert open_store(third, STATE).content_hash() != hashes["pusht/state"]


def test_reading_leaves_the_folder_alone_and_images_on_the_disk(path):
    for chunk in (path / "data" / "img").glob("[0-9]*"):
        chunk.write_bytes(b"no image")
    before = fingerprint(path)
    store = open_store(path, KEYPOINTS)
    store.statistics(["state/agent_position", "state/block_keypoints", "action"])
    store.content_hash()
    assert store.episode(0).images == {}
    with pytest.raises(UserError, match="the array data/img intact"):
        open_store(path, PIXELS).episode(0)
    assert fingerprint(path) == before


def test_without_a_task_everything_recorded_is_shown(path):
    store = open_store(path)
    assert store.spec.task == "pusht/state" and list(store.episode(2).images) == ["board"]


def test_another_task_is_refused(path):
    spec = pusht_board.task_spec("pusht/state")
    other = type(spec)(**{**spec.__dict__, "task": "robosuite/lift"})
    with pytest.raises(UserError, match=r"one of the tasks pusht/state, .*; found task robosuite/lift"):
        open_store(path, other)


def test_another_image_size_is_a_difference_of_specs(path):
    wanted = pusht_board.task_spec("pusht/pixels", cameras=["board"], camera_size=96)
    with pytest.raises(UserError, match=r"cameras\.board: .*24.* against .*96"):
        check_specs(open_store(path, wanted), wanted)


def test_an_unknown_array_is_named(path):
    with pytest.raises(UserError, match=r"'actoin'; did you mean 'action'"):
        open_store(path, STATE).read("actoin")


def change_metadata(path: Path, key: str, **changes) -> None:
    file = path / key / ".zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


class TestDamage:
    """One sentence each, and nothing of a file's author is run."""

    def test_a_filter_that_runs_code_is_never_asked(self, path):
        change_metadata(path, "data/action", filters=[{"id": "pickle", "protocol": 5}])
        with pytest.raises(UserError, match="data/action .* without filters.*; found .*pickle"):
            open_store(path, STATE)
        change_metadata(path, "data/action", filters=None, compressor={"id": "pickle"})
        with pytest.raises(UserError, match="compressed by one of blosc.*; found .*pickle"):
            open_store(path, STATE)

    def test_an_array_of_objects(self, path):
        change_metadata(path, "data/action", dtype="|O")
        with pytest.raises(UserError, match=r"data/action .* as floats of shape \[T 2\]; found object"):
            open_store(path, STATE)

    def test_arrays_of_another_task(self, tmp_path, arrays):
        arrays["data/state"] = np.zeros((76, 60), "f4")
        path = write_zarr_v2(tmp_path / "kitchen.zarr", arrays)
        with pytest.raises(
            UserError, match=r"data/state .* \[T 5\]; found float32 \[76, 60\]; name a store of the human"
        ):
            open_store(path, STATE)

    def test_a_missing_array(self, tmp_path, arrays):
        del arrays["data/action"]
        path = write_zarr_v2(tmp_path / "half.zarr", arrays)
        with pytest.raises(UserError, match="the array data/action intact .*; found no such array"):
            open_store(path, STATE)

    @pytest.mark.parametrize("text", ["{", "[]", "{}"])
    def test_damaged_metadata(self, path, text):
        (path / "data" / "state" / ".zarray").write_text(text)
        with pytest.raises(UserError, match="the array data/state intact"):
            open_store(path, STATE)

    def test_a_missing_chunk_is_no_zeros(self, path):
        (path / "data" / "state" / "1.0").unlink()
        with pytest.raises(UserError, match="the array data/state intact"):
            open_store(path, STATE).read("state/agent_position")

    def test_a_damaged_chunk(self, path):
        chunk = path / "data" / "state" / "1.0"
        chunk.write_bytes(chunk.read_bytes()[:20])
        with pytest.raises(UserError, match="the array data/state intact"):
            open_store(path, STATE).read("state/agent_position")

    def test_fewer_rows_than_the_episode_ends_say(self, tmp_path, arrays):
        arrays["data/action"] = arrays["data/action"][:-CHUNK_ROWS]
        path = write_zarr_v2(tmp_path / "short.zarr", arrays)
        with pytest.raises(UserError, match="76 rows of data/action .*; found 60"):
            open_store(path, STATE)

    @pytest.mark.parametrize("ends", [[], [30, 30, 76]])
    def test_episode_ends_that_do_not_rise(self, tmp_path, arrays, ends):
        arrays["meta/episode_ends"] = np.array(ends, np.int64)
        path = write_zarr_v2(tmp_path / "ends.zarr", arrays)
        with pytest.raises(UserError, match="episode ends that rise"):
            open_store(path, STATE)

    def test_a_value_that_is_not_finite(self, tmp_path, arrays):
        arrays["data/action"][33, 1] = np.nan
        path = write_zarr_v2(tmp_path / "nan.zarr", arrays)
        with pytest.raises(UserError, match="data/action .*not finite in row 33"):
            open_store(path, STATE).read("action")


class TestOriginal:
    """The facts that were published of the human data."""

    @pytest.fixture
    def store(self):
        return open_store(human_demonstrations(), KEYPOINTS)

    def test_206_episodes(self, store):
        assert (len(store), store.total_steps) == (206, 25650)
        lengths = np.diff(store.episode_ends, prepend=0)
        assert (lengths.min(), lengths.max()) == (49, 246)

    def test_images_and_actions(self):
        episode = DiffusionPolicyZarr.open(human_demonstrations()).episode(3)
        assert episode.images["board"].shape == (episode.length, 96, 96, 3)
        assert np.abs(episode.action - episode.physics[:, :2]).max() < 150, "targets lie near the agent, in the same px"

    @pytest.mark.heavy
    def test_how_well_people_did(self, store):
        """They stopped at the action that brought the block home, whose outcome is not in the data: replayed, it is."""
        task = PushTKeypoints()
        recorded, replayed = [], []
        for index in range(len(store)):
            episode = store.episode(index)
            recorded.append(episode.reward.max())
            task.reset_to(episode.physics[0])
            steps = [task.step(action) for action in episode.action]
            replayed.append((max(step.reward for step in steps), any(step.info["success"] for step in steps)))
        assert np.mean(recorded) == pytest.approx(0.892, abs=0.001)
        reward, success = np.mean(replayed, axis=0)
        assert reward == pytest.approx(0.946, abs=0.003)
        assert success == pytest.approx(0.034, abs=0.01)
