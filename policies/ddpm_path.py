"""The path of DDPM (arXiv 2006.11239): signal and noise variance add up to 1, and the network predicts the noise.

Level n is train timestep n - 1 of the paper's numbering.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from embodied.policies.noise_path import NoisePath, Prediction

LARGEST_BETA = 0.999


def squared_cosine_alpha_bar(levels: int) -> Tensor:
    """Share of signal variance at levels 0 .. N, float64 [N + 1] (Nichol & Dhariwal, arXiv 2102.09672, eq. 17)."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f((i + 1) / levels) / f(i / levels), LARGEST_BETA) for i in range(levels)]
    alphas = torch.tensor([1.0] + [1 - beta for beta in betas], dtype=torch.float64)
    return torch.cumprod(alphas, 0)


class DdpmPath(NoisePath):
    """x_n = sqrt(alpha_bar_n) * clean + sqrt(1 - alpha_bar_n) * noise."""

    name = "ddpm"
    suffix = ""

    def __init__(self, levels: int) -> None:
        alpha_bar = squared_cosine_alpha_bar(levels)
        super().__init__(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)

    def target(self, clean_BHA: Tensor, noise_BHA: Tensor) -> Tensor:
        return noise_BHA

    def prediction(self, level_H: Tensor) -> Prediction:
        signal, noise = self.scales(level_H)
        return Prediction(1 / signal, -noise / signal, torch.zeros_like(signal), torch.ones_like(signal))

    def velocity(self, clean_BHA: Tensor, noise_BHA: Tensor, level_BH: Tensor) -> Tensor:
        """v = signal * noise - noise scale * clean (arXiv 2202.00512, sec. 4): the noise at level 0, -clean at N."""
        signal, noise = self.scales(level_BH)
        return signal.float() * noise_BHA - noise.float() * clean_BHA

    def velocity_prediction(self, level_H: Tensor) -> Prediction:
        """A turn by the angle whose cosine is the signal (ibid., appendix D): clean = signal x - noise scale v."""
        signal, noise = self.scales(level_H)
        return Prediction(signal, -noise, noise, signal)

    def ancestral_step(
        self, noisy_BHA: Tensor, predicted_noise_BHA: Tensor, level: int, fresh_noise_BHA: Tensor, clip: bool
    ) -> Tensor:
        """One step from `level` to `level - 1` (DDPM, eq. 6-7; the smaller variance)."""
        alpha_bar, next_alpha_bar = float(self.alpha_bar[level]), float(self.alpha_bar[level - 1])
        alpha = alpha_bar / next_alpha_bar
        clean_BHA = (noisy_BHA - math.sqrt(1 - alpha_bar) * predicted_noise_BHA) / math.sqrt(alpha_bar)
        if clip:
            clean_BHA = clean_BHA.clamp(-1.0, 1.0)
        clean_share = math.sqrt(next_alpha_bar) * (1 - alpha) / (1 - alpha_bar)
        noisy_share = math.sqrt(alpha) * (1 - next_alpha_bar) / (1 - alpha_bar)
        variance = (1 - next_alpha_bar) / (1 - alpha_bar) * (1 - alpha)
        return clean_share * clean_BHA + noisy_share * noisy_BHA + math.sqrt(variance) * fresh_noise_BHA
