"""Carry a can from one bin to another: robosuite's `PickPlaceCan`, and a scripted expert for it."""

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
    cheapest_yaw,
    downward,
    grip_strength,
    gripper_yaw,
    retreat,
    turn_to,
    yaw_of,
)
from embodied.types import StateSpec


class CanTask(ArmTask):
    """Put the can into its quarter of the other bin, and take the gripper 4 cm away. The bins' floors are at 0.82 m."""

    name: ClassVar[str] = "robosuite/can"
    environment: ClassVar[str] = "PickPlaceCan"
    instruction: ClassVar[str] = "put the can into its compartment of the other bin"

    def state_specs(self) -> tuple[StateSpec, ...]:
        return (
            *self.arm_specs(),
            StateSpec("can_position", POSITION, "m"),
            StateSpec("can_quaternion", QUATERNION, "quaternion xyzw"),
            StateSpec("gripper_to_can", POSITION, "m"),
            StateSpec("can_to_compartment", POSITION, "m"),
        )

    def read_state(self) -> dict[str, np.ndarray]:
        return {
            **self.read_arm(),
            "can_position": self.can_position(),
            "can_quaternion": self.body_quaternion(self._can().root_body),
            "gripper_to_can": self.can_position() - self.eef_position(),
            "can_to_compartment": self.compartment_position() - self.can_position(),
        }

    def can_position(self) -> np.ndarray:
        """Of the can's centre, in the world's frame, float64 [3], m."""
        return self.body_position(self._can().root_body)

    def can_rotation(self) -> Rotation:
        """Of the can in the world's frame: its z is the can's axis."""
        return self.body_rotation(self._can().root_body)

    def can_width(self) -> float:
        """The can's diameter, m: its smallest extent, which MuJoCo keeps with the mesh."""
        geom = self.model.geom(self._can().contact_geoms[0]).id
        return float(2 * np.min(self.model.geom_aabb[geom, 3:]))

    def compartment_position(self) -> np.ndarray:
        """The middle of the compartment's floor, in the world's frame, float64 [3], m."""
        return np.array(self._env.target_bin_placements[self._env.object_id])

    def _can(self) -> Any:
        return self._env.objects[self._env.object_id]


class CanExpert(PandaExpert):
    """Brings the can over from any state.

    The can is in its compartment: the fingers open, and the gripper goes up. It is between the fingers: they close and
    carry it over the walls, down a funnel. Otherwise the gripper opens and comes down a funnel above it.
    """

    _GRASP = TopGrasp(
        funnel=Funnel(radius_m=0.01, slope=2.5, top_m=0.09),
        fit_m=(0.013, 0.014, 0.014),
        loose_fit_m=(0.025, 0.022, 0.022),
        clearance_m=0.04,
    )
    _GRIP_ABOVE_CENTRE_M = 0.02  # of an upright can, so that the hand stays above the bin's walls
    # The place, from the middle of the compartment: towards the robot, whose reach ends beyond, and off the floor, m.
    _PLACE_M = np.array([-0.045, -0.065, 0.08])
    _FUNNEL = Funnel(radius_m=0.015, slope=4.0, top_m=0.10)  # of the can's centre above that place
    _CLEARANCE_M = 0.04  # so far below the funnel the can does not move sideways
    _PLACED_M = (0.07, 0.095, 0.1)  # of the can's centre from the compartment's middle, between the walls: let go
    _RETREAT_M = 0.1  # of the grip site above the can, once it is placed

    def __init__(self, task: CanTask) -> None:
        super().__init__(task)
        self._task = task
        self._width_m = task.can_width()

    def motion(self) -> Motion:
        rotation, opening = self._task.eef_rotation(), self.opening()
        offset = self._grip_point() - self._task.eef_position()
        turn = turn_to(downward(self._closing_yaw(gripper_yaw(rotation))), rotation)
        to_compartment = self._task.compartment_position() - self._task.can_position()
        if np.all(np.abs(to_compartment) < self._PLACED_M):
            return Motion(retreat(offset, opening, self._width_m, self._RETREAT_M), np.zeros(3), close=False)
        if self._GRASP.is_around(rotation.inv().apply(offset), turn, opening):
            grip = grip_strength(opening, self._width_m)
            carry = self._FUNNEL.carry(to_compartment + self._PLACE_M, self._CLEARANCE_M)
            return Motion((1.0 - grip) * offset + grip * carry, turn, close=True)
        return Motion(self._GRASP.approach(offset, opening), turn, close=False)

    def _grip_point(self) -> np.ndarray:
        """Where the fingers take the can, m: above the centre as far as it stands upright."""
        upright = abs(self._task.can_rotation().as_matrix()[2, 2])
        return self._task.can_position() + np.array([0.0, 0.0, self._GRIP_ABOVE_CENTRE_M * upright])

    def _closing_yaw(self, yaw: float) -> float:
        """Of a can that stands, the start's; across the axis of one that lies."""
        axis = self._task.can_rotation().as_matrix()[:, 2]
        if abs(axis[2]) > np.cos(np.pi / 4):
            return 0.0
        return cheapest_yaw(yaw_of(axis) + np.pi * np.arange(2), yaw)
