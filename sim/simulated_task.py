"""What every simulated task keeps of the present episode, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np

from embodied.errors import UserError
from embodied.types import Observation, Step, TaskSpec

START_IDS = 2**32  # seeds that numpy's global generator takes


def check_start(start_id: int) -> None:
    """
    Raises:
        UserError: the start id is negative or too large for a seed.
    """
    if not 0 <= start_id < START_IDS:
        raise UserError(
            expected=f"a start id from 0 to {START_IDS - 1}", found=str(start_id), remedy="choose one in that range"
        )


def require_positive(key: str, value: int) -> None:
    """
    Raises:
        UserError: a setting below 1.
    """
    if value < 1:
        raise UserError(expected=f"{key} of at least 1", found=str(value), remedy=f"set {key} higher")


class SimulatedTask:
    """Steps, success and observation of the present episode; a task family says how its world begins and moves on."""

    spec: TaskSpec
    _steps: int | None = None  # of the present episode; None before the first reset
    _success_ever = False
    _observation: Observation | None = None  # the newest; None before the first reset

    def observation(self) -> Observation:
        """That of the last reset or step.

        Raises:
            UserError: no reset yet.
        """
        if self._observation is None:
            raise UserError(
                expected="reset before an observation", found="no reset", remedy="call task.reset(start_id)"
            )
        return self._observation

    @property
    def _time_s(self) -> float:
        """Since the episode began."""
        return (self._steps or 0) * self.spec.dt_s

    def _begin_episode(self) -> None:
        self._steps, self._success_ever = 0, False

    def _command(self, action: np.ndarray) -> np.ndarray:
        """The action within the bounds, float32 [A].

        Raises:
            UserError: another shape, or values that are not finite; no reset yet; the horizon is passed.
        """
        command = self.spec.action.clipped(action)
        if self._steps is None or self._steps >= self.spec.horizon:
            raise UserError(
                expected="reset before the first step and after the horizon",
                found="no reset" if self._steps is None else f"step {self._steps + 1} of {self.spec.horizon}",
                remedy="call task.reset(start_id)",
            )
        return command

    def _advance(self, success: bool) -> None:
        """Count a step that the world has made."""
        self._steps = (self._steps or 0) + 1
        self._success_ever |= success

    def _outcome(self, observation: Observation, reward: float, success: bool, **info: Any) -> Step:
        """The step that was counted last; episodes run to their horizon."""
        return Step(
            observation=observation,
            reward=reward,
            terminated=False,
            truncated=(self._steps or 0) >= self.spec.horizon,
            info={"success": success, "success_ever": self._success_ever, **info},
        )
