"""The 1-D convolutional U-Net of Diffusion Policy (arXiv 2303.04137, sec. III), with a noise level a position.

B batch, H horizon, A action, C context, D width of a level of the U-Net, E width of the condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embodied.errors import UserError
from embodied.policies.networks.conditioning import LevelEmbedding

GROUPS = 8  # of group normalisation
LEVEL_WIDTH = 128  # of one level's embedding


def convolution(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(channels_in, channels_out, kernel, padding=kernel // 2),
        nn.GroupNorm(GROUPS, channels_out),
        nn.Mish(),
    )


class ResidualBlock(nn.Module):
    """Two convolutions; the condition scales and shifts between them (FiLM, arXiv 1709.07871, eq. 2)."""

    def __init__(self, channels_in: int, channels_out: int, condition_size: int, kernel: int) -> None:
        super().__init__()
        self.first = convolution(channels_in, channels_out, kernel)
        self.second = convolution(channels_out, channels_out, kernel)
        # A 1x1 convolution serves a condition for every position and, at length 1, a global one.
        self.film = nn.Sequential(nn.Mish(), nn.Conv1d(condition_size, 2 * channels_out, 1))
        self.skip = nn.Conv1d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x_BDH: Tensor, condition_BEH: Tensor) -> Tensor:
        scale, shift = self.film(condition_BEH).chunk(2, dim=1)
        return self.second(torch.addcmul(shift, self.first(x_BDH), 1 + scale)) + self.skip(x_BDH)


class Unet1d(nn.Module):
    """Predicts the noise in a chunk of actions, given each position's level and the observation's context.

    `conditioning="per_position"` lets every position be modulated by its own level (averaged where the U-Net is
    coarser); `"global"` turns all levels into one vector, as the released streaming diffusion policy does, and so ties
    the weights to one horizon.
    """

    def __init__(
        self,
        action_size: int,
        context_size: int,
        horizon: int,
        widths: Sequence[int],
        kernel: int,
        conditioning: Literal["per_position", "global"],
        level_embedding: type[LevelEmbedding] = LevelEmbedding,
    ) -> None:
        """`level_embedding`: of what the network is told of each position's level."""
        super().__init__()
        self._check(horizon, widths, kernel, conditioning)
        self.conditioning = conditioning
        self.level = level_embedding(LEVEL_WIDTH)
        if conditioning == "global":
            self.join_levels = nn.Sequential(
                nn.Linear(LEVEL_WIDTH * horizon, 2 * LEVEL_WIDTH), nn.Mish(), nn.Linear(2 * LEVEL_WIDTH, LEVEL_WIDTH)
            )
        condition_size = LEVEL_WIDTH + context_size

        def two_blocks(channels_in: int, channels_out: int) -> nn.ModuleList:
            return nn.ModuleList(
                [
                    ResidualBlock(channels_in, channels_out, condition_size, kernel),
                    ResidualBlock(channels_out, channels_out, condition_size, kernel),
                ]
            )

        steps = list(pairwise(widths))
        self.down_blocks = nn.ModuleList([two_blocks(action_size, widths[0]), *(two_blocks(a, b) for a, b in steps)])
        # As in the original, the way up joins the coarser levels' outputs; the finest level's output is not used again.
        self.down_samples = nn.ModuleList(nn.Conv1d(a, a, 3, stride=2, padding=1) for a, _ in steps)
        self.middle_blocks = two_blocks(widths[-1], widths[-1])
        self.up_blocks = nn.ModuleList(two_blocks(2 * b, a) for a, b in reversed(steps))
        self.up_samples = nn.ModuleList(nn.ConvTranspose1d(a, a, 4, stride=2, padding=1) for a, _ in reversed(steps))
        self.action_out = nn.Sequential(convolution(widths[0], widths[0], kernel), nn.Conv1d(widths[0], action_size, 1))

    @staticmethod
    def _check(horizon: int, widths: Sequence[int], kernel: int, conditioning: str) -> None:
        coarsest = 2 ** (len(widths) - 1)
        if horizon % coarsest:
            raise UserError(
                expected=f"policy.horizon divisible by {coarsest}, since {len(widths)} widths halve it that often",
                found=f"horizon {horizon}",
                remedy=f"set policy.horizon to a multiple of {coarsest}, or use a transformer network",
            )
        if any(width % GROUPS for width in widths):
            raise UserError(
                expected=f"network.widths divisible by {GROUPS}", found=str(list(widths)), remedy="change them"
            )
        if kernel % 2 == 0:
            raise UserError(expected="an odd network.kernel", found=str(kernel), remedy="use 3 or 5")
        if conditioning not in ("per_position", "global"):
            raise UserError(
                expected="network.conditioning per_position or global", found=conditioning, remedy="use one of the two"
            )

    def _condition(self, level_BH: Tensor, context_BC: Tensor) -> Tensor:
        """[B E H], or [B E 1] where it is global."""
        level_BHL = self.level(level_BH)
        if self.conditioning == "global":
            level_BHL = self.join_levels(level_BHL.flatten(1)).unsqueeze(1)
        context_BHC = context_BC.unsqueeze(1).expand(-1, level_BHL.shape[1], -1)
        level_BHL = level_BHL.expand(context_BC.shape[0], -1, -1)  # `len` would fix an export's batch
        return torch.cat([level_BHL, context_BHC], dim=-1).transpose(1, 2)

    def _halve(self, condition_BEH: Tensor) -> Tensor:
        return condition_BEH if self.conditioning == "global" else F.avg_pool1d(condition_BEH, 2)

    def forward(self, noisy_BHA: Tensor, level_BH: Tensor, context_BC: Tensor) -> Tensor:
        """Prediction [B H A] for noisy actions at levels in 0 (clean) .. 1 (pure noise), [B H], or [1 H] for all.

        A `JumpEmbedding` takes levels from and to, with a last dimension of 2.
        """
        condition = self._condition(level_BH, context_BC)
        conditions = [condition]  # one a resolution, finest first
        for _ in self.down_samples:
            conditions.append(self._halve(conditions[-1]))

        x = noisy_BHA.transpose(1, 2)
        skips = []
        for depth, (first, second) in enumerate(self.down_blocks):
            x = x if depth == 0 else self.down_samples[depth - 1](x)
            x = second(first(x, conditions[depth]), conditions[depth])
            skips.append(x)
        for block in self.middle_blocks:
            x = block(x, conditions[-1])
        for (first, second), up_sample in zip(self.up_blocks, self.up_samples, strict=True):
            condition = conditions[len(skips) - 1]
            x = torch.cat([x, skips.pop()], dim=1)
            x = up_sample(second(first(x, condition), condition))
        return self.action_out(x).transpose(1, 2)
