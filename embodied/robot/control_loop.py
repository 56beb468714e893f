"""A robot's control loop at a fixed rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from embodied.robot.controller import ControlStep, RobotController
from embodied.types import Observation


class Robot(Protocol):
    """What a control loop needs of a robot, or of what stands for one."""

    def observe(self) -> Observation:
        """What is seen now; its time is set by the loop."""
        ...

    def execute(self, action: np.ndarray) -> None:
        """Command one action, float32 [A], for one control period. Does not wait for its end."""
        ...


@dataclass(frozen=True)
class LoopReport:
    """Of one episode."""

    steps: int  # that were done
    skipped: int  # whose time had passed when the one before them ended
    longest_step_s: float  # of the controller alone: observation to action


def run_episode(
    robot: Robot,
    controller: RobotController,
    steps: int,
    dt_s: float,
    *,
    seed: int | None = None,
    note: Callable[[Observation, ControlStep], None] = lambda observation, step: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> LoopReport:
    """So many control periods of `dt_s`, one step at the begin of each.

    A step that takes longer than its period costs those that it reaches into: they are skipped, never made up for,
    since a robot that gets two commands at once jumps.

    Args:
        seed: of the policy's noise.
        note: called once a step; it takes from the control period.
    """
    controller.reset(seed)
    begun_s = clock()
    t = done = skipped = 0
    longest_s = 0.0
    while t < steps:
        if (early_s := begun_s + t * dt_s - clock()) > 0:
            sleep(early_s)
        observation = robot.observe()
        observation.time_s = t * dt_s
        seen_s = clock()
        step = controller.step(observation)
        longest_s = max(longest_s, clock() - seen_s)
        if step.action is not None:
            robot.execute(step.action)
        note(observation, step)
        done += 1
        due = max(t + 1, math.ceil((clock() - begun_s) / dt_s))
        skipped += min(due, steps) - (t + 1)
        t = due
    return LoopReport(done, skipped, longest_s)
