"""One live tabletop world: where things are, what touches what, what the fingers hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.sim.opengl import mujoco
from embodied.sim.tabletop_cabinet import CABINET, drawer_body
from embodied.sim.tabletop_control import EndEffectorControl
from embodied.sim.tabletop_model import MEMORY_SIZE, TIMESTEP_S, Dynamics, TabletopWorld
from embodied.sim.tabletop_robots import FINGER_JOINTS, FINGERS, GRIP_SITE, ROBOTS

STATE = mujoco.mjtState.mjSTATE_INTEGRATION  # all that the future depends on
_SETTLE_STEPS = 60  # of physics, at a start
_MOST_GRASP_ANGLE_COS = float(np.cos(np.radians(80.0)))  # between the fingers' way and what they press: SimplerEnv's


class TabletopSimulation:
    """Of one `TabletopWorld`; lengths in m, the world's frame is the robot's.

    Poses and contacts belong to the same instant as the state: every step ends with the first half of the next
    physics step, the one that computes them.
    """

    def __init__(self, world: TabletopWorld, substeps: int) -> None:
        """
        Args:
            substeps: physics steps of one control step.
        """
        self.world = world
        self.model = world.build()
        self.data = mujoco.MjData(self.model)
        self.robot = ROBOTS[world.robot]
        self.memory = self.data.userdata[self.model.nuserdata - MEMORY_SIZE :]  # a task's, of the present episode
        self._control = EndEffectorControl(self.robot, self.model, substeps * TIMESTEP_S)
        self._control.delay_steps = world.dynamics.delay_steps
        self._substeps = substeps
        self._grip_site = self.model.site(GRIP_SITE).id
        self._fingers = np.array([self.model.joint(name).qposadr[0] for name in FINGER_JOINTS])
        self._body_of_geom = self.model.geom_bodyid
        self._touching: tuple[np.ndarray, np.ndarray] | None = None
        self._robot_bodies = np.zeros(self.model.nbody, dtype=bool)
        base = self.model.body("base").id
        self._robot_bodies[self.model.body_rootid == base] = True
        self._finger_bodies = tuple(self.model.body(name).id for name in FINGERS)
        self._bodies = {self.model.body(body).name: body for body in range(self.model.nbody)}
        self._free = {item.name: self.model.joint(item.name).qposadr[0] for item in world.items}

    def set_dynamics(self, dynamics: Dynamics) -> None:
        """Change physics in place, from the next step on."""
        self.world.apply(dynamics, self.model)
        self._control.delay_steps = dynamics.delay_steps

    def reset(self) -> None:
        """Everything at its default place, the arm at home; items and cabinet are to be put where they belong."""
        mujoco.mj_resetData(self.model, self.data)
        self._control.reset(self.data)

    def settle(self) -> None:
        """Let things come to rest, and begin to count time."""
        mujoco.mj_step(self.model, self.data, nstep=_SETTLE_STEPS)
        self.data.time = 0.0
        self._settle_poses()

    def step(self, action: np.ndarray) -> None:
        """One control step with an action within its bounds, float64 [7]."""
        self._control.command(self.data, action)
        mujoco.mj_step2(self.model, self.data)
        if self._substeps > 1:
            mujoco.mj_step(self.model, self.data, nstep=self._substeps - 1)
        self._settle_poses()

    def state(self) -> np.ndarray:
        """All that the future depends on, float64 [n]."""
        state = np.empty(mujoco.mj_stateSize(self.model, STATE))
        mujoco.mj_getState(self.model, self.data, state, STATE)
        return state

    def restore(self, state: np.ndarray) -> None:
        """Go to a state that `state` gave: from there on everything happens again bit for bit."""
        mujoco.mj_setState(self.model, self.data, state, STATE)
        self._settle_poses()

    def place(self, item: str, position: Sequence[float], rotation: Rotation | None = None) -> None:
        """Put an item somewhere, at rest; upright without a rotation."""
        where = self._free[item]
        self.data.qpos[where : where + 3] = position
        quaternion = np.array([0.0, 0.0, 0.0, 1.0]) if rotation is None else rotation.as_quat()
        self.data.qpos[where + 3 : where + 7] = np.roll(quaternion, 1)

    def place_cabinet(self, x: float, y: float) -> None:
        """Put the cabinet's front below (x, y), m."""
        self.data.mocap_pos[0] = (x, y, 0.0)

    def set_drawer(self, height: str, opening: float) -> None:
        """Open a drawer so far, m."""
        self.data.joint(drawer_body(height)).qpos[0] = opening

    def eef_position(self) -> np.ndarray:
        """Of the point between the fingertips, float64 [3]."""
        return self.data.site_xpos[self._grip_site].copy()

    def eef_quaternion(self) -> np.ndarray:
        """Of the grip site, w x y z: its x is the closing axis, its z points out of the gripper."""
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, self.data.site_xmat[self._grip_site])
        return quaternion

    def commanded_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the tool is on its way to: position and quaternion (w x y z), float64."""
        return self._control.commanded_pose(self.data)

    def finger_positions(self) -> np.ndarray:
        """Joint positions of the fingers, float64 [2]."""
        return self.data.qpos[self._fingers]

    def opening(self) -> float:
        """Between the fingers, m."""
        one, other = self.data.qpos[self._fingers]
        return float(one - other)

    def position(self, body: str) -> np.ndarray:
        """Of a body's frame, float64 [3]."""
        return self.data.xpos[self._bodies[body]].copy()

    def quaternion(self, body: str) -> np.ndarray:
        """Of a body, w x y z, float64."""
        return self.data.xquat[self._bodies[body]].copy()

    def rotation(self, body: str) -> Rotation:
        """Of a body in the world's frame."""
        return Rotation.from_matrix(self.data.xmat[self._bodies[body]].reshape(3, 3))

    def half_extents(self, body: str, half: Sequence[float]) -> np.ndarray:
        """Half the axis-parallel bounding box of a body whose own box has these half extents, float64 [3]."""
        return np.abs(self.data.xmat[self._bodies[body]].reshape(3, 3)) @ np.asarray(half)

    def drawer_opening(self, height: str) -> float:
        """How far a drawer is open, m."""
        return float(self.data.joint(drawer_body(height)).qpos[0])

    def cabinet_position(self) -> np.ndarray:
        """Of the cabinet's frame, float64 [3]."""
        return self.position(CABINET)

    def touching(self, item: str) -> set[int]:
        """Ids of the bodies that touch an item."""
        body = self._bodies[item]
        pairs, _ = self._contacts()
        touching = pairs[(pairs == body).any(axis=1)]
        return {int(other) for other in touching.ravel() if other != body}

    def touches_other_than(self, item: str, *allowed: str) -> bool:
        """Whether an item touches anything besides the robot and the bodies allowed."""
        known = {self._bodies[name] for name in allowed}
        return any(not self._robot_bodies[other] and other not in known for other in self.touching(item))

    def touches(self, item: str, body: str) -> bool:
        """Whether two bodies touch."""
        return self._bodies[body] in self.touching(item)

    def touched(self, body: str) -> bool:
        """Whether the robot touches a body."""
        return any(self._robot_bodies[other] for other in self.touching(body))

    def grasped(self, item: str) -> bool:
        """Whether both fingers press an item, within 80 degrees of the way that they close (SimplerEnv's rule)."""
        body = self._bodies[item]
        pairs, normals = self._contacts()
        if len(pairs) < 2:
            return False
        closing = self.data.site_xmat[self._grip_site].reshape(3, 3)[:, 0]
        pressed = np.abs(normals @ closing) >= _MOST_GRASP_ANGLE_COS
        of_item = (pairs == body).any(axis=1) & pressed
        return all(bool(np.any(of_item & (pairs == finger).any(axis=1))) for finger in self._finger_bodies)

    def _contacts(self) -> tuple[np.ndarray, np.ndarray]:
        """Bodies that touch, int [n 2], and the contacts' normals, float64 [n 3]; read once a step."""
        if self._touching is None:
            contact = self.data.contact
            closed = contact.dist < 0
            self._touching = self._body_of_geom[contact.geom[closed]], contact.frame[closed, :3]
        return self._touching

    def _settle_poses(self) -> None:
        """The first half of the next physics step: poses and contacts of the present state."""
        mujoco.mj_step1(self.model, self.data)
        self._touching = None
