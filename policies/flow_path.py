"""The linear path of flow matching (arXiv 2210.02747, sec. 4.1; rectified flow, arXiv 2209.03003).

x_s = (1 - s) * clean + s * noise with s = n / N, and the network predicts the velocity dx/ds = noise - clean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embodied.policies.noise_path import NoisePath, Prediction


class FlowPath(NoisePath):
    """A move of this path is Euler's step x + (s' - s) v, unless the clean actions that v points to are clipped."""

    name = "flow"
    suffix = " flow"

    def __init__(self, levels: int) -> None:
        s = torch.arange(levels + 1, dtype=torch.float64) / levels
        super().__init__(1 - s, s)

    def target(self, clean_BHA: Tensor, noise_BHA: Tensor) -> Tensor:
        return noise_BHA - clean_BHA

    def prediction(self, level_H: Tensor) -> Prediction:
        signal, noise = self.scales(level_H)
        one = torch.ones_like(signal)
        return Prediction(one, -noise, one, signal)

    def velocity(self, clean_BHA: Tensor, noise_BHA: Tensor, level_BH: Tensor) -> Tensor:
        return noise_BHA - clean_BHA

    def velocity_prediction(self, level_H: Tensor) -> Prediction:
        return self.prediction(level_H)
