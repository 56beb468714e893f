"""Real-time chunking (RTC, arXiv 2506.07339): a chunk that goes on from the last one, which runs while it is computed.

The new chunk's first d actions, d the inference delay, are those of the last chunk that will have been executed by the
time it is ready: they are frozen. Behind them the last chunk is followed with weights that fall until it ends
(sec. 4.2, eq. 5). At every denoising step the predicted clean actions are pulled toward the last chunk by guidance
through a pseudo-inverse (sec. 4.1, eq. 2-4): a vector-Jacobian product of the network.

Time tau = 1 - s runs from noise to data there. On the path of DDPM the Jacobian of the clean actions is a small
difference times 1 / signal, which no network's derivative is exact enough for: this is for flows alone.

B batch, H horizon, A action.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from embodied.policies.flow_path import FlowPath
from embodied.policies.programs import DenoiseLoop, Network

Schedule = Literal["zeros", "ones", "linear", "exp"]
SCHEDULES: tuple[Schedule, ...] = ("zeros", "ones", "linear", "exp")
LARGEST_GUIDANCE = 5.0  # beta, appendix A.2: without it few steps overshoot


def prefix_weights(horizon: int, delay: int, executed: int, schedule: Schedule) -> Tensor:
    """How closely each position follows the last chunk, float32 [H] (eq. 5).

    1 for the first `delay` positions and 0 for the last `executed`, which the last chunk does not reach; between them
    zeros, ones, a line, or `exp`: c (e^c - 1) / (e - 1) along that line c.
    """
    position = torch.arange(horizon, dtype=torch.float64)
    line = (horizon - executed - position) / (horizon - executed - delay + 1)
    between = {
        "zeros": torch.zeros_like(line),
        "ones": torch.ones_like(line),
        "linear": line,
        "exp": line * torch.expm1(line) / torch.expm1(torch.ones(())),
    }[schedule]
    weights = torch.where(position < horizon - executed, between, 0.0)
    return torch.where(position < delay, 1.0, weights).float()


class RealTimeChunking(nn.Module):
    """Euler's steps, guided. Needs gradients with respect to the actions, hence the eager engine."""

    def __init__(self, network: Network, path: FlowPath, levels: list[Tensor], clip: bool) -> None:
        """`levels`: one more than calls, int64 [H] each, constant, from pure noise to clean."""
        super().__init__()
        self.loop = DenoiseLoop(network, path, levels, clip)
        self.s = [float(path.noise[level[0]]) for level in levels]

    def forward(
        self, noise_BHA: Tensor, context_BC: Tensor, plan_BHA: Tensor, weight_BH: Tensor, frozen_BH: Tensor
    ) -> Tensor:
        """
        Args:
            plan_BHA: the last chunk from now on, normalised.
            weight_BH: of `prefix_weights`; 0 everywhere is plain sampling.
            frozen_BH: bool, positions that come back as the plan has them.
        """
        x_BHA = noise_BHA
        for call, (s, next_s) in enumerate(pairwise(self.s)):
            with torch.enable_grad():
                x = x_BHA.clone().requires_grad_()
                v = self.loop.network(x, self.loop.fraction_K1H[call], context_BC)
                clean = x - s * v
                error = (plan_BHA - clean.detach()) * weight_BH.unsqueeze(-1)
                (pull_BHA,) = torch.autograd.grad(clean, x, error)
            # Eq. 2 adds weight * pull to dx/dtau = -v; over the step, tau grows by s - next_s.
            guidance_BHA = guidance_weight(1 - s) * pull_BHA
            x_BHA = self.loop.moves[call](x_BHA, v.detach()) + (s - next_s) * guidance_BHA
        return torch.where(frozen_BH.unsqueeze(-1), plan_BHA, x_BHA)


def guidance_weight(tau: float) -> float:
    """min(beta, (1 - tau) / (tau r^2)), r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2) (eq. 2 and 4)."""
    if tau <= 0.0:
        return LARGEST_GUIDANCE
    r_squared = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
    return min(LARGEST_GUIDANCE, (1 - tau) / (tau * r_squared))
