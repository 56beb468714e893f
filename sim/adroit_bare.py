"""Adroit as gymnasium-robotics' own users run it: the other side of a benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np

from embodied.catalog import TASKS, lookup
from embodied.sim.adroit import import_gymnasium
from embodied.types import Json


class BareAdroit:
    """`gymnasium.make` with its own defaults, wrappers included."""

    def __init__(self, task_config: Json) -> None:
        """
        Args:
            task_config: of one of our Adroit tasks (conf/task/adroit).

        Raises:
            UserError: gymnasium-robotics is not installed.
        """
        self._env: Any = import_gymnasium().make(lookup("task", TASKS, task_config["name"]).environment)

    def reset(self, seed: int) -> object:
        return self._env.reset(seed=seed)

    def step(self, action: np.ndarray) -> object:
        return self._env.step(action)

    def close(self) -> None:
        self._env.close()
