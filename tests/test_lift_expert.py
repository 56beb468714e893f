"""The scripted expert lifts the cube, also when its actions are disturbed or the cube is taken from it."""

from __future__ import annotations

import numpy as np
import pytest

from embodied.errors import UserError
from embodied.sim.lift import LiftExpert, LiftTask

NOISE, NOISE_BOUND = 0.3, 0.6


@pytest.fixture(scope="module")
def task():
    task = LiftTask()
    yield task
    task.close()


def lift(task: LiftTask, start_id: int, noise: float = 0.0, horizon: int = 100) -> int | None:
    """Steps until the first success; None without one."""
    expert, generator = LiftExpert(task), np.random.default_rng(start_id)
    task.reset(start_id)
    for step in range(1, horizon + 1):
        action, _ = expert.act(expert.infer_memory())
        if noise:
            action[:6] += np.clip(generator.normal(0.0, noise, 6), -NOISE_BOUND, NOISE_BOUND)
        if task.step(action).info["success"]:
            return step
    return None


def test_lifts_every_undisturbed_start_briskly(task):
    steps = [lift(task, start_id) for start_id in range(6)]
    assert all(step is not None and step <= 40 for step in steps), steps


def test_lifts_with_noise_on_the_executed_actions(task):
    steps = [lift(task, start_id, noise=NOISE) for start_id in range(4)]
    assert None not in steps, steps


def test_holds_the_cube_up_after_success(task):
    steps = lift(task, 0)
    expert = LiftExpert(task)
    held = [task.step(expert.act(None)[0]).info["success"] for _ in range(task.spec.horizon - steps)]
    assert all(held)
    assert task.cube_position()[2] == pytest.approx(task.table_height() + 0.1, abs=0.02)


def test_goes_back_for_a_cube_that_was_taken_away(task):
    assert lift(task, 1) is not None
    joint = task.data.joint("cube_joint0")
    joint.qpos[:3] = [0.06, -0.08, task.table_height() + task.cube_half_size()]
    joint.qvel[:] = 0.0
    expert = LiftExpert(task)
    assert not task.step(expert.act(None)[0]).info["success"]
    assert expert.act(None)[0][-1] == -1.0, "an empty gripper is expected to open"
    assert any(task.step(expert.act(None)[0]).info["success"] for _ in range(60))


def test_quaternions_do_not_jump_within_an_episode(task):
    expert = LiftExpert(task)
    for start_id in range(3):
        previous = task.reset(start_id).state
        assert previous["eef_quaternion"] @ [0.7071, 0.7071, 0, 0] > 0.9
        for _ in range(30):
            state = task.step(expert.act(None)[0]).observation.state
            for name in ("eef_quaternion", "cube_quaternion"):
                assert state[name] @ previous[name] > 0.95, name
            previous = state


def test_state_vectors_say_where_things_are(task):
    state = task.reset(0).state
    assert task.spec.state_size == 19
    np.testing.assert_allclose(state["eef_position"] + state["gripper_to_cube"], state["cube_position"], atol=1e-6)
    assert task.table_height() < state["cube_position"][2] < task.table_height() + 0.04
    assert np.linalg.norm(state["cube_quaternion"]) == pytest.approx(1.0, abs=1e-5)
    step = task.step(np.array([1, 0, 0, 0, 0, 0, -1.0]))
    for _ in range(5):
        step = task.step(np.array([1, 0, 0, 0, 0, 0, -1.0]))
    assert step.observation.state["eef_position"][0] > state["eef_position"][0] + 0.03, "x is expected to move x"
    assert np.ptp(step.observation.state["gripper_qpos"]) > np.ptp(state["gripper_qpos"]) + 0.01


def test_action_units_are_the_controllers_own(task):
    assert task.controller_scale() == (0.05, 0.5)
    assert task.spec.action.units[:6] == ("0.05 m",) * 3 + ("0.5 rad",) * 3
    assert task.spec.action.binary == (False,) * 6 + (True,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"robot": "Pandda"}, r"robot.*'Pandda'; did you mean 'Panda'"),
        ({"control_hz": 30}, r"task\.control_hz that divides .* 500 Hz; found 30"),
        ({"control_hz": 0}, r"task\.control_hz"),
        ({"horizon": 0}, r"task\.horizon of at least 1; found 0"),
        ({"cameras": ["agentveiw"]}, r"'agentveiw' in task\.cameras; did you mean 'agentview'"),
        ({"cameras": ["agentview"], "camera_size": 0}, r"task\.camera_size of at least 1"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        LiftTask(**settings)


def test_another_gripper_is_refused(task, monkeypatch):
    monkeypatch.setattr(task, "robot", "UR5e")
    with pytest.raises(UserError, match=r"task\.robot=UR5e; use task\.robot=Panda"):
        LiftExpert(task)


def test_a_start_id_must_fit_a_seed(task):
    with pytest.raises(UserError, match="start id from 0"):
        task.reset(-1)
