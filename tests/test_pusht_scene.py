"""Push-T in a replay: where the pieces lie, and where predicted targets lead."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from embodied import pusht_board
from embodied.replay import layout
from embodied.replay.predicted_path import predicted_paths
from embodied.replay.rollout_file import load_rollout, save_rollout
from embodied.sim.pusht_scene import PUSHT_SCENE, body_poses
from embodied.types import Episode, Rollout

STATES = np.array([[100.0, 400.0, 300.0, 200.0, 0.5], [110.0, 390.0, 280.0, 210.0, -2.0]])
SPEC = pusht_board.task_spec("pusht/state")


def in_scene(points_px: np.ndarray) -> np.ndarray:
    """Where points of the board [N 2] lie in the scene seen from above, float64 [N 2], m."""
    return np.array([0.0, 0.512]) + points_px * np.array([0.001, -0.001])


def corners(poses: np.ndarray, body: str) -> np.ndarray:
    """Of all boxes of a body in the scene, float64 [corners 2], m."""
    index = PUSHT_SCENE.bodies.index(body)
    position, rotation = poses[index, :3], Rotation.from_quat(np.roll(poses[index, 3:], -1))
    found = []
    for geom in PUSHT_SCENE.geoms:
        if geom.body == index and geom.kind == "box":
            for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
                corner = np.array(geom.position) + np.array([x, y, 0]) * geom.size
                found.append((position + rotation.apply(corner))[:2])
    return np.array(found)


def same_points(one: np.ndarray, other: np.ndarray) -> bool:
    distances = np.linalg.norm(one[:, None] - other[None], axis=-1)
    return bool(distances.min(axis=0).max() < 1e-6 and distances.min(axis=1).max() < 1e-6)


def test_the_block_and_the_goal_lie_where_their_keypoints_do():
    for poses, state in zip(body_poses(STATES), STATES, strict=True):
        assert same_points(corners(poses, "block"), in_scene(pusht_board.keypoints(state[2:])))
        goal = pusht_board.keypoints(np.array(pusht_board.GOAL_POSE))
        assert same_points(corners(poses, "goal"), in_scene(goal))


def test_the_board_reaches_from_corner_to_corner():
    found = corners(body_poses(STATES)[0], "board")
    np.testing.assert_allclose([found.min(axis=0), found.max(axis=0)], [[0, 0], [0.512, 0.512]], atol=1e-6)


def rollout() -> Rollout:
    steps = len(STATES)
    chunk = np.array([[[120.0, 380.0], [130.0, 600.0]]], np.float32)
    preview = np.array([[[140.0, 360.0]]], np.float32)
    actions = np.zeros((steps, 2), np.float32)
    episode = Episode(
        task=SPEC.task,
        seed=3,
        state=pusht_board.state_vectors(SPEC.task, STATES),
        images={},
        action=actions,
        executed=actions,
        reward=np.zeros(steps, np.float32),
        success=np.zeros(steps, bool),
        time_s=np.arange(steps) / 10,
        physics=STATES,
    )
    one = np.ones(1)
    return Rollout(episode, np.array([1]), chunk, preview, one[:, None].astype("f4"), one.astype("f4"), np.array([2]))


def test_a_predicted_path_leads_through_the_targets_as_the_task_clips_them():
    made = rollout()
    poses = body_poses(STATES)
    chunk, preview = predicted_paths(made, PUSHT_SCENE, poses, SPEC.action)
    np.testing.assert_array_equal(chunk[0, 0], poses[1, PUSHT_SCENE.tool, :3])
    np.testing.assert_allclose(chunk[0, 1:, :2], in_scene(np.array([[120, 380], [130, 512]])), atol=1e-6)
    np.testing.assert_array_equal(preview[0, 0], chunk[0, -1])
    np.testing.assert_allclose(preview[0, 1, :2], in_scene(np.array([[140, 360]]))[0], atol=1e-6)


def test_targets_are_kept_with_a_rollout_and_must_fit_its_actions(tmp_path):
    made, poses = rollout(), body_poses(STATES)
    save_rollout(tmp_path / "r.npz", made, PUSHT_SCENE, poses, SPEC)
    assert load_rollout(tmp_path / "r.npz").scene == PUSHT_SCENE
    wrong = type(PUSHT_SCENE)(PUSHT_SCENE.bodies, PUSHT_SCENE.geoms, PUSHT_SCENE.tool, ((1.0, 0.0),) * 3)
    save_rollout(tmp_path / "w.npz", made, wrong, poses, SPEC)
    with pytest.raises(Exception, match="targets are of 1 action elements"):
        load_rollout(tmp_path / "w.npz")


def test_what_moves_in_a_plane_is_seen_from_above():
    eye = layout._eye(PUSHT_SCENE, body_poses(STATES))
    position, target = (np.array(part.as_arrow_array().to_pylist()[0]) for part in (eye.position, eye.look_target))
    np.testing.assert_allclose(position[:2], [0.256, 0.256], atol=1e-6)
    np.testing.assert_allclose(target[:2], [0.256, 0.256], atol=1e-6)
    assert position[2] > 0.4
