"""Embedding of noise levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Levels lie in 0 .. 1; the sinusoids were made for positions up to about a thousand.
LEVEL_SCALE = 1000.0
LONGEST_PERIOD = 10000.0


class LevelEmbedding(nn.Module):
    """Sinusoids of a noise level, then two linear layers (DDPM, arXiv 2006.11239, appendix B)."""

    frequency: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        frequency = torch.exp(-math.log(LONGEST_PERIOD) * torch.arange(half) / (half - 1)) * LEVEL_SCALE
        self.register_buffer("frequency", frequency, persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * half, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, level: Tensor) -> Tensor:
        """Levels [...] in 0 .. 1 to vectors [... width]."""
        angle = level.unsqueeze(-1) * self.frequency
        return self.layers(torch.cat([angle.sin(), angle.cos()], dim=-1))
