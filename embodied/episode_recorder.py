"""From single steps to an episode."""

from __future__ import annotations

import numpy as np

from embodied.types import Episode, Json, Observation, TaskSpec


class EpisodeRecorder:
    """Gathers an episode step by step."""

    def __init__(self, spec: TaskSpec) -> None:
        self._spec = spec
        self._rows: list[tuple[Observation, np.ndarray, np.ndarray, np.ndarray, float, bool]] = []

    def add(
        self,
        observation: Observation,
        physics: np.ndarray,
        action: np.ndarray,
        executed: np.ndarray,
        reward: float,
        success: bool,
    ) -> None:
        """What was seen before an action, the clean and the executed action, and what they led to."""
        self._rows.append((observation, physics, action, executed, reward, success))

    def episode(self, start_id: int, provenance: Json) -> Episode:
        observations, physics, actions, executed, rewards, successes = zip(*self._rows, strict=True)

        def stack(kind: str, name: str) -> np.ndarray:
            return np.stack([getattr(observation, kind)[name] for observation in observations])

        return Episode(
            task=self._spec.task,
            seed=start_id,
            state={state.name: stack("state", state.name) for state in self._spec.state},
            images={camera.name: stack("images", camera.name) for camera in self._spec.cameras},
            action=np.stack(actions),
            executed=np.stack(executed),
            reward=np.asarray(rewards, np.float32),
            success=np.asarray(successes, bool),
            time_s=np.asarray([observation.time_s for observation in observations], np.float64),
            physics=np.stack(physics),
            instruction=observations[0].instruction,
            provenance=provenance,
        )
