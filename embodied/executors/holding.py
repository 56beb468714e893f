"""What a robot does that has nothing to do."""

from __future__ import annotations

import numpy as np

from embodied.types import ActionSpec


def hold(spec: ActionSpec, last: np.ndarray) -> np.ndarray:
    """The action that keeps the robot where it is, after `last`, float32 [A]: nothing to add, or the same target.

    What means something at its two ends alone, a gripper, stays as it was told last.
    """
    if spec.representation == "absolute":
        return last.copy()
    return np.where(spec.binary, last, 0.0).astype(np.float32)
