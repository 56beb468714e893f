"""How fast something may move that has to stop before an end. Closed forms in discrete time, element by element.

A position moves by w once a control step; w changes by at most `most_change` from one step to the next.
"""

from __future__ import annotations

import numpy as np


def largest_step(room: np.ndarray, most_change: np.ndarray) -> np.ndarray:
    """The largest w from which a stop is possible within `room`, which w itself is part of.

    Braking from w takes w + (w - c) + (w - 2c) + ... while the terms are positive, with c = `most_change`. With n + 1
    terms that is (n + 1) w - c n (n + 1) / 2, and n is the largest number with c n (n + 1) / 2 <= room.

    Args:
        room: up to the end, at least 0.
        most_change: above 0; infinity: a stop at once is possible, and w may be all of the room.
    """
    finite = np.isfinite(most_change)
    c = np.where(finite, most_change, 1.0)
    bounded = np.where(np.isfinite(room), room, 0.0)
    n = np.floor((np.sqrt(1.0 + 8.0 * bounded / c) - 1.0) / 2.0)
    step = bounded / (n + 1.0) + c * n / 2.0
    return np.where(np.isfinite(room), np.where(finite, step, room), np.inf)


def slowed(step: np.ndarray, most_change: np.ndarray) -> np.ndarray:
    """One step of braking: w without `most_change`, and never the other way."""
    return np.sign(step) * np.maximum(np.abs(step) - most_change, 0.0)
