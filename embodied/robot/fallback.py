"""What a robot does while there is no action for it: hold, or slow down to a stop."""

from __future__ import annotations

import numpy as np

from embodied.executors.holding import hold
from embodied.robot.braking import slowed
from embodied.types import ActionSpec


def stopping_action(spec: ActionSpec, last: np.ndarray, w: np.ndarray, most_change: np.ndarray) -> np.ndarray:
    """The next action of a robot that comes to rest, float32 [A].

    Args:
        last: the last action, [A].
        w: how far each element moved in the last control step, [A].
        most_change: by how much w may shrink in this one, [A]; infinity: hold at once.
    """
    return (hold(spec, last) + np.where(spec.binary, 0.0, slowed(w, most_change))).astype(np.float32)
