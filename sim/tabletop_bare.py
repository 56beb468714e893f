"""What the tabletop world is measured against: robosuite's Lift, as robosuite's users run it."""

from __future__ import annotations

import numpy as np

from embodied.sim.robosuite_bare import BareRobosuite
from embodied.types import Json

# robosuite's cameras that see what ours see.
_CAMERAS = {"overview": "agentview", "front": "frontview", "wrist": "robot0_eye_in_hand"}


class BareLift:
    """robosuite's Lift with its own defaults, and as many cameras of the same size. For a process of its own."""

    def __init__(self, task_config: Json) -> None:
        """
        Args:
            task_config: of one of the tabletop tasks (conf/task/tabletop).

        Raises:
            UserError: cameras without a working OpenGL back end.
        """
        lift = {
            "name": "robosuite/lift",
            "robot": "Panda",
            "control_hz": task_config["control_hz"],
            "horizon": task_config["horizon"],
            "cameras": [_CAMERAS[camera] for camera in task_config["cameras"]],
            "camera_size": task_config["camera_size"],
        }
        self._environment = BareRobosuite(lift)

    def reset(self, seed: int) -> object:
        return self._environment.reset(seed)

    def step(self, action: np.ndarray) -> object:
        return self._environment.step(action)

    def close(self) -> None:
        self._environment.close()
