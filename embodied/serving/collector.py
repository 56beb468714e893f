"""Garbage collection at times when no robot waits."""

from __future__ import annotations

import gc

IDLE_S = 1.0  # between two collections of an idle server
BUSY_S = 10.0  # after this long without an idle moment one is made all the same: what it finds stays small


class IdleCollector:
    """Switches Python's own collector off, and collects when it is told that nothing is to be done.

    What was there at the beginning (modules, the network) is frozen: no later collection looks at it.
    """

    def __init__(self) -> None:
        self._last_s = 0.0

    def begin(self, now_s: float) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()
        self._last_s = now_s

    def idle(self, now_s: float) -> None:
        self._collect_after(IDLE_S, now_s)

    def busy(self, now_s: float) -> None:
        self._collect_after(BUSY_S, now_s)

    def end(self) -> None:
        gc.enable()
        gc.unfreeze()

    def _collect_after(self, pause_s: float, now_s: float) -> None:
        if now_s - self._last_s >= pause_s:
            gc.collect()
            self._last_s = now_s
