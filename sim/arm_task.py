"""What every task with one robosuite arm shows of the arm, and where it looks up bodies."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.sim.opengl import mujoco
from embodied.sim.robosuite_world import RobosuiteTask
from embodied.types import StateSpec

POSITION = ("x", "y", "z")
QUATERNION = ("x", "y", "z", "w")
# The grip site of a gripper that points straight down at the start: its x, the closing axis, along the world's y.
DOWN = Rotation.from_matrix([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])


class ArmTask(RobosuiteTask):
    """A robosuite task whose observations begin with the end effector and the fingers, in the world's frame."""

    name: ClassVar[str]
    environment: ClassVar[str]
    instruction: ClassVar[str]

    def arm_specs(self) -> tuple[StateSpec, ...]:
        """The vectors of `read_arm`: position (m), rotation and fingers (m, or rad where they turn)."""
        joints = self.gripper_joints()
        hinge = mujoco.mjtJoint.mjJNT_HINGE
        unit = "rad" if self.model.joint(joints[0]).type[0] == hinge else "m"
        return (
            StateSpec("eef_position", POSITION, "m"),
            StateSpec("eef_quaternion", QUATERNION, "quaternion xyzw"),
            StateSpec("gripper_qpos", tuple(name.removeprefix("gripper0_right_") for name in joints), unit),
        )

    def read_arm(self) -> dict[str, np.ndarray]:
        """The present value of every vector in `arm_specs`, float64 [d]."""
        quaternion = self.eef_rotation().as_quat()
        # q and -q are one rotation: of the two, the one on the downward gripper's side.
        same_side = float(quaternion @ DOWN.as_quat()) >= 0.0
        return {
            "eef_position": self.eef_position(),
            "eef_quaternion": quaternion if same_side else -quaternion,
            "gripper_qpos": self.gripper_positions(),
        }

    def eef_position(self) -> np.ndarray:
        """Of the point between the fingertips, in the world's frame, float64 [3], m."""
        return np.array(self.data.site_xpos[self.grip_site()])

    def eef_rotation(self) -> Rotation:
        """Of the grip site in the world's frame: its z points out of the gripper."""
        return Rotation.from_matrix(self.data.site_xmat[self.grip_site()].reshape(3, 3))

    def gripper_positions(self) -> np.ndarray:
        """Joint positions of the fingers, float64 [joints]."""
        return np.array([self.data.joint(name).qpos[0] for name in self.gripper_joints()])

    def body_position(self, body: str) -> np.ndarray:
        """Of a body's origin, in the world's frame, float64 [3], m."""
        return np.array(self._body(body).xpos)

    def body_quaternion(self, body: str) -> np.ndarray:
        """Of a body in the world's frame, x y z w: MuJoCo's own, which never jumps within an episode."""
        return np.roll(self._body(body).xquat, -1)

    def body_rotation(self, body: str) -> Rotation:
        """Of a body in the world's frame."""
        return Rotation.from_quat(self.body_quaternion(body))

    def _body(self, body: str) -> Any:
        return self.data.body(body)
