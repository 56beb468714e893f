"""LeRobot's own DiffusionPolicy as a policy of this program: whole chunks by its `predict_action_chunk`.

B sessions, To history, Ta actions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from embodied.errors import UserError
from embodied.policies.lerobot_checkpoint import LeRobotInputs, load_lerobot, seeded_noise
from embodied.policies.teacher import checked_path
from embodied.types import ActionChunk, Observation, TaskSpec


@dataclass(frozen=True)
class LeRobotState:
    """Which noise comes next."""

    seed: int
    observations: int = 0


class LeRobotDiffusion:
    """Histories come from the session, so nothing lasts in the policy's own queues, which stay empty."""

    inference_delay = 0

    def __init__(
        self,
        spec: TaskSpec,
        path: str,
        observation: Sequence[str] | None = None,
        environment_state: Sequence[str] | None = None,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            path: a folder with config.json, model.safetensors and both processors.
            observation, environment_state: as in `LeRobotInputs`.

        Raises:
            UserError: no such folder, files of another kind, another policy than LeRobot's `diffusion`, or features
                that the task does not have.
        """
        self.spec = spec
        folder = checked_path(path, None)
        self._policy, self._preprocess, self._postprocess = load_lerobot(folder, device)
        config = self._policy.config
        if config.type != "diffusion":
            raise UserError(
                expected=f"LeRobot's policy 'diffusion' in {folder}",
                found=f"'{config.type}'",
                remedy="evaluate others as experts: embodied eval expert=lerobot expert.path=...",
            )
        self._inputs = LeRobotInputs(spec, config, folder, observation, environment_state, keys="lerobot")
        self._policy.reset()
        self.history, self.action_steps, self.horizon = config.n_obs_steps, config.n_action_steps, config.horizon
        self._scheduler = config.noise_scheduler_type.lower()

    @property
    def label(self) -> str:
        return f"lerobot {self._scheduler}-{self.calls_per_observation}"

    @property
    def calls_per_observation(self) -> int:
        """Network calls of a chunk."""
        return self._policy.diffusion.num_inference_steps

    @property
    def device(self) -> torch.device:
        return next(self._policy.parameters()).device

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._policy.parameters())

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
            UserError: actions of another shape, or that are not finite.
        """
        chunks = [self._chunk(history, state) for history, state in zip(histories, states, strict=True)]
        return chunks, [LeRobotState(state.seed, state.observations + 1) for state in states]

    def _chunk(self, history: Sequence[Observation], state: LeRobotState) -> ActionChunk:
        with torch.inference_mode(), seeded_noise(state.seed, state.observations):
            answer = self._postprocess(self._policy.predict_action_chunk(self._batch(history)))
        actions = answer[0].to(torch.float32).cpu().numpy()
        if actions.shape != (self.action_steps, self.spec.action.size) or not np.isfinite(actions).all():
            raise UserError(
                expected=f"finite actions [{self.action_steps} {self.spec.action.size}] of {self.label}",
                found=f"{list(actions.shape)}, {int((~np.isfinite(actions)).sum())} of them not finite",
                remedy="name another checkpoint",
            )
        return ActionChunk(actions, history[-1].time_s, self.spec.dt_s, self.calls_per_observation)

    def _batch(self, history: Sequence[Observation]) -> dict[str, Any]:
        """Normalised vectors [1 To S] and images [1 To 3 h w]."""
        rows = [self._inputs.batch(observation) for observation in history]
        batch: dict[str, Any] = {
            name: torch.stack([row[name] for row in rows])[None]
            for name, value in rows[0].items()
            if isinstance(value, torch.Tensor)
        }
        return self._preprocess({**batch, "task": [rows[-1]["task"]]})

    def timed_parts(self, history: Sequence[Observation]) -> dict[str, Callable[[], object]]:
        """What comes before the network, and one bare call of it at batch 1, for a latency report."""
        model = self._policy.diffusion

        @torch.inference_mode()
        def encode() -> torch.Tensor:
            return model._prepare_global_conditioning(self._batch(history))

        context = encode()
        noisy = torch.zeros(1, self.horizon, self.spec.action.size, device=self.device)
        level = torch.zeros(1, dtype=torch.long, device=self.device)

        @torch.inference_mode()
        def network_call() -> torch.Tensor:
            return model.unet(noisy, level, global_cond=context)

        return {"encode": encode, "network_call": network_call}
