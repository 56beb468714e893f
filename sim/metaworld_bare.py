"""Meta-World as its own users run it: the other side of a benchmark."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np

from embodied.sim.opengl import VARIABLE, choose_backend
from embodied.types import Json


class BareMetaworld:
    """The package's environment with its goal in view, and Gymnasium's own renderer where cameras are.

    For a process of its own: MuJoCo decides about OpenGL when it is imported, here for itself.
    """

    def __init__(self, task_config: Json) -> None:
        """
        Args:
            task_config: of one of our Meta-World tasks (conf/task/metaworld).

        Raises:
            UserError: cameras without a working OpenGL back end.
        """
        self._cameras = list(task_config["cameras"])
        if self._cameras:
            os.environ[VARIABLE] = choose_backend()  # the same as ours
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import metaworld
            from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
        environment = task_config["environment"]
        self._env: Any = metaworld.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{environment}-goal-observable"]()
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        size = task_config["camera_size"]
        self._renderers = [
            MujocoRenderer(self._env.model, self._env.data, width=size, height=size, camera_name=camera)
            for camera in self._cameras
        ]

    def reset(self, seed: int) -> object:
        self._env.seed(seed)
        return self._env.reset(), self._images()

    def step(self, action: np.ndarray) -> object:
        return self._env.step(action), self._images()

    def close(self) -> None:
        for renderer in self._renderers:
            renderer.close()
        self._env.close()

    def _images(self) -> list[Any]:
        return [renderer.render("rgb_array") for renderer in self._renderers]
