"""Temporal ensembling (ACT, arXiv 2304.13705, sec. IV-C and algorithm 2)."""

from __future__ import annotations

import math

import numpy as np

from embodied.errors import MisfitError, UserError
from embodied.executors.blending import blended
from embodied.executors.timed_actions import TimedActions, timed_prediction
from embodied.types import ActionChunk, ActionSpec

NAME = "temporal_ensembling"


class TemporalEnsemblingExecutor:
    """Asks for a chunk at every control step; executes the mean of all predictions that were made for the step.

    w_i = exp(-m i), i = 0 for the oldest prediction. Where the policy takes several steps to think, a chunk is asked
    for as often as it can be, and its predictions for steps that are past count for nothing.
    """

    def __init__(self, spec: ActionSpec, inference_delay: int = 0, *, m: float) -> None:
        """
        Args:
            spec: of the actions.
            inference_delay: of the policy (`Policy.inference_delay`).
            m: how much faster older predictions weigh more; 0: all the same, below 0: newer ones weigh more.

        Raises:
            UserError: `m` is no finite number.
        """
        if isinstance(m, bool) or not isinstance(m, int | float) or not math.isfinite(m):
            raise UserError(expected="executor.m a finite number", found=str(m), remedy="set executor.m=0.01, as ACT")
        self._spec = spec
        self._inference_delay = inference_delay
        self._m = m
        self.reset()

    def reset(self) -> None:
        self._predictions: list[TimedActions] = []  # oldest first
        self._lead = 0  # control steps from the newest one's observation to its first action
        self._newest_actions = 0  # of it, without its preview

    def steps_between_chunks(self, action_steps: int) -> int:
        return 1

    def needs_chunk(self, time_s: float) -> bool:
        executed = self.executed(time_s)
        return executed is None or executed > 0

    def executed(self, time_s: float) -> int | None:
        if not self._predictions:
            return None
        step = self._predictions[-1].step_at(time_s)
        return min(max(step, -self._lead), self._newest_actions) + self._lead

    def take(self, chunk: ActionChunk) -> None:
        prediction = timed_prediction(chunk, self._spec, 0, NAME)
        if len(prediction.values) < 2:
            raise MisfitError(
                expected=f"at least 2 actions predicted at a time, for executor {NAME}",
                found=str(len(prediction.values)),
                remedy="use executor=chunk, or train with a larger policy.horizon",
            )
        self._lead = self._inference_delay if self._predictions else 0
        asked_s = chunk.start_s - self._lead * chunk.dt_s
        self._predictions = [*(p for p in self._predictions if p.steps_left(asked_s) > 0), prediction]
        self._newest_actions = len(chunk.actions)

    def has_action(self, time_s: float) -> bool:
        return any(prediction.covers(time_s) for prediction in self._predictions)

    def next_action(self, time_s: float) -> np.ndarray:
        actions = [prediction.at(time_s) for prediction in self._predictions if prediction.covers(time_s)]
        if not actions:
            raise UserError(expected="a prediction for this step", found="none", remedy="call take() with a new chunk")
        exponents = -self._m * np.arange(len(actions))
        return blended(np.stack(actions), np.exp(exponents - exponents.max()), self._spec)
