"""A 1-D transformer over action positions, each with its own noise level.

B batch, H horizon, A action, C context, W width; R the B * H positions of a batch, as rows. Everything but attention
treats rows alike, and engines add the bias within the product of two matrices, not of three-dimensional tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embodied.errors import UserError
from embodied.policies.networks.conditioning import LevelEmbedding


class Block(nn.Module):
    """Attention and feed-forward, each modulated by adaptive layer norm (DiT, arXiv 2212.09748, sec. 3.2).

    The modulation is computed once for all blocks, and each block adds a table of its own to it (adaLN-single,
    PixArt-alpha, arXiv 2310.00426, sec. 2.3): with one condition a position, a linear layer a block would be a third
    of the network's cost.
    """

    def __init__(self, width: int, heads: int, horizon: int) -> None:
        super().__init__()
        self.head_shape = (-1, horizon, heads, width // heads)
        self.modulation_table = nn.Parameter(torch.zeros(6, width))
        neutral_6W = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0]).unsqueeze(1).repeat(1, width)  # scales are around 1
        self.register_buffer("neutral_6W", neutral_6W, persistent=False)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x_RW: Tensor, modulation_R6W: Tensor) -> Tensor:
        modulation_R6W = modulation_R6W + (self.modulation_table + self.neutral_6W).flatten()
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation_R6W.chunk(6, dim=-1)
        y = torch.addcmul(shift_1, F.layer_norm(x_RW, x_RW.shape[-1:]), scale_1)
        x_RW = torch.addcmul(x_RW, gate_1, self.attention_out(self._attention(y)))
        y = torch.addcmul(shift_2, F.layer_norm(x_RW, x_RW.shape[-1:]), scale_2)
        y = self.contract(F.gelu(self.expand(y), approximate="tanh"))
        return torch.addcmul(x_RW, gate_2, y)

    def _attention(self, y_RW: Tensor) -> Tensor:
        """Among the positions of each chunk."""
        parts = self.query_key_value(y_RW).chunk(3, dim=-1)
        query, key, value = (part.reshape(self.head_shape).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2).reshape(-1, y_RW.shape[-1])


class Transformer1d(nn.Module):
    """Predicts the noise in a chunk of actions, given each position's level and the observation's context."""

    def __init__(
        self,
        action_size: int,
        context_size: int,
        horizon: int,
        width: int,
        depth: int,
        heads: int,
        level_embedding: type[LevelEmbedding] = LevelEmbedding,
    ) -> None:
        """`level_embedding`: of what the network is told of each position's level."""
        super().__init__()
        if width % heads:
            raise UserError(
                expected="network.width divisible by network.heads",
                found=f"width {width}, heads {heads}",
                remedy="change one of them",
            )
        self.action_in = nn.Linear(action_size, width)
        self.position = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.level = level_embedding(width)
        self.context = nn.Sequential(nn.Linear(context_size, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, heads, horizon) for _ in range(depth))
        self.out_modulation = nn.Linear(width, 2 * width)
        self.action_out = nn.Linear(width, action_size)
        # Every block starts as the identity (DiT's adaLN-zero).
        for layer in (self.modulation, self.out_modulation, self.action_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, noisy_BHA: Tensor, level_BH: Tensor, context_BC: Tensor) -> Tensor:
        """Prediction [B H A] for noisy actions at levels in 0 (clean) .. 1 (pure noise), [B H], or [1 H] for all.

        A `JumpEmbedding` takes levels from and to, with a last dimension of 2.
        """
        condition_BHW = F.silu(self.level(level_BH) + self.context(context_BC).unsqueeze(-2))
        condition_RW = condition_BHW.reshape(-1, condition_BHW.shape[-1])
        modulation_R6W = self.modulation(condition_RW)
        x_BHW = self.action_in(noisy_BHA) + self.position
        x_RW = x_BHW.reshape(-1, x_BHW.shape[-1])
        for block in self.blocks:
            x_RW = block(x_RW, modulation_R6W)
        shift, scale = self.out_modulation(condition_RW).chunk(2, dim=-1)
        y_RW = torch.addcmul(shift, F.layer_norm(x_RW, x_RW.shape[-1:]), 1 + scale)
        return self.action_out(y_RW).reshape(-1, *noisy_BHA.shape[1:])
