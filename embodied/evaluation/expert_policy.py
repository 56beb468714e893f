"""A task's expert in the place of a policy: what it does is the most that a student of it can be expected to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embodied.protocols import Expert, Task
from embodied.types import ActionChunk, Observation


class ExpertPolicy:
    """Acts at every control step, on the simulator's state: it sees its own task alone, whatever it is shown."""

    history = 1
    action_steps = 1
    inference_delay = 0

    def __init__(self, task: Task, expert: Expert, label: str) -> None:
        """`expert` must be that of `task`."""
        self.spec = task.spec
        self.label = label
        self._expert = expert

    def initial_state(self, seed: int) -> None:
        """The expert's memory is inferred from the state that the task is in at the first step."""
        return None

    def step(
        self, histories: Sequence[Sequence[Observation]], states: Sequence[Any], executed: Sequence[int]
    ) -> tuple[list[ActionChunk], list[Any]]:
        chunks, memories = [], []
        for history, state in zip(histories, states, strict=True):
            memory = self._expert.infer_memory() if state is None else state[0]
            action, memory = self._expert.act(memory)
            chunks.append(ActionChunk(action[None], history[-1].time_s, self.spec.dt_s))
            memories.append((memory,))
        return chunks, memories
