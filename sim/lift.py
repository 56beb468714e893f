"""Lift a cube from the table: robosuite's `Lift`, and a scripted expert for it."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.errors import UserError
from embodied.sim.opengl import mujoco
from embodied.sim.robosuite_world import RobosuiteTask
from embodied.types import StateSpec

_POSITION = ("x", "y", "z")
_QUATERNION = ("x", "y", "z", "w")
# The grip site of a gripper that points straight down at the start: its x, the closing axis, along the world's y.
_DOWN = Rotation.from_matrix([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])


class LiftTask(RobosuiteTask):
    """Raise the cube 4 cm above the table's top. Positions are in the world's frame; the top is at z = 0.8 m."""

    name: ClassVar[str] = "robosuite/lift"
    environment: ClassVar[str] = "Lift"
    instruction: ClassVar[str] = "lift the red cube"

    def state_specs(self) -> tuple[StateSpec, ...]:
        joints = self.gripper_joints()
        hinge = mujoco.mjtJoint.mjJNT_HINGE
        unit = "rad" if self.model.joint(joints[0]).type[0] == hinge else "m"
        return (
            StateSpec("eef_position", _POSITION, "m"),
            StateSpec("eef_quaternion", _QUATERNION, "quaternion xyzw"),
            StateSpec("gripper_qpos", tuple(name.removeprefix("gripper0_right_") for name in joints), unit),
            StateSpec("cube_position", _POSITION, "m"),
            StateSpec("cube_quaternion", _QUATERNION, "quaternion xyzw"),
            StateSpec("gripper_to_cube", _POSITION, "m"),
        )

    def read_state(self) -> dict[str, np.ndarray]:
        eef_position, cube_position = self.eef_position(), self.cube_position()
        eef_quaternion = self.eef_rotation().as_quat()
        # q and -q are one rotation: of the two, the one on the downward gripper's side. The cube's own is MuJoCo's,
        # which never jumps within an episode, although its yaw may go all the way round.
        same_side = float(eef_quaternion @ _DOWN.as_quat()) >= 0.0
        return {
            "eef_position": eef_position,
            "eef_quaternion": eef_quaternion if same_side else -eef_quaternion,
            "gripper_qpos": self.gripper_positions(),
            "cube_position": cube_position,
            "cube_quaternion": np.roll(self._cube().xquat, -1),
            "gripper_to_cube": cube_position - eef_position,
        }

    def eef_position(self) -> np.ndarray:
        """Of the point between the fingertips, in the world's frame, float64 [3], m."""
        return np.array(self.data.site_xpos[self.grip_site()])

    def eef_rotation(self) -> Rotation:
        """Of the grip site in the world's frame: its z points out of the gripper."""
        return Rotation.from_matrix(self.data.site_xmat[self.grip_site()].reshape(3, 3))

    def cube_position(self) -> np.ndarray:
        """Of the cube's centre, in the world's frame, float64 [3], m."""
        return np.array(self._cube().xpos)

    def cube_rotation(self) -> Rotation:
        """Of the cube in the world's frame."""
        return Rotation.from_quat(np.roll(self._cube().xquat, -1))

    def cube_half_size(self) -> float:
        """Half the cube's edge, m; it differs from start to start."""
        return float(self.model.geom(self._env.cube.contact_geoms[0]).size[0])

    def table_height(self) -> float:
        """Of the table's top, in the world's frame, m."""
        return float(self._env.table_offset[2])

    def gripper_positions(self) -> np.ndarray:
        """Joint positions of the fingers, float64 [joints]."""
        return np.array([self.data.joint(name).qpos[0] for name in self.gripper_joints()])

    def _cube(self) -> Any:
        return self.data.body(self._env.cube.root_body)


