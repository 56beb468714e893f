"""LeRobot's own DiffusionPolicy, to be measured beside this program's: whole chunks by its `predict_action_chunk`.

B sessions, To history, Ta actions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from embodied.errors import UserError
from embodied.policies.lerobot_policy import LeRobotPolicy
from embodied.types import Observation


class LeRobotDiffusion(LeRobotPolicy):
    """The history is handed over as it is, which leaves the policy's own queues empty, and actions come unclipped."""

    keys: ClassVar[str] = "lerobot"

    def _check_kind(self, config: Any) -> None:
        if config.type != "diffusion":
            raise UserError(
                expected=f"LeRobot's policy 'diffusion' in {self._path}",
                found=f"'{config.type}'",
                remedy="evaluate others as experts: embodied eval expert=lerobot expert.path=...",
            )

    @property
    def label(self) -> str:
        return f"lerobot {self._policy.config.noise_scheduler_type.lower()}-{self.calls_per_observation}"

    @property
    def horizon(self) -> int:
        """Actions predicted, of which a chunk is a part."""
        return self._policy.config.horizon

    @property
    def device(self) -> torch.device:
        return next(self._policy.parameters()).device

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._policy.parameters())

    def _actions(self, history: Sequence[Observation]) -> np.ndarray:
        answer = self._postprocess(self._policy.predict_action_chunk(self._batch(history)))
        actions = answer[0].to(torch.float32).cpu().numpy()
        if actions.shape != (self.action_steps, self.spec.action.size) or not np.isfinite(actions).all():
            raise UserError(
                expected=f"finite actions [{self.action_steps} {self.spec.action.size}] of {self.label}",
                found=f"{list(actions.shape)}, {int((~np.isfinite(actions)).sum())} of them not finite",
                remedy="name another checkpoint",
            )
        return actions

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
