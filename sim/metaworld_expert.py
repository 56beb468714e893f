"""The scripted policies that come with Meta-World, as experts."""

from __future__ import annotations

import warnings

import numpy as np

from embodied.sim.metaworld_world import MetaworldTask, import_metaworld


class MetaworldExpert:
    """The package's own scripted policy of a task: a function of the present state, without memory or time."""

    def __init__(self, task: MetaworldTask) -> None:
        """
        Args:
            task: read, never changed.
        """
        self._task = task
        self._policy = import_metaworld().policies.ENV_POLICY_MAP[task.environment]()

    def infer_memory(self) -> None:
        """None: the state says it all."""
        return None

    def act(self, memory: None) -> tuple[np.ndarray, None]:
        """The clean action, float32 [4] within the bounds, for the task's present state."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of actions beyond the bounds, which are cut here
            action = self._policy.get_action(self._task.metaworld_observation())
        spec = self._task.spec.action
        return np.clip(action, spec.low, spec.high).astype(np.float32), None
