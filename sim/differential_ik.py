"""Joint positions that move a robot's tool by a displacement and a turn: damped least squares, twice a call."""

from __future__ import annotations

import numpy as np

from embodied.sim.opengl import MjModel, mujoco

ITERATIONS = 2  # the second one takes away what the first one's linearisation leaves: millimetres at full speed
DAMPING = 1e-3  # of the least squares, m or rad a rad: how near a singularity steps are cut short
POSTURE_GAIN = 0.05  # share of the way to the rest posture that a redundant arm goes a call, where the tool allows it
MOST_POSTURE_RAD = 0.01  # a call


class DifferentialIk:
    """Of one arm on a model of its own, so that the simulation is only read; without memory from call to call.

    Letters: q joint positions [joints], J the site's Jacobian [6 joints], e the pose error [6] (m, rad).
    """

    def __init__(self, model: MjModel, site: str, joints: tuple[str, ...], rest: tuple[float, ...]) -> None:
        """
        Args:
            model: the robot alone.
            site: the tool's.
            joints: hinges that move it, from the base on.
            rest: the posture that a redundant arm tends to, rad.
        """
        self._model, self._data = model, mujoco.MjData(model)
        self._site = model.site(site).id
        self._places = np.array([model.joint(name).qposadr[0] for name in joints])
        self._columns = np.array([model.joint(name).dofadr[0] for name in joints])
        limits = np.array([model.joint(name).range for name in joints])
        self._low, self._high = limits[:, 0].copy(), limits[:, 1].copy()
        self._rest = np.array(rest)
        self._jacobian, self._error = np.empty((6, model.nv)), np.empty(6)
        self._damping = DAMPING**2 * np.eye(6)
        # Views and room for quaternions, so that a call allocates little.
        self._position = self._data.site_xpos[self._site]
        self._matrix = self._data.site_xmat[self._site]
        self._now, self._turn, self._goal, self._difference = (np.empty(4) for _ in range(4))

    def pose(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tool's position (m) and quaternion (w x y z) in the robot's frame at joint positions `q`, float64."""
        self._place(q)
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, self._matrix)
        return self._position.copy(), quaternion

    def moved(self, q: np.ndarray, displacement: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """Joint positions within their limits, near `q`, that displace and turn the tool as far as it can go.

        Args:
            q: joint positions to start from, float64 [joints], rad.
            displacement: in the robot's frame, float64 [3], m.
            turn: rotation vector in the robot's frame, float64 [3], rad.
        """
        rest = np.clip(POSTURE_GAIN * (self._rest - q), -MOST_POSTURE_RAD, MOST_POSTURE_RAD)
        self._place(q)
        position = self._position + displacement
        self._aim(turn)
        for iteration in range(ITERATIONS):
            if iteration:
                self._place(q)
            np.subtract(position, self._position, out=self._error[:3])
            self._rotation_error()
            J, e = self._read_jacobian(), self._error
            wanted = e - J @ rest if iteration == 0 else e
            step = J.T @ np.linalg.solve(J @ J.T + self._damping, wanted)
            q = q + step + rest if iteration == 0 else q + step
            q = np.minimum(np.maximum(q, self._low), self._high)
        return q

    def _place(self, q: np.ndarray) -> None:
        self._data.qpos[self._places] = q
        mujoco.mj_kinematics(self._model, self._data)

    def _aim(self, turn: np.ndarray) -> None:
        """Remember the present rotation, turned by a rotation vector, as the goal."""
        angle = float(np.sqrt(turn @ turn))
        axis = turn / angle if angle > 0 else np.array([1.0, 0.0, 0.0])
        mujoco.mju_axisAngle2Quat(self._turn, axis, angle)
        mujoco.mju_mat2Quat(self._now, self._matrix)
        mujoco.mju_mulQuat(self._goal, self._turn, self._now)

    def _rotation_error(self) -> None:
        mujoco.mju_mat2Quat(self._now, self._matrix)
        mujoco.mju_negQuat(self._now, self._now)
        mujoco.mju_mulQuat(self._difference, self._goal, self._now)
        mujoco.mju_quat2Vel(self._error[3:], self._difference, 1.0)

    def _read_jacobian(self) -> np.ndarray:
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_jacSite(self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._site)
        return self._jacobian[:, self._columns]
