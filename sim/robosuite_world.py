"""Tasks in robosuite's world: addressed starts, honest units, and none of its noise on the console."""

from __future__ import annotations

import functools
import logging
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from embodied.catalog import nearest
from embodied.errors import UserError
from embodied.sim.camera_renderer import CameraRenderer, camera_specs, checked_cameras
from embodied.sim.global_random import GlobalRandomStream
from embodied.sim.moved_object import BASE, Move, check_variant, planned_move
from embodied.sim.mujoco_scene import MujocoScene
from embodied.sim.mujoco_task import MujocoTask
from embodied.sim.opengl import MjData, MjModel, mujoco, without_opengl
from embodied.sim.robosuite_resets import compile_each_robot_once, free_without_collection
from embodied.sim.simulated_task import check_start, require_positive
from embodied.types import ActionGroup, ActionSpec, Observation, StateSpec, Step, TaskSpec

# One arm on a fixed base, one gripper with one command: the robots whose actions are the seven elements below.
# (MuJoCo 3.9 refuses Sawyer's meshes.)
ROBOTS = ("IIWA", "Jaco", "Kinova3", "Panda", "UR5e")
ARM = "right"  # what robosuite calls the arm of a robot with one
FARTHEST_MOVE_M, LARGEST_TURN_RAD = 0.05, 0.5  # of the object in the variant `moved`
VISUAL_GROUP = 1  # robosuite's geom group for the eye; 0 is for collisions


@functools.cache
def import_robosuite() -> Any:
    """robosuite, without its import warnings, its log lines below ERROR, or its change of MUJOCO_GL."""
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    with without_opengl(), warnings.catch_warnings(), GlobalRandomStream():
        warnings.simplefilter("ignore")
        import robosuite
    compile_each_robot_once()
    return robosuite


class RobosuiteTask(MujocoTask):
    """One robosuite environment as a `Task`; a task family adds its state vectors.

    Actions are robosuite's default: end effector displacements under operational space control, and one gripper
    command. Observations, success and physics state all belong to the same instant.
    """

    name: ClassVar[str]  # the catalogue's
    environment: ClassVar[str]  # robosuite's
    instruction: ClassVar[str]
    _move: Move | None = None  # of the present episode

    def __init__(
        self,
        *,
        robot: str = "Panda",
        control_hz: float = 20,
        horizon: int = 100,
        cameras: Sequence[str] = (),
        camera_size: int = 96,
        variant: str = BASE,
    ) -> None:
        """
        Args:
            robot: one of `ROBOTS`.
            control_hz: actions a second.
            horizon: control steps of one episode.
            cameras: names of cameras to render; needs OpenGL, unless empty.
            camera_size: pixels, both sides.
            variant: "moved", of tasks that offer it: an object is moved once in an episode (`moved_object`).

        Raises:
            UserError: an unknown robot, camera or variant, a control rate that is no whole number of physics steps, a
                horizon or camera size below 1, or cameras without a working OpenGL back end.
        """
        check_variant(self.name, variant)
        self.variant = variant
        require_positive("task.horizon", horizon)
        require_positive("task.camera_size", camera_size)
        self._env = _make_environment(self.environment, robot, control_hz, horizon)
        self._random = GlobalRandomStream()  # robosuite draws its starts from numpy's global state
        self._renderer: CameraRenderer | None = None
        self.robot = robot
        self._robot = self._env.robots[0]
        known = self._env.sim.model.camera_names
        self.spec = TaskSpec(
            task=self.name,
            state=self.state_specs(),
            cameras=camera_specs(checked_cameras(cameras, known, self.name), camera_size, visual_group=VISUAL_GROUP),
            action=_action_spec(self._robot),
            control_hz=float(control_hz),
            horizon=int(horizon),
        )
        if self.spec.cameras:
            self._renderer = CameraRenderer(self.spec.cameras, visual_group=VISUAL_GROUP)

    @abstractmethod
    def state_specs(self) -> tuple[StateSpec, ...]:
        """The task's state vectors, in the order of the spec."""

    @abstractmethod
    def read_state(self) -> dict[str, np.ndarray]:
        """The present value of every vector in `state_specs`, float64 [d]."""

    @property
    def model(self) -> MjModel:
        """The compiled model of the present episode; a reset makes another one."""
        return self._env.sim.model._model

    @property
    def data(self) -> MjData:
        """The live simulation."""
        return self._env.sim.data._data

    def reset(self, start_id: int) -> Observation:
        """Go to the addressed start. The same id gives bit-equal observations, whatever came before.

        Raises:
            UserError: the id is negative or too large for a seed (2**32).
        """
        check_start(start_id)
        # Only a hard reset is addressed: a soft one keeps the cube's size, which robosuite samples, too.
        self._random.seed(start_id)
        with self._random:
            self._env.reset()
        self._begin_episode()
        self._move = planned_move(self.variant, start_id, self.spec.horizon, FARTHEST_MOVE_M, LARGEST_TURN_RAD)
        self._settle_poses()
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        """Execute one action, float32 [A]; values outside the spec's bounds are clipped.

        Raises:
            UserError: the action has another shape, or is not finite; no reset yet; the horizon is passed.
        """
        command = self._command(action)
        if self._move is not None and self._steps == self._move.step and (joint_name := self.movable_joint()):
            self._move_object(joint_name, self._move)
        with self._random:
            self._env.step(command)
        self._settle_poses()
        success = bool(self._env._check_success())
        self._advance(success)
        return self._outcome(self._observe(), float(self._env.reward(command)), success)

    def movable_joint(self) -> str | None:
        """Name of the free joint of what is moved in the variant `moved`; None for tasks without it."""
        return None

    def _move_object(self, joint_name: str, move: Move) -> None:
        """Where it then touches something, the physics push them apart."""
        joint = self.data.joint(joint_name)
        joint.qpos[:2] += move.shift
        turn = np.array([np.cos(move.turn / 2), 0.0, 0.0, np.sin(move.turn / 2)])
        turned = np.zeros(4)
        mujoco.mju_mulQuat(turned, turn, joint.qpos[3:])
        joint.qpos[3:] = turned
        joint.qvel[:] = 0
        mujoco.mj_forward(self.model, self.data)

    def make_drawing(self) -> MujocoScene:
        """The tool is the body at the grip site."""
        tool = self.model.body(self.model.site_bodyid[self.grip_site()]).name
        return MujocoScene(self.model, tool_body=tool, visual_group=VISUAL_GROUP)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._env.close()

    def grip_site(self) -> int:
        """Id of the site between the fingertips, the point that the actions move."""
        return self._robot.eef_site_id[ARM]

    def gripper_joints(self) -> list[str]:
        """Names of the gripper's joints in the model."""
        return list(self._robot.gripper_joints[ARM])

    def controller_scale(self) -> tuple[float, float]:
        """What an action of 1.0 stands for: metres, radians."""
        return _controller_scale(self._robot)

    def _settle_poses(self) -> None:
        # robosuite's last physics step leaves the poses one substep behind the joint positions.
        mujoco.mj_kinematics(self.model, self.data)

    def _observe(self) -> Observation:
        state = self.read_state()
        self._observation = Observation(
            state={spec.name: np.asarray(state[spec.name], dtype=np.float32) for spec in self.spec.state},
            images=self._renderer.render(self.model, self.data) if self._renderer is not None else {},
            instruction=self.instruction,
            time_s=self._time_s,
        )
        return self._observation


