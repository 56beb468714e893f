"""A robot's control loop at a fixed rate."""

from __future__ import annotations

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

    steps: int
    overruns: int  # control steps that ended after the next one was due
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
    """So many control steps, each `dt_s` after the last one; a step that comes late does not move those after it.

    Args:
        seed: of the policy's noise.
        note: called once a step; it takes from the control period.
    """
    controller.reset(seed)
    begun_s = clock()
    overruns, longest_s = 0, 0.0
    for t in range(steps):
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
        overruns += clock() > begun_s + (t + 1) * dt_s
    return LoopReport(steps, overruns, longest_s)
