"""Jumps along the trajectories that a flow map has learned (CTM, arXiv 2310.02279, gamma-sampling with gamma 0).

No noise comes in on the way, so that more calls follow the teacher's trajectory more closely; multistep consistency
sampling (arXiv 2303.01469, algorithm 1) is gamma 1.

B batch, H horizon, A action, C context, K calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from embodied.policies.noise_path import NoisePath
from embodied.policies.programs import Network


class JumpSampler(nn.Module):
    """From one vector of levels down to another through those between, one network call a jump."""

    way_K1H2: Tensor

    def __init__(self, network: Network, path: NoisePath, levels: Sequence[Tensor], clip: bool) -> None:
        """
        Args:
            network: takes levels from and to, in 0 .. 1, and predicts the velocity of the path.
            levels: K + 1 vectors, int64 [H] each, the last one where the jumps end.
            clip: keep predicted clean actions within [-1, 1].
        """
        super().__init__()
        self.network = network
        device = path.signal.device
        pairs = list(pairwise([level.to(device) for level in levels]))
        ways = torch.stack([torch.stack(pair, dim=-1) / path.levels for pair in pairs]).unsqueeze(1)
        self.register_buffer("way_K1H2", ways, persistent=False)
        self.jumps = nn.ModuleList(path.jump(level, below, clip) for level, below in pairs)

    def forward(self, noise_BHA: Tensor, context_BC: Tensor) -> Tensor:
        x_BHA = noise_BHA
        for call, jump in enumerate(self.jumps):
            x_BHA = jump(x_BHA, self.network(x_BHA, self.way_K1H2[call], context_BC))
        return x_BHA
