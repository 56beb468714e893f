"""Lift a cube from the table: robosuite's `Lift`, and a scripted expert for it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.sim.arm_task import POSITION, QUATERNION, ArmTask
from embodied.sim.grasping import (
    Funnel,
    Motion,
    PandaExpert,
    TopGrasp,
    cheapest_yaw,
    downward,
    grip_strength,
    gripper_yaw,
    level_axis_yaw,
    turn_to,
)
from embodied.types import StateSpec


class LiftTask(ArmTask):
    """Raise the cube 4 cm above the table's top. Positions are in the world's frame; the top is at z = 0.8 m."""

    name: ClassVar[str] = "robosuite/lift"
    environment: ClassVar[str] = "Lift"
    instruction: ClassVar[str] = "lift the red cube"

    def state_specs(self) -> tuple[StateSpec, ...]:
        return (
            *self.arm_specs(),
            StateSpec("cube_position", POSITION, "m"),
            StateSpec("cube_quaternion", QUATERNION, "quaternion xyzw"),
            StateSpec("gripper_to_cube", POSITION, "m"),
        )

    def read_state(self) -> dict[str, np.ndarray]:
        return {
            **self.read_arm(),
            "cube_position": self.cube_position(),
            "cube_quaternion": self.body_quaternion(self._env.cube.root_body),
            "gripper_to_cube": self.cube_position() - self.eef_position(),
        }

    def cube_position(self) -> np.ndarray:
        """Of the cube's centre, in the world's frame, float64 [3], m."""
        return self.body_position(self._env.cube.root_body)

    def cube_rotation(self) -> Rotation:
        """Of the cube in the world's frame."""
        return self.body_rotation(self._env.cube.root_body)

    def cube_half_size(self) -> float:
        """Half the cube's edge, m; it differs from start to start."""
        return float(self.model.geom(self._env.cube.contact_geoms[0]).size[0])

    def table_height(self) -> float:
        """Of the table's top, in the world's frame, m."""
        return float(self._env.table_offset[2])


class LiftExpert(PandaExpert):
    """Lifts the cube from any state: a function of the simulator's state alone, without memory or time.

    The cube is either between the fingers, and then they close and raise it, or it is not, and then the gripper opens
    and comes down a funnel above it: the nearer to the cube's vertical, the lower it may be. On the way the closing
    axis turns to the nearest of the cube's sides. Made for the Panda's gripper, whose fingers slide.
    """

    _GRASP = TopGrasp(
        funnel=Funnel(radius_m=0.013, slope=2.5, top_m=0.08),
        fit_m=(0.017, 0.016, 0.014),
        loose_fit_m=(0.03, 0.022, 0.022),
    )
    _LIFT_M = 0.1  # above the table's top: where the cube's centre is held

    def __init__(self, task: LiftTask) -> None:
        super().__init__(task)
        self._task = task

    def motion(self) -> Motion:
        rotation = self._task.eef_rotation()
        offset = self._task.cube_position() - self._task.eef_position()
        sides = level_axis_yaw(self._task.cube_rotation()) + np.pi / 2 * np.arange(4)
        turn = turn_to(downward(cheapest_yaw(sides, gripper_yaw(rotation))), rotation)
        opening = self.opening()
        if self._GRASP.is_around(rotation.inv().apply(offset), turn, opening):
            return Motion(self._raise(offset, opening), turn, close=True)
        return Motion(self._GRASP.approach(offset, opening), turn, close=False)

    def _raise(self, offset: np.ndarray, opening: float) -> np.ndarray:
        """Displacement of the closing or closed gripper, m: centred on the cube, upwards once it holds."""
        grip = grip_strength(opening, 2 * self._task.cube_half_size())
        rise = self._task.table_height() + self._LIFT_M - self._task.cube_position()[2]
        return (1.0 - grip) * offset + grip * np.array([0.0, 0.0, rise])
