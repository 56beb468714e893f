"""`embodied replay`, and the viewer that it opens."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from made_rollouts import SPEC, STEPS, STILL, TOOL, RecordingReader, make_saved_rollout, make_scene, save_to
from omegaconf import OmegaConf

from embodied.catalog import TASKS, make_task
from embodied.collection import CollectionSettings, collect_episode
from embodied.commands import replay
from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import UserError
from embodied.replay import viewer
from embodied.replay.layout import _eye
from embodied.types import Geom, Scene


def test_without_a_screen_nothing_is_started(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(viewer.subprocess, "Popen", lambda *_, **__: pytest.fail("a viewer was started"))
    assert not viewer.has_screen() and not viewer.open_recording("r.rrd")
    assert "rerun r.rrd --web-viewer" in viewer.how_to_view("r.rrd")


def test_a_viewer_is_started_with_bounded_memory(monkeypatch):
    started = []
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setattr(viewer.subprocess, "Popen", lambda command, **options: started.append((command, options)))
    assert viewer.open_recording("r.rrd")
    command, options = started[0]
    assert command[1:] == ["r.rrd", "--memory-limit", "2GB"] and options["start_new_session"]


class ToyTask:
    """As much of a task as a demonstration's drawing asks for."""

    spec = SPEC
    asked: list = []  # noqa: RUF012  what happened, for the test to read

    def __init__(self, **settings) -> None:
        self.asked.append(("made", settings))

    def reset(self, start_id: int) -> None:
        self.asked.append(("reset", start_id))

    def scene(self) -> Scene:
        return make_scene()

    def body_poses(self, physics: np.ndarray) -> np.ndarray:
        poses = np.tile(np.array([0, 0, 0, *STILL], np.float32), (len(physics), 4, 1))
        poses[:, TOOL, :3] = physics[:, :3]
        return poses

    def close(self) -> None:
        self.asked.append(("closed", None))


class Still:
    """An expert that asks for nothing."""

    def infer_memory(self) -> None:
        return None

    def act(self, memory: None) -> tuple[np.ndarray, None]:
        return np.zeros(1, np.float32), memory


def _config(tmp_path: Path, run: Path, **changes):
    base = {"run_root": str(tmp_path / "outputs"), "name": None, "force": False, "resume": None}
    return OmegaConf.create(
        {
            **base,
            "run": str(run),
            "episode": None,
            "session": None,
            "live": False,
            "viewer": None,
            "open": False,
            **changes,
        }
    )


@pytest.fixture
def evaluation(tmp_path) -> Path:
    run = tmp_path / "outputs" / "eval" / "lift"
    for seed in (100001, 100007):
        save_to(run / "rollouts" / f"start_{seed}.npz", make_saved_rollout(seed=seed))
    (run / "config.yaml").write_text("task: x\n")
    return run


def test_the_command_replays_a_start_of_an_evaluation(tmp_path, evaluation):
    summary_path = replay.run(_config(tmp_path, evaluation, episode=100007))
    summary = json.loads(summary_path.read_text())
    assert (summary["kind"], summary["start"], summary["first_success"]) == ("rollout", 100007, 21)
    recording = RecordingReader(summary_path.parent / summary["recording"])
    assert recording.static("/__properties/episode")["start_id"] == [100007]
    first = json.loads(replay.run(_config(tmp_path, evaluation)).read_text())
    assert first["start"] == 100001
    assert json.loads(replay.run(_config(tmp_path, Path("lift"))).read_text())["start"] == 100001  # by its name


def test_a_training_run_leads_to_its_evaluation(tmp_path, evaluation):
    training = tmp_path / "outputs" / "train" / "sdp"
    training.mkdir(parents=True)
    (training / "config.yaml").write_text("task: x\n")
    (training / "summary.json").write_text(json.dumps({"command": "train", "evaluation": {"path": "../../eval/lift"}}))
    assert json.loads(replay.run(_config(tmp_path, training)).read_text())["start"] == 100001


