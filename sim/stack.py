"""Put one cube on another: robosuite's `Stack`, and a scripted expert for it."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from embodied.sim.arm_task import POSITION, QUATERNION, ArmTask
from embodied.sim.grasping import (
    Funnel,
    Motion,
    PandaExpert,
    TopGrasp,
    downward,
    grip_strength,
    gripper_yaw,
    level_axis_yaw,
    retreat,
    turn_to,
    wrapped,
    yaw_of,
)
from embodied.types import StateSpec


class StackTask(ArmTask):
    """Put the red cube A (4 cm) on the green cube B (5 cm) and let go. The table's top is at z = 0.8 m."""

    name: ClassVar[str] = "robosuite/stack"
    environment: ClassVar[str] = "Stack"
    instruction: ClassVar[str] = "put the red cube on the green cube"

    def state_specs(self) -> tuple[StateSpec, ...]:
        return (
            *self.arm_specs(),
            StateSpec("cube_a_position", POSITION, "m"),
            StateSpec("cube_a_quaternion", QUATERNION, "quaternion xyzw"),
            StateSpec("cube_b_position", POSITION, "m"),
            StateSpec("cube_b_quaternion", QUATERNION, "quaternion xyzw"),
            StateSpec("gripper_to_cube_a", POSITION, "m"),
            StateSpec("cube_a_to_cube_b", POSITION, "m"),
        )

    def read_state(self) -> dict[str, np.ndarray]:
        cube_a, cube_b = self.cube_position("A"), self.cube_position("B")
        return {
            **self.read_arm(),
            "cube_a_position": cube_a,
            "cube_a_quaternion": self.body_quaternion(self._cube("A").root_body),
            "cube_b_position": cube_b,
            "cube_b_quaternion": self.body_quaternion(self._cube("B").root_body),
            "gripper_to_cube_a": cube_a - self.eef_position(),
            "cube_a_to_cube_b": cube_b - cube_a,
        }

    def cube_position(self, cube: str) -> np.ndarray:
        """Of the centre of cube "A" or "B", in the world's frame, float64 [3], m."""
        return self.body_position(self._cube(cube).root_body)

    def cube_side_yaw(self, cube: str) -> float:
        """The direction of one of the level sides of cube "A" or "B", rad."""
        return level_axis_yaw(self.body_rotation(self._cube(cube).root_body))

    def cube_half_size(self, cube: str) -> float:
        """Half the edge of cube "A" or "B", m."""
        return float(self.model.geom(self._cube(cube).contact_geoms[0]).size[0])

    def movable_joint(self) -> str:
        return self._cube("B").joints[0]

    def _cube(self, cube: str) -> Any:
        return {"A": self._env.cubeA, "B": self._env.cubeB}[cube]


class StackExpert(PandaExpert):
    """Stacks A on B from any state.

    A lies on B: the fingers open, and the gripper goes up. A is between the fingers: they close and carry it, down a
    funnel above B. Otherwise the gripper opens and comes down a funnel above A, its closing axis along the side of A
    that keeps the fingers away from B.
    """

    _GRASP = TopGrasp(
        funnel=Funnel(radius_m=0.013, slope=2.5, top_m=0.08),
        fit_m=(0.017, 0.016, 0.014),
        loose_fit_m=(0.03, 0.022, 0.022),
    )
    _FUNNEL = Funnel(radius_m=0.008, slope=2.0, top_m=0.06)  # of A's centre above its place on B
    _CLEARANCE_M = 0.03  # so far below the funnel A does not move sideways
    _PLACED_M = (0.012, 0.006)  # of A's centre from its place on B: sideways, up
    _RETREAT_M = 0.08  # of the grip site above A, once it is stacked
    _CROWDED_M = (0.07, 0.11)  # distances of the cubes at which fingers must, and need not, keep away from B

    def __init__(self, task: StackTask) -> None:
        super().__init__(task)
        self._task = task
        self._width_m = 2 * task.cube_half_size("A")

    def motion(self) -> Motion:
        rotation, opening = self._task.eef_rotation(), self.opening()
        offset = self._task.cube_position("A") - self._task.eef_position()
        turn = turn_to(downward(self._closing_yaw(gripper_yaw(rotation))), rotation)
        to_place = self._place_on_b() - self._task.cube_position("A")
        if self._is_placed(to_place):
            return Motion(retreat(offset, opening, self._width_m, self._RETREAT_M), np.zeros(3), close=False)
        if self._GRASP.is_around(rotation.inv().apply(offset), turn, opening):
            grip = grip_strength(opening, self._width_m)
            carry = self._FUNNEL.carry(to_place, self._CLEARANCE_M)
            return Motion((1.0 - grip) * offset + grip * carry, turn, close=True)
        return Motion(self._GRASP.approach(offset, opening), turn, close=False)

    def _place_on_b(self) -> np.ndarray:
        """Where A's centre belongs, m."""
        height = self._task.cube_half_size("A") + self._task.cube_half_size("B")
        return self._task.cube_position("B") + np.array([0.0, 0.0, height])

    def _is_placed(self, to_place: np.ndarray) -> bool:
        sideways, up = self._PLACED_M
        return bool(np.hypot(to_place[0], to_place[1]) < sideways and abs(to_place[2]) < up)

    def _closing_yaw(self, yaw: float) -> float:
        """Along the side of A that costs the least: turning, and fingers between the cubes."""
        sides = self._task.cube_side_yaw("A") + np.pi / 2 * np.arange(4)
        to_b = self._task.cube_position("B") - self._task.cube_position("A")
        near, far = self._CROWDED_M
        crowded = np.clip((far - np.hypot(to_b[0], to_b[1])) / (far - near), 0.0, 1.0)
        # A gripper turned by `side` from the start closes along the world's y turned by as much.
        towards_b = np.abs(np.cos(sides + np.pi / 2 - yaw_of(to_b)))
        cost = np.abs(wrapped(sides - yaw)) + 0.3 * np.abs(wrapped(sides)) + 3.0 * crowded * towards_b
        return float(sides[np.argmin(cost)])
