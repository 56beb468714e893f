"""Bare environments that a benchmark runs in a process of its own, which imports this file: nothing heavy in it."""

from __future__ import annotations

import time


class SlowEnvironment:
    """Sleeps through every step."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def reset(self, seed: int) -> None:
        time.sleep(0.2)  # must not count among the steps

    def step(self, action) -> None:
        time.sleep(self._step_s)

    def close(self) -> None:
        pass


class BrokenEnvironment:
    def __init__(self) -> None:
        raise RuntimeError("no such robot")