def test_an_unknown_start_lists_the_recorded_ones(tmp_path, evaluation):
    with pytest.raises(UserError, match="found episode=5; recorded starts: 100001, 100007"):
        replay.run(_config(tmp_path, evaluation, episode=5))
    with pytest.raises(UserError, match="episode= to be a start id"):
        replay.run(_config(tmp_path, evaluation, episode="first"))
    with pytest.raises(UserError, match="does not exist"):
        replay.run(_config(tmp_path, tmp_path / "absent"))
    for file in (evaluation / "rollouts").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="found none; evaluate again with recordings"):
        replay.run(_config(tmp_path, evaluation))


def test_the_command_says_how_to_view_where_there_is_no_screen(tmp_path, evaluation, monkeypatch, capsys):
    monkeypatch.setattr(replay, "open_recording", lambda path: False)
    rollout = evaluation / "rollouts" / "start_100007.npz"
    summary_path = replay.run(_config(tmp_path, rollout, open=None))
    recording = summary_path.parent / "start_100007.rrd"
    assert f"view it with `rerun {recording}`" in capsys.readouterr().out
    opened = []
    monkeypatch.setattr(replay, "open_recording", lambda path: opened.append(path) or True)
    summary = json.loads(replay.run(_config(tmp_path, recording, open=True)).read_text())
    assert opened == [recording] and (summary["kind"], summary["recording"]) == ("recording", str(recording))


def test_an_episode_of_a_store_is_drawn_by_its_task(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, SPEC.task, f"{__name__}:ToyTask")
    monkeypatch.setattr(ToyTask, "asked", asked := [])
    episodes = [make_saved_rollout(seed=seed).rollout.episode for seed in (3, 4)]
    provenance = {"task": {"name": SPEC.task, "robot": "Sawyer", "cameras": ["front"]}}
    with EpisodeStore.create(tmp_path / "d.zarr", SPEC, expected_episodes=2, provenance=provenance) as store:
        for episode in episodes:
            store.commit(episode)
    summary_path = replay.run(_config(tmp_path, tmp_path / "d.zarr", episode=4))
    summary = json.loads(summary_path.read_text())
    assert (summary["kind"], summary["start"], summary["steps"]) == ("demonstration", 4, STEPS)
    assert asked == [("made", {"robot": "Sawyer", "cameras": []}), ("reset", 4), ("closed", None)]
    recording = RecordingReader(summary_path.parent / summary["recording"])
    _, translations = recording.rows("/world/bodies/tool", "Transform3D:translation")
    np.testing.assert_array_equal(np.float32(translations)[:, 0], np.float32(episodes[1].physics[:, :3]))
    assert recording.scalars("/action/x/clean")[1] == episodes[1].action[:, 0].tolist()


def test_a_demonstration_of_a_gymnasium_environment_is_replayed_with_or_without_bodies(tmp_path):
    # As recorded, its settings name no cameras. Pendulum has nothing to draw, InvertedPendulum is MuJoCo's.
    for environment, drawn in (("Pendulum-v1", False), ("InvertedPendulum-v5", True)):
        settings = {"id": environment, "control_hz": 20, "success_reward": -100.0, "horizon": 5}
        task = make_task({"name": f"gymnasium/{environment}", **settings})
        episode = collect_episode(task, Still(), 3, CollectionSettings(1, 3, 0.0, 0.0, 99, 0))
        path = tmp_path / f"{environment}.zarr"
        with EpisodeStore.create(path, task.spec, expected_episodes=1, provenance={"task": settings}) as store:
            store.commit(episode)
        summary_path = replay.run(_config(tmp_path, path))
        recording = RecordingReader(summary_path.parent / json.loads(summary_path.read_text())["recording"])
        assert recording.scalars("/action/action_0/clean")[1] == [0.0] * 5
        assert any(path.startswith("/world/bodies") for path in recording.entities) == drawn


