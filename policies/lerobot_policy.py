"""A LeRobot checkpoint as a policy to serve or to evaluate: the chunk that it would execute from each observation on.

The queues inside LeRobot's policies are filled anew from the history that the session keeps, so that the policy has no
state between two calls, and `reset` needs nobody to remember it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from embodied.errors import UserError
from embodied.policies.lerobot_checkpoint import LeRobotInputs, load_lerobot, seeded_noise
from embodied.policies.teacher import checked_action
from embodied.types import ActionChunk, Observation, TaskSpec

_ACTION = "action"


@dataclass(frozen=True)
class LeRobotState:
    """Of one session: which noise comes next."""

    seed: int
    observations: int = 0


class LeRobotPolicy:
    """`Policy` over a checkpoint folder that LeRobot saved; sessions are computed one after the other."""

    inference_delay = 0
    keys: ClassVar[str] = "lerobot_checkpoint"  # where in the configuration its inputs are named, for error messages

    def __init__(
        self,
        spec: TaskSpec,
        path: str | Path,
        observation: Sequence[str] | None = None,
        environment_state: Sequence[str] | None = None,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            spec: of the robot or task that it acts in; the checkpoint does not say it.
            path: the folder `pretrained_model` of a training run.
            observation, environment_state: as in `LeRobotInputs`.

        Raises:
            UserError: no such folder, one that LeRobot cannot read, features that the spec does not have, or a policy
                that averages over control steps, which no chunk can show.
        """
        self.spec, self._path = spec, Path(path)
        self._policy, self._preprocess, self._postprocess = load_lerobot(self._path, device)
        config = self._policy.config
        self._check_kind(config)
        self._inputs = LeRobotInputs(spec, config, self._path, observation, environment_state, keys=self.keys)
        self.history = int(getattr(config, "n_obs_steps", 1))
        self.action_steps = int(getattr(config, "n_action_steps", 1))

    def _check_kind(self, config: Any) -> None:
        """
        Raises:
            UserError: a policy whose chunks cannot be had in this way.
        """
        if getattr(config, "temporal_ensemble_coeff", None) is not None:
            raise UserError(
                expected="a LeRobot policy that hands out chunks",
                found=f"one with temporal_ensemble_coeff in {self._path}",
                remedy="set it to null and n_action_steps to the chunk's length in the checkpoint's config.json",
            )

    @property
    def label(self) -> str:
        return f"lerobot {self._policy.config.type}"

    @property
    def calls_per_observation(self) -> int:
        """Network calls of one chunk, where the policy denoises."""
        config = self._policy.config
        return int(getattr(config, "num_inference_steps", None) or getattr(config, "num_train_timesteps", None) or 1)

    def initial_state(self, seed: int) -> LeRobotState:
        return LeRobotState(seed)

    def step(
        self,
        histories: Sequence[Sequence[Observation]],
        states: Sequence[LeRobotState],
        executed: Sequence[int],
    ) -> tuple[list[ActionChunk], list[LeRobotState]]:
        """One chunk a session, one session after the other, as LeRobot's noise is drawn from a global generator.

        Raises:
            UserError: the policy answers with actions of another size, or that are not finite.
        """
        chunks = [self._chunk(history, state) for history, state in zip(histories, states, strict=True)]
        return chunks, [LeRobotState(state.seed, state.observations + 1) for state in states]

    def _chunk(self, history: Sequence[Observation], state: LeRobotState) -> ActionChunk:
        with torch.inference_mode(), seeded_noise(state.seed, state.observations):
            actions = self._actions(history)
        return ActionChunk(actions, history[-1].time_s, self.spec.dt_s, self.calls_per_observation)

    def _actions(self, history: Sequence[Observation]) -> np.ndarray:
        """What LeRobot's `select_action` gives until its queue is empty, float32 [Ta A] within the bounds."""
        self._policy.reset()
        for observation in history[:-1]:
            self._see(observation)
        batch = self._preprocess(self._inputs.batch(history[-1]))
        actions = [
            self._postprocess(self._policy.select_action(dict(batch))).cpu().numpy().reshape(-1)
            for _ in range(self.action_steps)
        ]
        name = f"the policy {self._path}"
        return np.stack([checked_action(self.spec.action, action, name) for action in actions])

    def _see(self, observation: Observation) -> None:
        """Put an earlier observation into the policy's queue without a chunk for it: it finds an action waiting."""
        queues: Any = getattr(self._policy, "_queues", None) or {}
        if _ACTION in queues and not queues[_ACTION]:
            queues[_ACTION].append(torch.zeros(1, self.spec.action.size))
        self._policy.select_action(self._preprocess(self._inputs.batch(observation)))
