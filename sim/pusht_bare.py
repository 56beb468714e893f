"""Push-T as gym-pusht's own users run it: the other side of a benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np

from embodied.sim.pusht import import_gym_pusht
from embodied.types import Json

ID = "gym_pusht/PushT-v0"
_STATE, _KEYPOINTS, _IMAGES = "state", "environment_state_agent_pos", "pixels_agent_pos"  # kinds of observation


class BarePushT:
    """`gymnasium.make` with its own defaults, wrappers included, and the observations nearest to the task's."""

    def __init__(self, task_config: Json) -> None:
        """
        Args:
            task_config: of one of our Push-T tasks (conf/task/pusht).

        Raises:
            UserError: gym-pusht is not installed.
        """
        import_gym_pusht()  # registers the environment
        import gymnasium

        size = task_config["camera_size"]
        without_images = _KEYPOINTS if task_config["name"] == "pusht/keypoints" else _STATE
        shown = _IMAGES if task_config["cameras"] else without_images
        self._env: Any = gymnasium.make(ID, obs_type=shown, observation_width=size, observation_height=size)

    def reset(self, seed: int) -> object:
        return self._env.reset(seed=seed)

    def step(self, action: np.ndarray) -> object:
        return self._env.step(action)

    def close(self) -> None:
        self._env.close()
