"""Executes every action of a chunk, then those of the next."""

from __future__ import annotations

import numpy as np

from embodied.errors import UserError
from embodied.executors.timed_actions import TimedActions, timed_actions
from embodied.types import ActionChunk, ActionSpec


class ChunkExecutor:
    """Each action at the time that it is for; what is past when its chunk comes is left out.

    With `inference_delay` d the next chunk is asked for when d actions are left. They run while the policy thinks, and
    the chunk that begins d steps after its observation takes over when they are used up. It may come early: it waits.

        control step   0 1 2 3 4 5 6 7 8 9
        chunk 0        a a a a a a          Ta + d = 6 actions
        asked for      ^       ^       ^    d = 2 left
        chunk 1                    a a a a  Ta = 4 actions
    """

    def __init__(self, spec: ActionSpec, inference_delay: int = 0) -> None:
        """
        Args:
            spec: of the actions.
            inference_delay: d, of the policy (`Policy.inference_delay`).
        """
        self._spec = spec
        self._inference_delay = inference_delay
        self._low = np.asarray(spec.low, np.float32)
        self._high = np.asarray(spec.high, np.float32)
        self.reset()

    def reset(self) -> None:
        self._chunks: list[TimedActions] = []  # the newest, and the one before it, which runs until the newest begins
        self._lead = 0  # control steps from the newest one's observation to its first action

    def steps_between_chunks(self, action_steps: int) -> int:
        return action_steps

    def needs_chunk(self, time_s: float) -> bool:
        return not self._chunks or self._chunks[-1].steps_left(time_s) <= self._inference_delay

    def executed(self, time_s: float) -> int | None:
        if not self._chunks:
            return None
        newest = self._chunks[-1]
        return min(max(newest.step_at(time_s), -self._lead), len(newest.values)) + self._lead

    def take(self, chunk: ActionChunk) -> None:
        timed = timed_actions(chunk, self._spec)
        self._lead = self._inference_delay if self._chunks else 0
        self._chunks = [*self._chunks[-1:], timed]

    def has_action(self, time_s: float) -> bool:
        return bool(self._chunks) and self._running(time_s).covers(time_s)

    def next_action(self, time_s: float) -> np.ndarray:
        if not self.has_action(time_s):
            raise UserError(expected="a chunk with actions left", found="none", remedy="call take() with a new chunk")
        return np.clip(self._running(time_s).at(time_s), self._low, self._high).astype(np.float32)

    def _running(self, time_s: float) -> TimedActions:
        """The newest chunk that has begun; where none has, the oldest."""
        begun = [chunk for chunk in self._chunks if chunk.step_at(time_s) >= 0]
        return (begun or self._chunks)[-1 if begun else 0]
