"""Starting from the last plan instead of from pure noise.

Falcon (arXiv 2503.00339) begins where a partly denoised chunk of an earlier observation is near enough, and so leaves
out the first levels. This is its simplest form: what the last plan says of the steps that are still to come is noised
to one fixed level and denoised from there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embodied.policies.noise_path import NoisePath


class WarmStart(nn.Module):
    """A loop that begins at `level`, behind the forward process that takes the last plan there."""

    signal: Tensor
    noise: Tensor

    def __init__(self, loop: nn.Module, path: NoisePath, level: int) -> None:
        """At pure noise nothing of the plan is left, and this is plain sampling."""
        super().__init__()
        self.loop = loop
        pure = level == path.levels
        self.register_buffer("signal", torch.zeros(()) if pure else path.signal[level].float(), persistent=False)
        self.register_buffer("noise", torch.ones(()) if pure else path.noise[level].float(), persistent=False)

    def forward(self, noise_BHA: Tensor, context_BC: Tensor, plan_BHA: Tensor) -> Tensor:
        return self.loop(torch.addcmul(self.noise * noise_BHA, self.signal, plan_BHA), context_BC)


def remaining_plan(plan_HA: Tensor, executed: int) -> Tensor:
    """The plan without its `executed` actions, its last one held for as many steps, [H A]."""
    return torch.cat([plan_HA[executed:], plan_HA[-1:].expand(executed, -1)])
