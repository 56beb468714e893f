"""Statistics of what is computed from windows rather than stored, in one pass over them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from embodied.datasets.streaming_statistics import StreamingStatistics
from embodied.protocols import WindowSource
from embodied.types import Statistics, Window

WINDOWS_AT_ONCE = 2048


def window_statistics(windows: WindowSource, rows: Callable[[Window], np.ndarray]) -> Statistics:
    """Statistics of the rows [n d] that `rows` makes of all windows, a block of windows at a time.

    Raises:
        UserError: no window makes a row.
    """
    statistics = StreamingStatistics()
    for first in range(0, len(windows), WINDOWS_AT_ONCE):
        block = np.arange(first, min(first + WINDOWS_AT_ONCE, len(windows)))
        statistics.add(rows(windows.gather(block)))
    return statistics.result()