class LiftExpert:
    """Lifts the cube from any state: a function of the simulator's state alone, without memory or time.

    The cube is either between the fingers, and then they close and raise it, or it is not, and then the gripper opens
    and comes down a funnel above it: the nearer to the cube's vertical, the lower it may be. On the way the closing
    axis turns to the nearest of the cube's sides. Made for the Panda's gripper, whose fingers slide.
    """

    _POSITION_GAIN = 1.2  # commanded displacement over the remaining one
    _ROTATION_GAIN = 1.0  # commanded turn over the remaining one
    _FUNNEL_RADIUS_M = 0.013  # of the funnel's spout, in which the gripper may come all the way down
    _FUNNEL_SLOPE = 2.5  # height over distance from the cube's vertical
    _HOVER_M = 0.08  # above the cube's centre: the funnel's upper end
    _OPEN_M = 0.072  # between the fingers, before they come down around the cube
    _FIT_M = np.array([0.017, 0.016, 0.014])  # of the cube's centre between the fingers: to close, across, out
    _LOOSE_FIT_M = np.array([0.03, 0.022, 0.022])  # the same, to go on closing
    _ALIGNED_RAD = 0.35  # left to turn, before the fingers may close
    _LIFT_M = 0.1  # above the table's top: where the cube's centre is held
    _SLACK_M = 0.004  # an opening no wider than the cube and this is a grip

    def __init__(self, task: LiftTask) -> None:
        """
        Args:
            task: read, never changed.

        Raises:
            UserError: the task's robot is not the Panda.
        """
        if task.robot != "Panda":
            raise UserError(
                expected="the Panda, whose gripper this expert knows",
                found=f"task.robot={task.robot}",
                remedy="use task.robot=Panda, or demonstrations from elsewhere",
            )
        self._task = task
        self._step_m, self._step_rad = task.controller_scale()

    def infer_memory(self) -> None:
        """None: the state says it all."""
        return None

    def act(self, memory: None) -> tuple[np.ndarray, None]:
        """The clean action, float32 [7] within the bounds, for the task's present state."""
        rotation = self._task.eef_rotation()
        offset = self._task.cube_position() - self._task.eef_position()
        turn = (self._grasp_rotation(rotation) * rotation.inv()).as_rotvec()
        opening = float(np.ptp(self._task.gripper_positions()))
        close = self._is_around_cube(rotation.inv().apply(offset), turn, opening)
        displacement = self._raise(offset, opening) if close else self._approach(offset, opening)
        action = np.concatenate(
            [
                self._POSITION_GAIN * displacement / self._step_m,
                self._ROTATION_GAIN * turn / self._step_rad,
                [1.0 if close else -1.0],
            ]
        )
        return np.clip(action, -1.0, 1.0).astype(np.float32), None

    def _grasp_rotation(self, rotation: Rotation) -> Rotation:
        """Straight down, with the closing axis along the cube's side that costs the least turning.

        A slight preference for the start's yaw keeps the wrist away from its limits over many recoveries.
        """
        yaw = _yaw(rotation * _DOWN.inv())
        sides = _level_axis_yaw(self._task.cube_rotation()) + np.pi / 2 * np.arange(4)
        cost = np.abs(_wrapped(sides - yaw)) + 0.3 * np.abs(_wrapped(sides))
        return Rotation.from_euler("z", sides[np.argmin(cost)]) * _DOWN

    def _is_around_cube(self, offset: np.ndarray, turn: np.ndarray, opening: float) -> bool:
        """Whether to close: `offset` is the cube's centre in the grip site's frame (m), `turn` what is left (rad).

        Fingers that have begun to close keep on with a looser fit, so that noise does not make them waver.
        """
        begun = opening < self._OPEN_M
        fit = self._LOOSE_FIT_M if begun else self._FIT_M
        return bool(np.all(np.abs(offset) < fit) and (begun or np.linalg.norm(turn) < self._ALIGNED_RAD))

    def _approach(self, offset: np.ndarray, opening: float) -> np.ndarray:
        """Displacement towards the cube, down the funnel, m; half closed fingers wait above it."""
        distance = float(np.hypot(offset[0], offset[1]))
        height = self._FUNNEL_SLOPE * (distance - self._FUNNEL_RADIUS_M)
        still_to_open = self._HOVER_M * min(1.0, (self._OPEN_M - opening) / 0.02)
        return offset + np.array([0.0, 0.0, np.clip(max(height, still_to_open), 0.0, self._HOVER_M)])

    def _raise(self, offset: np.ndarray, opening: float) -> np.ndarray:
        """Displacement of the closing or closed gripper, m: centred on the cube, upwards once it holds."""
        grip = np.clip((2 * self._task.cube_half_size() + self._SLACK_M - opening) / 0.002, 0.0, 1.0)
        rise = self._task.table_height() + self._LIFT_M - self._task.cube_position()[2]
        return (1.0 - grip) * offset + grip * np.array([0.0, 0.0, rise])


def _wrapped(angle: np.ndarray) -> np.ndarray:
    """The same angle in -pi .. pi, rad."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _yaw(rotation: Rotation) -> float:
    """How far a rotation turns the world's x axis about the vertical, rad."""
    x, y, _ = rotation.as_matrix()[:, 0]
    return float(np.arctan2(y, x))


def _level_axis_yaw(rotation: Rotation) -> float:
    """The yaw of the body's most level axis, rad: a side of a cube, whichever face it lies on."""
    axes = rotation.as_matrix()
    x, y, _ = axes[:, np.argmin(np.abs(axes[2]))]
    return float(np.arctan2(y, x))
