"""Open a door with a handle: robosuite's `Door`, and a scripted expert for it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.sim.arm_task import POSITION, ArmTask
from embodied.sim.grasping import Funnel, Motion, PandaExpert, TopGrasp, turn_to
from embodied.types import StateSpec


class DoorTask(ArmTask):
    """Turn the handle, which frees the latch, and pull the door open by 0.3 rad."""

    name: ClassVar[str] = "robosuite/door"
    environment: ClassVar[str] = "Door"
    instruction: ClassVar[str] = "open the door"

    def state_specs(self) -> tuple[StateSpec, ...]:
        return (
            *self.arm_specs(),
            StateSpec("handle_position", POSITION, "m"),
            StateSpec("handle_direction", POSITION, "1, along the bar from its axis"),
            StateSpec("door_angles", ("hinge", "handle"), "rad"),
            StateSpec("gripper_to_handle", POSITION, "m"),
        )

    def read_state(self) -> dict[str, np.ndarray]:
        handle = self.handle_position()
        return {
            **self.read_arm(),
            "handle_position": handle,
            "handle_direction": self.handle_rotation().as_matrix()[:, 0],
            "door_angles": np.array([self.hinge_angle(), self.handle_angle()]),
            "gripper_to_handle": handle - self.eef_position(),
        }

    def hinge_angle(self) -> float:
        """How far the door is open, 0 .. 0.4 rad."""
        return float(self.data.qpos[self._env.hinge_qpos_addr])

    def handle_angle(self) -> float:
        """How far the handle is turned, -1.57 .. 1.57 rad; positive is down."""
        return float(self.data.qpos[self._env.handle_qpos_addr])

    def handle_position(self, turned_rad: float = 0.0, opened_rad: float = 0.0) -> np.ndarray:
        """Where the grip of the handle's bar is, or would be if it were turned and the door opened further.

        Returns:
            In the world's frame, float64 [3], m.
        """
        hinge, latch = (self.model.joint(name).id for name in self._env.door.joints)
        position = np.array(self.data.site_xpos[self._env.door_handle_site_id])
        for joint, angle in ((latch, turned_rad), (hinge, opened_rad)):
            anchor, axis = self.data.xanchor[joint], self.data.xaxis[joint]
            position = anchor + Rotation.from_rotvec(angle * axis).apply(position - anchor)
        return position

    def handle_rotation(self) -> Rotation:
        """Of the handle in the world's frame: x along the bar away from its axis, y through the door."""
        return self.body_rotation(self._env.door.latch_body)

    def door_rotation(self) -> Rotation:
        """Of the door in the world's frame: that of its handle before it is turned."""
        return self.body_rotation(self._env.door.door_body)


class DoorExpert(PandaExpert):
    """Opens the door from any state.

    The gripper takes the handle's bar from above, leaning back, so that the hand stays clear of the door. Then it goes
    where the handle would be if it were turned further, and, the more it is turned, the door opened further. The
    gripper keeps its own direction: the bar pivots between the fingers.
    """

    _LEAN_RAD = 0.45  # of the gripper from the vertical, away from the door
    _GRASP = TopGrasp(
        funnel=Funnel(radius_m=0.012, slope=2.5, top_m=0.08),
        fit_m=(0.015, 0.016, 0.014),
        loose_fit_m=(0.03, 0.04, 0.04),
        clearance_m=0.04,
    )
    _GRIP_ABOVE_M = 0.006  # the bar's middle, so that the palm stays clear of the bar
    _HELD_M = (0.052, 0.046)  # between the fingers: the bar is not held yet, it is held
    _TURNED_RAD = (1.1, 1.3)  # of the handle: the door must not, and may fully, be pulled
    _HANDLE_GOAL_RAD, _HANDLE_LEAD_RAD = 1.4, 0.4
    _HINGE_GOAL_RAD, _HINGE_LEAD_RAD = 0.37, 0.25  # the door stops at 0.4

    def __init__(self, task: DoorTask) -> None:
        super().__init__(task)
        self._task = task
        lean, upright = np.sin(self._LEAN_RAD), np.cos(self._LEAN_RAD)
        # The grip site's axes in the door's frame: closing through the door, across, out of the gripper.
        axes = np.array([[0.0, -upright, -lean], [-1.0, 0.0, 0.0], [0.0, lean, -upright]])
        self._grasp_in_door = Rotation.from_matrix(axes.T)

    def motion(self) -> Motion:
        rotation, opening = self._task.eef_rotation(), self.opening()
        grasp = self._task.door_rotation() * self._grasp_in_door
        offset, turn = self._to_handle(grasp), turn_to(grasp, rotation)
        if self._GRASP.is_around(rotation.inv().apply(offset), turn, opening):
            loose, tight = self._HELD_M
            grip = np.clip((loose - opening) / (loose - tight), 0.0, 1.0)
            return Motion(self._to_handle(grasp, *(grip * self._leads())), turn, close=True)
        return Motion(self._approach(grasp, offset, opening), turn, close=False)

    def _to_handle(self, grasp: Rotation, turned_rad: float = 0.0, opened_rad: float = 0.0) -> np.ndarray:
        """Displacement of the grip site to the handle, as it would be further turned and opened, m."""
        handle = self._task.handle_position(turned_rad, opened_rad)
        return handle - self._GRIP_ABOVE_M * grasp.as_matrix()[:, 2] - self._task.eef_position()

    def _leads(self) -> np.ndarray:
        """How much further to turn the handle and to open the door, float64 [2], rad."""
        handle, hinge = self._task.handle_angle(), self._task.hinge_angle()
        least, full = self._TURNED_RAD
        freed = np.clip((handle - least) / (full - least), 0.0, 1.0)
        turn = np.clip(self._HANDLE_GOAL_RAD - handle, 0.0, self._HANDLE_LEAD_RAD)
        return np.array([turn, freed * np.clip(self._HINGE_GOAL_RAD - hinge, 0.0, self._HINGE_LEAD_RAD)])

    def _approach(self, grasp: Rotation, offset: np.ndarray, opening: float) -> np.ndarray:
        """Displacement to the handle, down a funnel that leans like the grasp, m."""
        funnel = grasp * Rotation.from_matrix(np.diag([1.0, -1.0, -1.0]))  # its z points back, out of the funnel
        return funnel.apply(self._GRASP.approach(funnel.inv().apply(offset), opening))
