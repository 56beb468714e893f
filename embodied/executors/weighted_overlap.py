"""Executes chunk after chunk, and blends the seams."""

from __future__ import annotations

import numpy as np

from embodied.errors import MisfitError, UserError
from embodied.executors.blending import blended
from embodied.executors.chunk import ChunkExecutor
from embodied.executors.timed_actions import TimedActions, timed_prediction
from embodied.types import ActionChunk, ActionSpec

NAME = "weighted_overlap"
HELD_PERIODS = 1.5  # control periods between two actions: above it the robot stood still in between


class WeightedOverlapExecutor(ChunkExecutor):
    """Where the last chunk's prediction goes on beyond its own actions, it fades out over the first of the next ones.

    Action j of a chunk is w times what the last chunk predicted for that step plus 1 - w times its own, with
    w = 1 - (j + 1) / (overlap + 1) for j < overlap: for an overlap of 3 these are 3/4, 2/4 and 1/4. After the robot
    stood still nothing is blended, since what was predicted then did not happen. Overlap 0 is `ChunkExecutor`.
    """

    def __init__(self, spec: ActionSpec, inference_delay: int = 0, *, overlap: int) -> None:
        """
        Args:
            spec: of the actions.
            inference_delay: of the policy (`Policy.inference_delay`).
            overlap: control steps that are blended.

        Raises:
            UserError: `overlap` is not a whole number of at least 0.
        """
        if isinstance(overlap, bool) or not isinstance(overlap, int) or overlap < 0:
            raise UserError(
                expected="executor.overlap a whole number of at least 0",
                found=str(overlap),
                remedy="set how many control steps are blended, for example executor.overlap=4",
            )
        self._overlap = overlap
        super().__init__(spec, inference_delay)

    def reset(self) -> None:
        super().reset()
        self._predictions: list[TimedActions] = []  # of the newest chunk and, unless the robot stood still, the last
        self._acted_s: float | None = None

    def take(self, chunk: ActionChunk) -> None:
        if self._overlap:
            prediction = timed_prediction(chunk, self._spec, self._overlap, NAME)
            self._check_overlap(len(chunk.actions))
            self._predictions = [*self._predictions[-1:], prediction]
        super().take(chunk)

    def _check_overlap(self, action_steps: int) -> None:
        if self._overlap > action_steps:
            raise MisfitError(
                expected=f"executor.overlap of at most {action_steps}, the actions of a chunk",
                found=str(self._overlap),
                remedy="lower executor.overlap",
            )

    def next_action(self, time_s: float) -> np.ndarray:
        action = super().next_action(time_s)
        if self._acted_s is not None and time_s - self._acted_s > HELD_PERIODS * self._chunks[-1].dt_s:
            self._predictions = self._predictions[-1:]
        self._acted_s = time_s
        j = self._chunks[-1].step_at(time_s)
        if len(self._predictions) < 2 or not 0 <= j < self._overlap or not self._predictions[0].covers(time_s):
            return action
        last = 1 - (j + 1) / (self._overlap + 1)
        return blended(np.stack([self._predictions[0].at(time_s), action]), np.array([last, 1 - last]), self._spec)