def test_a_rollout_in_a_world_without_bodies_is_replayed_too(tmp_path):
    saved = make_saved_rollout(seed=3)
    nothing = np.empty((len(saved.body_poses), 0, 7), np.float32)
    rollout = tmp_path / "start_3.npz"
    save_to(rollout, dataclasses.replace(saved, scene=Scene(bodies=(), geoms=(), tool=0), body_poses=nothing))
    summary_path = replay.run(_config(tmp_path, rollout))
    recording = RecordingReader(summary_path.parent / "start_3.rrd")
    assert len(recording.scalars("/action/x/executed")[1]) == STEPS
    assert not any(entity.startswith("/world") for entity in recording.entities)


def test_a_store_without_the_states_of_a_world_with_bodies_cannot_be_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, SPEC.task, f"{__name__}:ToyTask")
    episode = dataclasses.replace(make_saved_rollout(seed=3).rollout.episode, physics=np.zeros((STEPS, 0)))
    with EpisodeStore.create(tmp_path / "d.zarr", SPEC, expected_episodes=1, provenance={}) as store:
        store.commit(episode)
    with pytest.raises(UserError, match="simulator's states.*start 3 of .*d.zarr, which holds none; collect"):
        replay.run(_config(tmp_path, tmp_path / "d.zarr"))


def test_the_eye_leaves_out_what_is_parked_far_away():
    def eye(poses):
        geoms = tuple(
            Geom(body, f"g{body}", "box", (0.1, 0.1, 0.1), (0, 0, 0), (1, 0, 0, 0), (1, 1, 1, 1)) for body in (0, 1)
        )
        drawn = _eye(Scene(bodies=("tool", "parked"), geoms=geoms, tool=0), poses)
        return drawn.position.as_arrow_array().to_pylist(), drawn.look_target.as_arrow_array().to_pylist()

    poses = np.zeros((5, 2, 7), np.float32)
    poses[..., 3] = 1.0
    poses[:, 0, 0] = poses[:, 0, 2] = np.linspace(0.0, 0.5, 5)  # the tool rises
    poses[:, 1, :2], alone = 10.0, eye(poses)
    poses[:, 1, 2] = np.linspace(0.1, 0.0, 5)  # the other settles
    assert eye(poses) == alone
    poses[:, 1, :2] = 1.0
    assert eye(poses) != alone


def test_where_the_tool_stands_still_the_eye_looks_at_what_moves():
    poses = np.zeros((5, 2, 7), np.float32)
    poses[..., 3] = 1.0
    poses[:, 1, :3] = [1.0, 0.0, 0.5]
    poses[:, 1, 2] += np.linspace(0.0, 0.4, 5)
    geoms = tuple(
        Geom(body, f"g{body}", "sphere", (0.05, 0, 0), (0, 0, 0), (1, 0, 0, 0), (1, 1, 1, 1)) for body in (0, 1)
    )
    drawn = _eye(Scene(bodies=("base", "hand"), geoms=geoms, tool=0), poses)
    np.testing.assert_allclose(drawn.look_target.as_arrow_array().to_pylist()[0], [1.0, 0.0, 0.7], atol=1e-6)


def test_the_eye_looks_past_what_stands_in_the_way():
    poses = np.zeros((5, 2, 7), np.float32)
    poses[..., 3] = 1.0
    poses[:, 0, 2] = np.linspace(0.0, 0.4, 5)  # the tool rises
    poses[:, 1, :3] = [0.2, 0.0, 0.2]

    def eye(wall_m):
        wall = Geom(1, "wall", "box", (0.01, wall_m, wall_m), (0, 0, 0), (1, 0, 0, 0), (1, 1, 1, 1))
        tool = Geom(0, "tool", "sphere", (0.05, 0, 0), (0, 0, 0), (1, 0, 0, 0), (1, 1, 1, 1))
        drawn = _eye(Scene(bodies=("tool", "wall"), geoms=(tool, wall), tool=0), poses)
        return drawn.position.as_arrow_array().to_pylist()[0]

    assert eye(wall_m=0.001)[0] > 0  # in front, as always
    assert eye(wall_m=0.5)[0] < 0
