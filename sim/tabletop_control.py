"""From end effector displacements to joint targets, once a control step.

Whatever lasts is in the simulation's own state: the newest targets and those of the steps before, which a control
delay hands out late, are kept in `userdata`, and those in force are `ctrl`.
"""

from __future__ import annotations

import numpy as np

from embodied.sim.differential_ik import DifferentialIk
from embodied.sim.opengl import MjData, MjModel
from embodied.sim.tabletop_model import MOST_DELAY_STEPS
from embodied.sim.tabletop_robots import CLOSED_BEYOND_M, FINGER_JOINTS, FINGER_TRAVEL_M, GRIP_SITE, Robot, robot_only

# What an action of 1.0 stands for: about as fast as the joints can follow all over the workspace.
POSITION_SCALE_M, ROTATION_SCALE_RAD = 0.03, 0.12
_MOST_LEAD_STEPS = 4.0  # at full joint speed: so far targets may run ahead of joints that something holds up
_OPEN = np.array([FINGER_TRAVEL_M, -FINGER_TRAVEL_M])
_CLOSED = np.array([-CLOSED_BEYOND_M, CLOSED_BEYOND_M])


class EndEffectorControl:
    """Targets of one robot's joint servos; reads and writes the `MjData` that it is given, and keeps nothing itself.

    A displacement starts from where the last targets put the tool, not from where the tool is, so that still commands
    hold it against its load, and the errors of the servos do not add up.
    """

    def __init__(self, robot: Robot, model: MjModel, dt_s: float) -> None:
        """
        Args:
            model: of the whole world.
            dt_s: of a control step.
        """
        self._ik = DifferentialIk(robot_only(robot), GRIP_SITE, robot.joints, robot.home)
        self._places = np.array([model.joint(name).qposadr[0] for name in robot.joints])
        self._finger_places = np.array([model.joint(name).qposadr[0] for name in FINGER_JOINTS])
        self._home = np.array(robot.home)
        self._most_change = np.array(robot.speed) * dt_s  # rad a step
        self._joints = len(robot.joints)
        self._slots = MOST_DELAY_STEPS + 1
        self.delay_steps = 0

    def reset(self, data: MjData) -> None:
        """Put the arm in its home posture, the gripper open, and the targets with it."""
        data.qpos[self._places], data.qpos[self._finger_places] = self._home, _OPEN
        self._targets(data)[:] = np.concatenate([self._home, _OPEN])
        data.ctrl[:] = self._targets(data)[0]

    def command(self, data: MjData, action: np.ndarray) -> None:
        """Take in one action, float64 [7] within its bounds: displacement, turn, gripper."""
        targets = self._targets(data)
        q, present = targets[0, : self._joints], data.qpos[self._places]
        wanted = self._ik.moved(q, POSITION_SCALE_M * action[:3], ROTATION_SCALE_RAD * action[3:6])
        change = wanted - q
        change *= min(1.0, 1.0 / max(1e-9, float(np.max(np.abs(change) / self._most_change))))
        most_lead = (_MOST_LEAD_STEPS + self.delay_steps) * self._most_change
        targets[1:] = targets[:-1].copy()
        targets[0, : self._joints] = np.clip(q + change, present - most_lead, present + most_lead)
        targets[0, self._joints :] = _CLOSED if action[6] > 0 else _OPEN
        data.ctrl[:] = targets[self.delay_steps]

    def commanded_pose(self, data: MjData) -> tuple[np.ndarray, np.ndarray]:
        """Where the newest targets put the tool: position (m) and quaternion (w x y z), float64."""
        return self._ik.pose(self._targets(data)[0, : self._joints])

    def _targets(self, data: MjData) -> np.ndarray:
        """Joint and finger targets of the newest step and those before it: a view, float64 [slots joints]."""
        width = self._joints + len(FINGER_JOINTS)
        return data.userdata[: self._slots * width].reshape(self._slots, width)
