"""robosuite as its own users run it: the other side of the benchmark."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import numpy as np

from embodied.catalog import TASKS, lookup
from embodied.sim.opengl import VARIABLE, choose_backend
from embodied.types import Json


class BareRobosuite:
    """`robosuite.make` with robosuite's own defaults: object observations, and its own rendering where cameras are.

    For a process of its own: robosuite decides about OpenGL when it is imported, here for itself.
    """

    def __init__(self, task_config: Json) -> None:
        """
        Args:
            task_config: of one of our robosuite tasks (conf/task/robosuite).

        Raises:
            UserError: cameras without a working OpenGL back end.
        """
        cameras = list(task_config["cameras"])
        if cameras:
            os.environ[VARIABLE] = choose_backend()  # the same as ours
        logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import robosuite
        self._env: Any = robosuite.make(
            lookup("task", TASKS, task_config["name"]).environment,
            robots=task_config["robot"],
            control_freq=task_config["control_hz"],
            horizon=task_config["horizon"],
            ignore_done=True,
            has_renderer=False,
            has_offscreen_renderer=bool(cameras),
            use_camera_obs=bool(cameras),
            camera_names=cameras or "agentview",
            camera_heights=task_config["camera_size"],
            camera_widths=task_config["camera_size"],
        )

    def reset(self, seed: int) -> object:
        np.random.seed(seed)  # robosuite draws its starts from there
        return self._env.reset()

    def step(self, action: np.ndarray) -> object:
        return self._env.step(action)

    def close(self) -> None:
        self._env.close()
