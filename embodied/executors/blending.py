"""One action out of several that were predicted for the same control step."""

from __future__ import annotations

import numpy as np

from embodied.types import ActionSpec


def blended(actions_NA: np.ndarray, weights_N: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """The weighted mean of N actions, each within the spec's bounds first, float32 [A].

    Rotations are averaged number by number: right for the small turns of deltas, not for absolute targets near half a
    turn, where axis-angles of the same rotation differ in sign. Elements of which only the two ends mean something (a
    gripper) go to the end that the mean is nearer to, the lower one if it is in the middle.
    """
    low, high = np.asarray(spec.low, np.float64), np.asarray(spec.high, np.float64)
    mean = (weights_N / weights_N.sum()) @ np.clip(actions_NA.astype(np.float64), low, high)
    end = np.where(mean > (low + high) / 2, high, low)
    return np.where(spec.binary, end, mean).astype(np.float32)
