"""Put a square nut on a square peg: robosuite's `NutAssemblySquare`, and a scripted expert for it."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.sim.arm_task import POSITION, QUATERNION, ArmTask
from embodied.sim.grasping import (
    Funnel,
    Motion,
    PandaExpert,
    TopGrasp,
    downward,
    grip_strength,
    gripper_yaw,
    over_obstacles,
    retreat,
    turn_to,
    yaw_of,
)
from embodied.types import StateSpec


class SquareTask(ArmTask):
    """Put the nut, by its handle, around the square peg. The table's top is at z = 0.82 m, the peg's at 0.95 m."""

    name: ClassVar[str] = "robosuite/square"
    environment: ClassVar[str] = "NutAssemblySquare"
    instruction: ClassVar[str] = "put the square nut around the square peg"

    def state_specs(self) -> tuple[StateSpec, ...]:
        return (
            *self.arm_specs(),
            StateSpec("nut_position", POSITION, "m"),
            StateSpec("nut_quaternion", QUATERNION, "quaternion xyzw"),
            StateSpec("nut_to_handle", POSITION, "m"),
            StateSpec("gripper_to_handle", POSITION, "m"),
            StateSpec("nut_to_peg", POSITION, "m"),
        )

    def read_state(self) -> dict[str, np.ndarray]:
        nut, handle = self.nut_position(), self.handle_position()
        return {
            **self.read_arm(),
            "nut_position": nut,
            "nut_quaternion": self.body_quaternion(self._nut().root_body),
            "nut_to_handle": handle - nut,
            "gripper_to_handle": handle - self.eef_position(),
            "nut_to_peg": self.peg_position() - nut,
        }

    def nut_position(self) -> np.ndarray:
        """Of the middle of the nut's hole, in the world's frame, float64 [3], m."""
        return self.body_position(self._nut().root_body)

    def handle_position(self) -> np.ndarray:
        """Of the middle of the nut's handle, in the world's frame, float64 [3], m."""
        return np.array(self.data.site(self._nut().important_sites["handle"]).xpos)

    def peg_position(self) -> np.ndarray:
        """Of the peg's middle, in the world's frame, float64 [3], m."""
        return np.array(self.data.xpos[self._env.peg1_body_id])

    def movable_joint(self) -> str:
        return self._nut().joints[0]

    def _nut(self) -> Any:
        return self._env.nuts[self._env.nut_id]


class SquareExpert(PandaExpert):
    """Puts the nut on the peg from any state.

    The nut is around the peg: the fingers open, and the gripper goes up. The handle is between the fingers: they close,
    carry the nut above the peg while they turn the handle towards the robot (pointing elsewhere, it would be beyond the
    arm's reach there), and come down. Otherwise the gripper opens and comes down a funnel above the handle.

    The gripper takes the handle one way round or the other, so that neither the grasp nor the turn that follows runs
    into the wrist's limits: yaws stay between a quarter turn one way and half a turn the other.
    """

    _GRASP = TopGrasp(
        funnel=Funnel(radius_m=0.01, slope=2.5, top_m=0.08),
        fit_m=(0.018, 0.012, 0.01),
        loose_fit_m=(0.035, 0.025, 0.02),
        aligned_rad=0.2,
    )
    _GRIP_ABOVE_M = 0.004  # the handle's middle, so that the fingertips stay off the table
    _GRIP_BEYOND_M = 0.007  # the handle's middle, along it: half of the handle's length lies within the nut's side
    _HANDLE_WIDTH_M = 0.032
    _LEAST_YAW = -2.4  # rad; yaws are counted from here, half-way between the gripper's two limits
    _PLACE_M = 0.01  # above the peg's middle: where the nut is taken
    _FUNNEL = Funnel(radius_m=0.004, slope=20.0, top_m=0.125)  # of the nut above that place
    _SLOPE_M = 0.4  # above that place, for each radian left to turn
    _CLEARANCE_M = 0.04  # so far below the funnel the nut does not move sideways
    # The peg is near the end of the arm's reach, beyond which the controller stalls: the nut brakes before the peg, and
    # one that is too far comes back first, and strongly.
    _BRAKING_M, _BRAKING = 0.012, 0.3
    _BEYOND_M, _PULL_BACK = 0.008, 5.0
    _PLACED_M = (0.02, 0.02, 0.035)  # of the nut from the peg's middle, around it: let go
    _RETREAT_M = 0.1  # of the grip site above the handle, once the nut is placed

    def __init__(self, task: SquareTask) -> None:
        super().__init__(task)
        self._task = task

    def motion(self) -> Motion:
        rotation, opening = self._task.eef_rotation(), self.opening()
        offset = self._grip_point() - self._task.eef_position()
        to_peg = self._task.peg_position() - self._task.nut_position()
        if np.all(np.abs(to_peg[:2]) < self._PLACED_M[:2]) and to_peg[2] > -self._PLACED_M[2]:
            return Motion(retreat(offset, opening, self._HANDLE_WIDTH_M, self._RETREAT_M), np.zeros(3), close=False)
        yaw = self._counted(gripper_yaw(rotation))
        to_grasp = self._grasp_yaw() - yaw
        around = self._GRASP.is_around(rotation.inv().apply(offset), self._across(to_grasp), opening)
        if around:
            grip = grip_strength(opening, self._HANDLE_WIDTH_M)
            left = grip * (self._final_yaw(yaw) - yaw)
            displacement = (1.0 - grip) * offset + grip * self._carry(to_peg, left)
            return Motion(displacement, self._turn(rotation, yaw, left), close=True)
        return Motion(self._GRASP.approach(offset, opening), self._turn(rotation, yaw, to_grasp), close=False)

    def _grip_point(self) -> np.ndarray:
        """Where the fingers take the handle, in the world's frame, m: the middle of what stands out of the nut."""
        handle = self._task.handle_position()
        along = handle - self._task.nut_position()
        return handle + self._GRIP_BEYOND_M * along / np.linalg.norm(along) + np.array([0.0, 0.0, self._GRIP_ABOVE_M])

    def _handle_yaw(self) -> float:
        """The direction in which the handle points from the nut, rad; half a turn is towards the robot."""
        return yaw_of(self._task.handle_position() - self._task.nut_position())

    def _grasp_yaw(self) -> float:
        """Of a gripper about to take the handle, rad: against the handle if that points back, else along it."""
        handle = self._handle_yaw()
        return self._counted(handle if abs(handle) < np.pi / 2 else handle - np.pi)

    def _final_yaw(self, yaw: float) -> float:
        """Of the gripper that holds the handle, once that points towards the robot, rad."""
        return float(np.pi if np.cos(yaw - self._handle_yaw()) > 0.0 else 0.0)

    def _carry(self, to_peg: np.ndarray, left: float) -> np.ndarray:
        """Displacement of the gripper that brings the nut around the peg while it turns by `left` (rad), m."""
        lever = self._task.eef_position() - self._task.nut_position()
        swing = Rotation.from_euler("z", left).apply(lever) - lever  # of the grip site about the nut
        distance = float(np.hypot(to_peg[0], to_peg[1]))
        height = max(self._FUNNEL.height(distance), min(self._SLOPE_M * (abs(left) - 0.1), self._FUNNEL.top_m))
        place = np.array([to_peg[0] + swing[0], to_peg[1] + swing[1], to_peg[2] + self._PLACE_M])
        displacement = over_obstacles(place, height, self._CLEARANCE_M)
        displacement[0] = min(displacement[0], self._BRAKING_M + self._BRAKING * displacement[0])
        beyond = float(np.clip(-to_peg[0] / self._BEYOND_M - 1.0, 0.0, 1.0))
        displacement[0] *= 1.0 + self._PULL_BACK * beyond
        displacement[2] *= 1.0 - beyond
        return displacement

    def _counted(self, yaw: float) -> float:
        """The same yaw, from `_LEAST_YAW` on, rad."""
        return float((yaw - self._LEAST_YAW) % (2 * np.pi) + self._LEAST_YAW)

    def _turn(self, rotation: Rotation, yaw: float, left: float) -> np.ndarray:
        """The turn to a downward gripper `left` (rad) further on, the way round that `left` says, rotation vector."""
        return turn_to(downward(yaw + np.clip(left, -1.0, 1.0)), rotation)

    @staticmethod
    def _across(left: float) -> np.ndarray:
        """What is left to turn for fingers that can take the handle either way round, rotation vector, rad."""
        return np.array([0.0, 0.0, (left + np.pi / 2) % np.pi - np.pi / 2])
