"""Ancestral sampling over all levels (DDPM, arXiv 2006.11239, algorithm 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embodied.policies.ddpm_path import DdpmPath
from embodied.policies.programs import Network


class AncestralSampler(nn.Module):
    """One network call a level, each followed by fresh noise."""

    def __init__(self, network: Network, path: DdpmPath, horizon: int, clip: bool) -> None:
        super().__init__()
        self.network = network
        self.path = path
        self.horizon = horizon
        self.clip = clip

    def forward(self, noise_BHA: Tensor, context_BC: Tensor, fresh_noise_BNHA: Tensor) -> Tensor:
        """`fresh_noise_BNHA` is what is added on the way, entry n on leaving level n + 1."""
        x_BHA = noise_BHA
        for level in range(self.path.levels, 0, -1):
            level_1H = torch.full((1, self.horizon), level / self.path.levels, device=x_BHA.device)
            predicted_BHA = self.network(x_BHA, level_1H, context_BC)
            x_BHA = self.path.ancestral_step(x_BHA, predicted_BHA, level, fresh_noise_BNHA[:, level - 1], self.clip)
        return x_BHA
