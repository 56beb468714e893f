"""What every simulated task on MuJoCo shows of its world: physics states, geometry, poses."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from embodied.sim.mujoco_scene import MujocoScene
from embodied.sim.opengl import MjData, MjModel
from embodied.sim.simulated_task import SimulatedTask
from embodied.types import Scene


class MujocoTask(SimulatedTask, ABC):
    """A simulated task whose world is one MuJoCo model; a family says which, and what of it is drawn."""

    _mujoco_scene: MujocoScene | None = None  # of the present episode; None until it is asked for

    @property
    @abstractmethod
    def model(self) -> MjModel:
        """The compiled model of the present episode."""

    @property
    @abstractmethod
    def data(self) -> MjData:
        """The live simulation."""

    @abstractmethod
    def make_drawing(self) -> MujocoScene:
        """The drawable side of the present model."""

    def physics_state(self) -> np.ndarray:
        """Positions, velocities and mocap poses, float64 [n]; the episode's start id gives the model they go with."""
        return self._drawing().physics_state(self.data)

    def scene(self) -> Scene:
        """The visual geometry of the present episode."""
        return self._drawing().scene

    def body_poses(self, physics_states: np.ndarray) -> np.ndarray:
        """Poses of the scene's bodies for physics states [T n]: float32 [T bodies 7], x y z (m) then w x y z."""
        return self._drawing().body_poses(physics_states)

    def _begin_episode(self) -> None:
        super()._begin_episode()
        self._mujoco_scene = None

    def _drawing(self) -> MujocoScene:
        if self._mujoco_scene is None:
            self._mujoco_scene = self.make_drawing()
        return self._mujoco_scene
