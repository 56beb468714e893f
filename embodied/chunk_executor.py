"""Turns chunks into one action a control step."""

from __future__ import annotations

import numpy as np

from embodied.errors import UserError
from embodied.types import ActionChunk, ActionSpec


class ChunkExecutor:
    """Executes every action of a chunk before it asks for the next one."""

    def __init__(self, spec: ActionSpec) -> None:
        self._spec = spec
        self._low = np.asarray(spec.low, np.float32)
        self._high = np.asarray(spec.high, np.float32)
        self.reset()

    def reset(self) -> None:
        self._chunk: ActionChunk | None = None
        self._executed = 0

    @property
    def needs_chunk(self) -> bool:
        return self._chunk is None or self._executed == len(self._chunk.actions)

    def take(self, chunk: ActionChunk) -> None:
        """Start on a new chunk.

        Raises:
            UserError: its actions have another size than the spec says, or are not finite.
        """
        if chunk.actions.ndim != 2 or chunk.actions.shape[1] != self._spec.size or not len(chunk.actions):
            raise UserError(
                expected=f"a chunk of actions with {self._spec.size} values each ({', '.join(self._spec.elements)})",
                found=f"shape {chunk.actions.shape}",
                remedy="use a policy that was trained for this task",
            )
        if not np.isfinite(chunk.actions).all():
            step, element = np.argwhere(~np.isfinite(chunk.actions))[0]
            raise UserError(
                expected="finite actions",
                found=f"{chunk.actions[step, element]} in '{self._spec.elements[element]}' of action {step}",
                remedy="look for NaN or infinity in the observation, or train again",
            )
        self._chunk = chunk
        self._executed = 0

    def next_action(self) -> np.ndarray:
        """The action of this control step, within the spec's bounds, float32 [A]."""
        if self._chunk is None or self.needs_chunk:
            raise UserError(expected="a chunk with actions left", found="none", remedy="call take() with a new chunk")
        action = np.clip(self._chunk.actions[self._executed], self._low, self._high)
        self._executed += 1
        return action.astype(np.float32)
