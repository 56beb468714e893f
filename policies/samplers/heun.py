"""Heun's second-order steps along the velocity of a flow (Karras et al., arXiv 2206.00364, algorithm 1)."""

from __future__ import annotations

from torch import Tensor, nn

from embodied.policies.flow_path import FlowPath
from embodied.policies.programs import Network


class HeunSampler(nn.Module):
    """Two network calls a step, at both of its ends; one in the last, where the velocity is not defined at its end."""

    def __init__(self, network: Network, path: FlowPath, levels: list[Tensor], clip: bool) -> None:
        """`levels`: one more than steps, int64 [H] each, from pure noise to clean."""
        super().__init__()
        self.network = network
        self.clip = clip
        self.s = [(level / path.levels).to(path.signal.device).unsqueeze(0) for level in levels]  # [1 H]

    def forward(self, noise_BHA: Tensor, context_BC: Tensor) -> Tensor:
        x_BHA = noise_BHA
        for s_1H, next_1H in zip(self.s[:-1], self.s[1:], strict=True):
            s, step = s_1H.unsqueeze(-1), (next_1H - s_1H).unsqueeze(-1)
            v_BHA = self._velocity(x_BHA, s_1H, s, context_BC)
            euler_BHA = x_BHA + step * v_BHA
            if next_1H is self.s[-1]:
                return euler_BHA
            next_v_BHA = self._velocity(euler_BHA, next_1H, next_1H.unsqueeze(-1), context_BC)
            x_BHA = x_BHA + step * (v_BHA + next_v_BHA) / 2
        return x_BHA

    def _velocity(self, x_BHA: Tensor, s_1H: Tensor, s: Tensor, context_BC: Tensor) -> Tensor:
        """Toward the clean actions that the network sees, within the data's range if they are to be."""
        v_BHA = self.network(x_BHA, s_1H, context_BC)
        return (x_BHA - (x_BHA - s * v_BHA).clamp(-1.0, 1.0)) / s if self.clip else v_BHA
