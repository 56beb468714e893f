"""Embedding of noise levels.

L width of the embedding.
"""

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
        """Levels [...] in 0 .. 1 to vectors [... L]."""
        return self.layers(self.sinusoids(level))

    def sinusoids(self, level: Tensor) -> Tensor:
        angle = level.unsqueeze(-1) * self.frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class JumpEmbedding(LevelEmbedding):
    """Of a level and of another one to jump to, which adds an embedding of the way between them.

    That begins as 0, so that a network with the other weights of one that knows no jumps computes what that computes.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        half = len(self.frequency)
        out = nn.Linear(2 * width, width)
        self.way_layers = nn.Sequential(nn.Linear(2 * half, 2 * width), nn.SiLU(), out)
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)

    def forward(self, level: Tensor) -> Tensor:
        """Levels from and to [... 2] in 0 .. 1 to vectors [... L]."""
        begin, end = level.unbind(-1)
        return super().forward(begin) + self.way_layers(self.sinusoids(begin - end))
