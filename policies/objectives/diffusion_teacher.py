"""A trained `DiffusionPolicy` as a teacher, on either path.

B batch, H horizon, A action, C context.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embodied.policies.batch import Batch
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.objectives.teacher import DETERMINISTIC_MOVE


class DiffusionTeacher:
    """Its moves are DDIM's or Euler's, with the policy's own clipping, whatever sampler it runs with."""

    capabilities = frozenset({DETERMINISTIC_MOVE})

    def __init__(self, policy: DenoisingPolicy) -> None:
        self.policy = policy.eval().requires_grad_(False)
        self.path = policy.path

    @torch.no_grad()
    def context(self, batch: Batch) -> Tensor:
        self.policy.to(batch.state_BTS.device)  # where the student is; a teacher is no part of what the loop moves
        return self.policy.context(batch.state_BTS, batch.images)

    @torch.no_grad()
    def move(self, noisy_BHA: Tensor, level_BH: Tensor, next_level_BH: Tensor, context_BC: Tensor) -> Tensor:
        predicted_BHA = self.policy.predict(noisy_BHA, level_BH, context_BC).float()
        return self.path.move(level_BH, next_level_BH, self.policy.clip)(noisy_BHA, predicted_BHA)
