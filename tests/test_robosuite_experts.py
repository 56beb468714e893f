"""The experts for stack, can, square and door: they succeed, disturbed or not, and they come back after a mishap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from embodied.errors import UserError
from embodied.sim.can import CanExpert, CanTask
from embodied.sim.robosuite_door import DoorExpert, DoorTask
from embodied.sim.square import SquareExpert, SquareTask
from embodied.sim.stack import StackExpert, StackTask

NOISE, NOISE_BOUND = 0.1, 0.2
EXPERTS = {
    StackTask: (StackExpert, 200),
    CanTask: (CanExpert, 200),
    SquareTask: (SquareExpert, 300),
    DoorTask: (DoorExpert, 200),
}


@pytest.fixture(scope="module", params=EXPERTS, ids=lambda task_class: task_class.name.removeprefix("robosuite/"))
def pair(request):
    """A task and its expert."""
    expert_class, horizon = EXPERTS[request.param]
    task = request.param(horizon=horizon)
    yield task, expert_class(task)
    task.close()


@pytest.fixture(scope="module")
def stack():
    task = StackTask(horizon=200)
    yield task
    task.close()


@pytest.fixture(scope="module")
def square():
    task = SquareTask(horizon=300)
    yield task
    task.close()


@pytest.fixture(scope="module")
def door():
    task = DoorTask(horizon=200)
    yield task
    task.close()


def steps_to_success(task, expert, noise: float = 0.0, seed: int = 0) -> int | None:
    """From the present state on; None without success within the horizon."""
    generator = np.random.default_rng(seed)
    for step in range(1, task.spec.horizon + 1):
        action, _ = expert.act(expert.infer_memory())
        action[:6] += np.clip(generator.normal(0.0, noise, 6), -NOISE_BOUND, NOISE_BOUND)
        if task.step(action).info["success"]:
            return step
    return None


def place(task, body: str, position: np.ndarray, yaw: float = 0.0) -> None:
    """Put a free body at rest somewhere, upright."""
    joint = task.data.joint(f"{body}_joint0")
    joint.qpos[:3] = position
    joint.qpos[3:] = [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
    joint.qvel[:] = 0.0
    task._settle_poses()


def test_succeeds_undisturbed(pair):
    task, expert = pair
    for start_id in range(2):
        task.reset(start_id)
        assert steps_to_success(task, expert) is not None, start_id


def test_succeeds_with_noise_on_the_executed_actions(pair):
    task, expert = pair
    for start_id in range(2):
        task.reset(start_id)
        assert steps_to_success(task, expert, noise=NOISE, seed=start_id) is not None, start_id


def test_success_lasts(pair):
    task, expert = pair
    task.reset(2)
    steps = steps_to_success(task, expert)
    held = [task.step(expert.act(None)[0]).info["success"] for _ in range(min(30, task.spec.horizon - steps))]
    assert all(held)


def test_relative_vectors_are_differences_of_positions(pair):
    task, _ = pair
    state = task.reset(0).state
    differences = {
        "gripper_to_cube_a": ("eef_position", "cube_a_position"),
        "cube_a_to_cube_b": ("cube_a_position", "cube_b_position"),
        "gripper_to_can": ("eef_position", "can_position"),
        "gripper_to_handle": ("eef_position", "handle_position"),
    }
    for name, (start, end) in differences.items():
        if name in state and end in state:
            np.testing.assert_allclose(state[start] + state[name], state[end], atol=1e-6, err_msg=name)
    if "nut_to_handle" in state:
        handle = state["nut_position"] + state["nut_to_handle"]
        np.testing.assert_allclose(state["eef_position"] + state["gripper_to_handle"], handle, atol=1e-6)
        assert np.linalg.norm(state["nut_to_handle"]) == pytest.approx(0.054, abs=1e-4), "the model's own lever"


def test_another_gripper_is_refused(pair, monkeypatch):
    task, expert = pair
    monkeypatch.setattr(task, "robot", "UR5e")
    with pytest.raises(UserError, match=r"task\.robot=UR5e; use task\.robot=Panda"):
        type(expert)(task)


def test_a_stacked_cube_is_left_alone_and_a_fallen_one_stacked_again(stack):
    expert = StackExpert(stack)
    stack.reset(0)
    assert steps_to_success(stack, expert) is not None
    for _ in range(20):
        stack.step(expert.act(None)[0])
    above = stack.eef_position() - stack.cube_position("A")
    assert above[2] > 0.06, "the gripper is expected to have gone up"
    np.testing.assert_allclose(stack.cube_position("A")[:2], stack.cube_position("B")[:2], atol=0.02)
    place(stack, "cubeA", stack.cube_position("B") + np.array([-0.1, 0.1, -0.005]))
    assert not stack.step(expert.act(None)[0]).info["success"]
    again = [stack.step(expert.act(None)[0]).info["success"] for _ in range(100)]
    assert any(again)


@pytest.mark.parametrize("direction", np.linspace(-np.pi, np.pi, 9)[:-1])
def test_the_wrist_stays_within_its_limits_whichever_way_the_nuts_handle_points(square, direction):
    expert = SquareExpert(square)
    square.reset(0)
    place(square, "SquareNut", np.array([-0.11, 0.15, 0.83]), yaw=direction + 0.01)
    yaw = expert._grasp_yaw()
    assert -np.pi / 2 - 0.1 < yaw < np.pi + 0.1
    assert abs(np.sin(yaw - direction - 0.01)) < 1e-6, "along the handle"
    final = expert._final_yaw(yaw)
    turned = Rotation.from_euler("z", direction + 0.01 + final - yaw).apply([1.0, 0.0, 0.0])
    np.testing.assert_allclose(turned, [-1.0, 0.0, 0.0], atol=1e-6, err_msg="the handle is to point to the robot")


def test_where_the_handle_would_be_is_where_it_is_once_it_is_there(door):
    door.reset(0)
    foreseen = door.handle_position(turned_rad=0.7, opened_rad=0.2)
    door.data.joint(door._env.door.joints[0]).qpos[0] += 0.2
    door.data.joint(door._env.door.joints[1]).qpos[0] += 0.7
    door._settle_poses()
    np.testing.assert_allclose(door.handle_position(), foreseen, atol=1e-9)
    assert door.hinge_angle() == pytest.approx(0.2) and door.handle_angle() == pytest.approx(0.7)


def test_the_door_opens_only_with_its_handle_turned(door):
    door.reset(0)
    hinge = door.model.joint(door._env.door.joints[0]).dofadr[0]
    for _ in range(20):
        door.data.qfrc_applied[hinge] = 3.0
        door.step(np.zeros(7))
    assert door.hinge_angle() < 0.05
