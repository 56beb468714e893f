"""Adroit: the environments' own observations, rewards and success, by name; what is drawn moves with the start."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from embodied.errors import UserError
from embodied.sim.adroit import DoorTask, HammerTask, PenTask, RelocateTask, import_gymnasium

TASKS = {task.name: task for task in (DoorTask, HammerTask, PenTask, RelocateTask)}


@pytest.fixture(scope="module", params=list(TASKS))
def task(request):
    task = TASKS[request.param]()
    yield task
    task.close()


@pytest.fixture(scope="module")
def tasks():
    """Every task by its name, made when asked for."""
    made = {}

    def get(name):
        made[name] = made.get(name) or TASKS[name]()
        return made[name]

    yield get
    for task in made.values():
        task.close()


def actions(task, count: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(-1, 1, (count, task.spec.action.size)).astype(np.float32)


def still(task) -> np.ndarray:
    return np.zeros(task.spec.action.size, np.float32)


def test_state_vectors_side_by_side_are_the_environments_own_observation(task):
    env = import_gymnasium().make(task.environment)
    vector, _ = env.reset(seed=11)
    observation = task.reset(11)
    assert np.array_equal(task.spec.flatten_state(observation.state), vector.astype(np.float32))
    for action in actions(task, 30):
        vector, reward, _, _, info = env.step(action)
        step = task.step(action)
        assert np.array_equal(task.spec.flatten_state(step.observation.state), vector.astype(np.float32))
        assert step.reward == float(reward) and step.info["success"] is bool(info["success"])
    env.close()


def test_hand_joints_are_called_as_in_the_model(task):
    task.reset(0)
    for action in actions(task, 5):
        state = task.step(action).observation.state
    vectors = [spec for spec in task.spec.state if spec.name in ("hand_joints", "arm_position")]
    assert sum(spec.size for spec in vectors) >= 24
    for spec in vectors:
        live = [task.data.joint(name).qpos[0] for name in spec.elements]
        np.testing.assert_array_equal(state[spec.name], np.float32(live))


def test_actions_are_targets_of_the_joints_that_the_spec_names(task):
    joint = "FFJ2"
    place = task.spec.action.elements.index(joint)
    assert task.spec.action.units[place] == "0.8 rad from 0.8 rad"
    angles = []
    for command in (-1.0, 1.0):
        action = still(task)
        action[place] = command
        task.reset(0)
        for _ in range(60):
            task.step(action)
        angles.append(float(task.data.joint(joint).qpos[0]))
    assert angles[0] < 0.3 and angles[1] > 1.0


def open_door(task):
    task.data.joint("door_hinge").qpos[0] = 1.45


def drive_nail(task):
    task.data.joint("nail_dir").qpos[0] = task.model.joint("nail_dir").range[1]


def turn_target_to_pen(task):
    task.model.body("target").quat[:] = task.data.body("Object").xquat


def move_target_to_ball(task):
    task.model.site("target").pos[:] = task.data.body("Object").xpos


@pytest.mark.parametrize(
    ("name", "solve"),
    [
        ("adroit/door", open_door),
        ("adroit/hammer", drive_nail),
        ("adroit/pen", turn_target_to_pen),
        ("adroit/relocate", move_target_to_ball),
    ],
)
def test_success_is_the_environments_own_and_is_remembered(tasks, name, solve):
    task = tasks(name)
    task.reset(0)
    assert task.step(still(task)).info == {"success": False, "success_ever": False}
    solve(task)
    assert task.step(still(task)).info == {"success": True, "success_ever": True}
    task.reset(1)
    assert task.step(still(task)).info == {"success": False, "success_ever": False}


def test_an_open_door_shows_in_the_state(tasks):
    task = tasks("adroit/door")
    assert task.reset(0).state["door_open"] == [-1.0]
    open_door(task)
    state = task.step(still(task)).observation.state
    assert state["door_open"] == [1.0] and state["door"][0] > 1.35
    np.testing.assert_allclose(state["handle_to_palm"], state["palm_position"] - state["handle_position"], atol=1e-6)


def test_the_hammers_rotation_is_in_intrinsic_euler_angles(tasks):
    task = tasks("adroit/hammer")
    task.reset(0)
    for name, angle in (("OBJRx", 0.4), ("OBJRy", -0.3), ("OBJRz", 0.2)):
        task.data.joint(name).qpos[0] = angle
    state = task.step(still(task)).observation.state
    angles = Rotation.from_matrix(task.data.body("Object").xmat.reshape(3, 3)).as_euler("XYZ")
    np.testing.assert_allclose(state["hammer_rotation"], angles, atol=0.02)
    assert np.abs(angles - [1.57, 0, 0]).min() > 0.1


def test_directions_of_the_pen_are_unit_vectors(tasks):
    state = tasks("adroit/pen").reset(4).state
    for name in ("pen_direction", "target_direction"):
        assert np.linalg.norm(state[name]) == pytest.approx(1.0, abs=1e-5)
    difference = state["pen_direction"] - state["target_direction"]
    np.testing.assert_allclose(state["direction_difference"], difference, atol=1e-6)


def test_a_replay_shows_the_door_where_the_start_put_it(tasks):
    task, places = tasks("adroit/door"), []
    for start_id in (0, 1):
        task.reset(start_id)
        poses = task.body_poses(task.physics_state()[None])
        frame = poses[0, task.scene().bodies.index("frame"), :3]
        np.testing.assert_allclose(frame, task.data.body("frame").xpos, atol=1e-6)
        places.append(frame)
    assert np.abs(places[0] - places[1]).max() > 0.01


def test_a_replay_of_relocate_shows_the_target(tasks):
    task, places = tasks("adroit/relocate"), []
    for start_id in (0, 1):
        state = task.reset(start_id).state
        (target,) = [geom for geom in task.scene().geoms if geom.name == "target"]
        assert task.scene().bodies[target.body] == "world" and target.kind == "sphere"
        ball = task.data.body("Object").xpos
        np.testing.assert_allclose(target.position, ball - state["target_to_ball"], atol=1e-6)
        places.append(target.position)
    assert places[0] != places[1]


def test_wrong_uses_are_named():
    with pytest.raises(UserError, match=r"task\.horizon of at least 1; found 0"):
        DoorTask(horizon=0)
    task = PenTask(horizon=1)
    for early in (lambda: task.step(still(task)), task.observation):
        with pytest.raises(UserError, match=r"expected reset before .*; found no reset; call task\.reset"):
            early()
    for start_id in (-1, 2**32):
        with pytest.raises(UserError, match="start id from 0 to 4294967295"):
            task.reset(start_id)
    task.close()