def _make_environment(environment: str, robot: str, control_hz: float, horizon: int) -> Any:
    """The environment without any renderer of its own and without observables (states are read directly)."""
    if robot not in ROBOTS:
        raise UserError(expected="a robot for task.robot", found=f"'{robot}'", remedy=nearest(robot, ROBOTS))
    robosuite = import_robosuite()
    _require_whole_substeps(control_hz, robosuite.macros.SIMULATION_TIMESTEP)
    with GlobalRandomStream():
        env = robosuite.make(
            environment,
            robots=robot,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=False,
            control_freq=control_hz,
            horizon=horizon,
            ignore_done=True,
            hard_reset=True,
            renderer="mujoco",  # the other one creates a viewer even for a world without a renderer
        )
    for observable in env.observation_names:
        env.modify_observable(observable, "enabled", False)
    free_without_collection(env)
    return env


def _action_spec(robot: Any) -> ActionSpec:
    """Six displacements in the robot's base frame and the gripper; the units are the controller's own scales."""
    metres, radians = _controller_scale(robot)
    position, rotation = ("x", "y", "z"), ("rotation_x", "rotation_y", "rotation_z")
    return ActionSpec(
        elements=(*position, *rotation, "gripper"),
        units=(f"{metres:g} m",) * 3 + (f"{radians:g} rad",) * 3 + ("1 closes, -1 opens",),
        low=(-1.0,) * 7,
        high=(1.0,) * 7,
        binary=(False,) * 6 + (True,),
        representation="delta",
        rotation="axis_angle",
        groups=(
            ActionGroup("tool_position", "position", position, scale=metres),
            ActionGroup("tool_rotation", "rotation", rotation, scale=radians),
        ),
    )


def _controller_scale(robot: Any) -> tuple[float, float]:
    scale = robot.part_controllers[ARM].output_max
    metres, radians = float(scale[0]), float(scale[3])
    if not np.array_equal(scale, [metres] * 3 + [radians] * 3):
        raise ValueError(f"the controller scales its axes differently: {scale.tolist()}")
    return metres, radians


def _require_whole_substeps(control_hz: float, timestep_s: float) -> None:
    """robosuite truncates the number of physics steps an action; the rate would silently be another one."""
    substeps = 1.0 / (control_hz * timestep_s) if control_hz > 0 else 0.0
    if substeps < 1 or int((1.0 / control_hz) / timestep_s) != substeps:
        raise UserError(
            expected=f"a task.control_hz that divides the physics rate of {1 / timestep_s:g} Hz",
            found=f"{control_hz:g}",
            remedy="use 20, the rate that robosuite's controllers are made for, or 10, 25, 50, 100",
        )
