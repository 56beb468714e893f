"""A Gymnasium environment as its own users run it: the other side of a benchmark."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from embodied.types import Json


class BareGymnasium:
    """`gymnasium.make` with its own defaults, wrappers included."""

    def __init__(self, task_config: Json) -> None:
        """
        Args:
            task_config: of a Gymnasium task (conf/task/gymnasium.yaml).
        """
        self._env: Any = gymnasium.make(task_config["id"], **(task_config["arguments"] or {}))

    def reset(self, seed: int) -> object:
        return self._env.reset(seed=seed)

    def step(self, action: np.ndarray) -> object:
        return self._env.step(action)

    def close(self) -> None:
        self._env.close()
