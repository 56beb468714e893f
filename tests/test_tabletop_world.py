"""The tabletop world: its control, its dynamics, its exact states, and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from embodied.errors import UserError
from embodied.sim.arm_task import DOWN
from embodied.sim.differential_ik import DifferentialIk
from embodied.sim.opengl import mujoco
from embodied.sim.tabletop_control import POSITION_SCALE_M, ROTATION_SCALE_RAD
from embodied.sim.tabletop_model import Dynamics, TabletopWorld
from embodied.sim.tabletop_objects import CAN, LEMON, PLATE
from embodied.sim.tabletop_pick import PickCanExpert, PickCanTask
from embodied.sim.tabletop_robots import GRIP_SITE, OBJECT_TYPE, ROBOTS, STATIC_TYPE, robot_only

STILL = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)


@pytest.fixture(scope="module")
def task():
    task = PickCanTask()
    yield task
    task.close()


def act(task, expert, steps):
    """The last outcome of so many steps with the expert."""
    for _ in range(steps):
        step = task.step(expert.act(None)[0])
    return step


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("goal", [(0.45, 0.2, 0.05), (0.6, -0.2, 0.3)])
def test_inverse_kinematics_reach_poses_within_the_workspace(robot, goal):
    arm = ROBOTS[robot]
    ik = DifferentialIk(robot_only(arm), GRIP_SITE, arm.joints, arm.home)
    q, rotation = np.array(arm.home), Rotation.from_euler("z", 0.6) * DOWN
    for _ in range(40):
        position, quaternion = ik.pose(q)
        offset = np.array(goal) - position
        turn = (rotation * Rotation.from_quat(np.roll(quaternion, -1)).inv()).as_rotvec()
        q = ik.moved(q, np.clip(offset, -POSITION_SCALE_M, POSITION_SCALE_M), np.clip(turn, -0.1, 0.1))
    position, quaternion = ik.pose(q)
    np.testing.assert_allclose(position, goal, atol=1e-4)
    assert (rotation * Rotation.from_quat(np.roll(quaternion, -1)).inv()).magnitude() < 1e-3


def test_two_iterations_take_the_linearisation_out_of_a_full_step():
    arm = ROBOTS["Panda"]
    ik = DifferentialIk(robot_only(arm), GRIP_SITE, arm.joints, arm.home)
    q = np.array([0.1, 0.1, 0.0, -2.2, 0.0, 2.4, 0.9])
    before, quaternion = ik.pose(q)
    displacement, turn = POSITION_SCALE_M * np.array([1, -1, 1]), ROTATION_SCALE_RAD * np.array([0.5, 1, -1])
    after, turned = ik.pose(ik.moved(q, displacement, turn))
    np.testing.assert_allclose(after - before, displacement, atol=1e-4)
    made = Rotation.from_quat(np.roll(turned, -1)) * Rotation.from_quat(np.roll(quaternion, -1)).inv()
    np.testing.assert_allclose(made.as_rotvec(), turn, atol=1e-3)


def test_joint_limits_hold_whatever_is_asked_for():
    arm = ROBOTS["Panda"]
    model = robot_only(arm)
    ik = DifferentialIk(model, GRIP_SITE, arm.joints, arm.home)
    limits = np.array([model.joint(joint).range for joint in arm.joints])
    q = np.array(arm.home)
    for _ in range(60):
        q = ik.moved(q, np.array([0.05, 0.0, -0.05]), np.array([0.0, -0.2, 0.0]))
    assert np.all(q >= limits[:, 0]) and np.all(q <= limits[:, 1])
    assert np.isclose(q[:, None], limits).any(), "one of them is expected to be met"


@pytest.mark.parametrize("axis", range(3))
def test_an_action_displaces_the_tool_by_its_unit_and_a_still_one_holds_it(task, axis):
    task.reset(0)
    before = task.eef_position()
    action = STILL.copy()
    action[axis] = 1.0
    task.step(action)
    for _ in range(15):
        task.step(STILL)
    expected = np.zeros(3)
    expected[axis] = POSITION_SCALE_M
    np.testing.assert_allclose(task.eef_position() - before, expected, atol=1e-3)
    held = task.eef_position()
    for _ in range(40):
        task.step(STILL)
    np.testing.assert_allclose(task.eef_position(), held, atol=3e-4)


def test_a_rotation_turns_the_tool_about_the_bases_axes(task):
    task.reset(0)
    before = Rotation.from_quat(task.observation().state["eef_quaternion"])
    action = STILL.copy()
    action[3:6] = [0.0, 0.0, 1.0]
    task.step(action)
    for _ in range(15):
        observation = task.step(STILL).observation
    made = Rotation.from_quat(observation.state["eef_quaternion"]) * before.inv()
    np.testing.assert_allclose(made.as_rotvec(), [0.0, 0.0, ROTATION_SCALE_RAD], atol=3e-3)
    np.testing.assert_allclose(observation.state["command_turn"], 0.0, atol=3e-3)


def test_an_episode_replays_bit_for_bit_from_any_state_that_was_kept(task):
    generator = np.random.default_rng(0)
    expert = PickCanExpert(task)
    task.reset(4)
    act(task, expert, 9)  # the fingers are at the can
    kept = task.physics_state()
    actions = [expert.act(None)[0], *generator.uniform(-1, 1, (12, 7)).astype(np.float32)]
    first = [task.step(action) for action in actions]
    end = task.physics_state()
    task.step(STILL)
    observation = task.restore(kept)
    assert observation.time_s == pytest.approx(9 * task.spec.dt_s)
    assert np.array_equal(task.physics_state(), kept)
    again = [task.step(action) for action in actions]
    assert np.array_equal(task.physics_state(), end)
    for one, other in zip(first, again, strict=True):
        assert one.info == other.info and one.truncated == other.truncated
        assert all(np.array_equal(a, other.observation.state[key]) for key, a in one.observation.state.items())
    elsewhere = PickCanTask()  # nothing is kept outside the state
    elsewhere.reset(4)
    elsewhere.restore(kept)
    for action in actions:
        elsewhere.step(action)
    assert np.array_equal(elsewhere.physics_state(), end)


def test_restoring_brings_back_success_stages_and_the_horizon(task):
    expert = PickCanExpert(task)
    task.reset(1)
    step = act(task, expert, 30)
    assert step.info["success"] and all(step.info["stages"].values())
    kept = task.physics_state()
    task.reset(1)
    assert not any(task.step(STILL).info["stages"].values())
    task.restore(kept)
    opened = [task.step(STILL) for _ in range(task.spec.horizon - 30)]
    assert opened[-1].truncated and not opened[-2].truncated
    assert opened[-1].info["success_ever"] and all(opened[-1].info["stages"].values())


def test_a_state_of_another_size_is_refused(task):
    task.reset(0)
    with pytest.raises(UserError, match=r"a physics state of \d+ numbers.*found shape \[3\].*own start and variant"):
        task.restore(np.zeros(3))


def test_a_grasp_holds_still_in_the_air(task):
    expert = PickCanExpert(task)
    for start_id in range(3):  # one of each orientation
        task.reset(start_id)
        act(task, expert, 40)
        offset = task.sim.position(CAN.name) - task.eef_position()
        act(task, expert, 60)
        np.testing.assert_allclose(task.sim.position(CAN.name) - task.eef_position(), offset, atol=2e-3)


def test_dynamics_change_in_place_and_back_without_a_trace():
    task = PickCanTask()
    actions = np.random.default_rng(1).uniform(-1, 1, (15, 7)).astype(np.float32)

    def end() -> np.ndarray:
        task.reset(3)
        for action in actions:
            task.step(action)
        return task.physics_state()

    neutral = end()
    changes = [{"stiffness": (0.5,)}, {"damping": (2.0,)}, {"joint_damping": 50.0}, {"delay_steps": 2}]
    for change in changes:
        task.set_dynamics(Dynamics(**change))
        assert not np.array_equal(end(), neutral), change
    task.set_dynamics(Dynamics())
    assert np.array_equal(end(), neutral)
    by_setting = PickCanTask(dynamics={"delay_steps": 2, "stiffness": 0.5})
    assert by_setting.dynamics == Dynamics(stiffness=(0.5,), delay_steps=2)


def test_dynamics_are_shares_of_the_models_own():
    world = TabletopWorld(items=(CAN,))
    base, changed = world.build(), world.build()
    world.apply(Dynamics(stiffness=(0.5, 1, 1, 1, 1, 1, 2), joint_damping=3.0, friction=0.25), changed)
    gains = [changed.actuator(f"joint{n}").gainprm[0] / base.actuator(f"joint{n}").gainprm[0] for n in (1, 2, 7)]
    assert gains == pytest.approx([0.5, 1, 2])
    np.testing.assert_allclose(changed.geom_friction, 0.25 * base.geom_friction)
    assert changed.joint("joint1").damping == pytest.approx(3.0 * base.joint("joint1").damping)
    assert changed.joint("finger_joint1").damping == base.joint("finger_joint1").damping
    assert world.build().actuator("joint1").gainprm[0] == base.actuator("joint1").gainprm[0], "models are apart"


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_a_delay_holds_commands_back_for_so_many_steps(delay):
    task = PickCanTask(dynamics={"delay_steps": delay})
    task.reset(0)
    before = task.data.ctrl.copy()
    forward = STILL.copy()
    forward[0] = 1.0
    changed = []
    for _ in range(delay + 2):
        task.step(forward)
        changed.append(not np.array_equal(task.data.ctrl[:7], before[:7]))
    assert changed == [False] * delay + [True, True]


def test_blocked_targets_do_not_run_away(task):
    task.reset(0)
    down = np.array([0, 0, -1, 0, 0, 0, 1], np.float32)
    for _ in range(60):
        step = task.step(down)
    assert task.eef_position()[2] > -0.01, "the table is expected to stop the fingers"
    assert np.linalg.norm(step.observation.state["command_displacement"]) < 0.35
    up = -down
    rise = [task.step(up).observation.state["eef_position"][2] for _ in range(14)]
    assert rise[-1] > 0.1, "the way back is expected to be short"


def test_things_rest_where_they_are_put():
    model = TabletopWorld(items=(CAN, LEMON, PLATE)).build()
    data = mujoco.MjData(model)
    for place, item in enumerate((CAN, LEMON, PLATE)):
        data.joint(item.name).qpos[:3] = [0.4, 0.2 * place - 0.3, item.half[2]]
        assert model.body(item.name).mass == pytest.approx(item.mass)
    before = data.qpos.copy()
    mujoco.mj_step(model, data, nstep=400)
    for item in (CAN, LEMON, PLATE):
        place = model.joint(item.name).qposadr[0]
        np.testing.assert_allclose(data.qpos[place : place + 3], before[place : place + 3], atol=1e-3)


def test_the_arms_links_touch_nothing_and_its_hand_all():
    model = TabletopWorld(items=(CAN,)).build()
    solid = [geom for geom in range(model.ngeom) if model.geom_contype[geom] or model.geom_conaffinity[geom]]
    of_robot = [geom for geom in solid if model.body_rootid[model.geom_bodyid[geom]] == model.body("base").id]
    assert {model.body(model.geom_bodyid[geom]).name for geom in of_robot} == {
        "right_gripper",
        "leftfinger",
        "rightfinger",
    }
    types = {model.geom(geom).name: int(model.geom_contype[geom]) for geom in solid}
    assert types["table"] == STATIC_TYPE and types["can_0"] == OBJECT_TYPE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"robot": "Pandas"}, r"a robot for task\.robot; found 'Pandas'; did you mean 'Panda'\?"),
        ({"control_hz": 30}, r"divides the physics rate of 200 Hz; found 30; use 20"),
        ({"control_hz": 0}, r"divides the physics rate"),
        ({"horizon": 0}, r"task\.horizon of at least 1"),
        ({"camera_size": 0}, r"task\.camera_size of at least 1"),
        ({"cameras": ["overveiw"]}, r"'overveiw' in task\.cameras; did you mean 'overview'\?"),
        ({"cameras": ["wrist", "wrist"]}, r"every camera once in task\.cameras; found 'wrist' twice"),
        ({"instructions": "trainig"}, r"task\.instructions; found 'trainig'; did you mean 'training'\?"),
        ({"variant": "light/dimm"}, r"variant of tabletop/pick_can.*found 'light/dimm'; did you mean 'light/dim'\?"),
        ({"orientation": "standin"}, r"task\.orientation.*'standin'; did you mean 'standing'\?"),
        ({"dynamics": {"frictoin": 2}}, r"task\.dynamics; found 'frictoin'; did you mean 'friction'\?"),
        ({"dynamics": {"delay_steps": 9}}, r"delay_steps from 0 to 4; found 9"),
        ({"dynamics": {"friction": 0.0}}, r"dynamics\.friction above 0; found 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        PickCanTask(**settings)


def test_gains_for_another_number_of_joints_are_refused():
    task = PickCanTask(dynamics={"stiffness": [1.0, 1.0]})
    with pytest.raises(UserError, match=r"one value, or 7: one for each joint of Panda; found 2 values"):
        task.reset(0)


def test_nothing_is_known_before_a_reset():
    with pytest.raises(UserError, match=r"reset before a simulation; found no reset; call task\.reset"):
        PickCanTask().physics_state()


@pytest.mark.parametrize("start_id", range(3))
def test_the_same_oracle_picks_with_another_arm(start_id):
    task = PickCanTask(robot="UR5e")
    task.reset(start_id)
    assert len(task.data.ctrl) == 8 and act(task, PickCanExpert(task), 60).info["success_ever"]


def test_worlds_are_values():
    world = TabletopWorld(items=(CAN,))
    assert world == TabletopWorld(items=(CAN,)) and hash(world) == hash(TabletopWorld(items=(CAN,)))
    assert dataclasses.replace(world, robot="UR5e") != world
