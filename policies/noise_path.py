"""The DDPM noise path, with a level of its own for every position of a buffer.

Levels run 0 (clean) .. N (pure noise); level n is train timestep n - 1 of the DDPM paper's numbering. diffusers'
schedulers take one level for a whole sample; at constant levels this path equals them.

B batch, H horizon, A action. `level` arguments are integer tensors that broadcast to [B H].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LARGEST_BETA = 0.999


def squared_cosine_alpha_bar(levels: int) -> Tensor:
    """Share of signal variance at levels 0 .. N, float64 [N + 1] (Nichol & Dhariwal, arXiv 2102.09672, eq. 17)."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f((i + 1) / levels) / f(i / levels), LARGEST_BETA) for i in range(levels)]
    alphas = torch.tensor([1.0] + [1 - beta for beta in betas], dtype=torch.float64)
    return torch.cumprod(alphas, 0)


@dataclass(frozen=True)
class Ddim:
    """The coefficients of one DDIM move (eta 0) between two vectors of levels; tensors [H 1]."""

    clean_from_noisy: Tensor
    clean_from_noise: Tensor
    signal: Tensor
    noise: Tensor
    moves: Tensor | None  # bool; None when every position moves
    clip: bool

    def __call__(self, noisy_BHA: Tensor, predicted_noise_BHA: Tensor) -> Tensor:
        """DDIM, arXiv 2010.02502, eq. 12 with sigma 0. A position whose level does not fall is returned as it came."""
        clean_BHA = torch.addcmul(noisy_BHA * self.clean_from_noisy, predicted_noise_BHA, self.clean_from_noise)
        if self.clip:
            clean_BHA = clean_BHA.clamp(-1.0, 1.0)
        moved_BHA = torch.addcmul(predicted_noise_BHA * self.noise, clean_BHA, self.signal)
        return moved_BHA if self.moves is None else torch.where(self.moves, moved_BHA, noisy_BHA)


class NoisePath(nn.Module):
    """x_n = sqrt(alpha_bar_n) * clean + sqrt(1 - alpha_bar_n) * noise."""

    alpha_bar: Tensor

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        # Not persistent: it is a function of the configuration, which travels with the weights.
        self.register_buffer("alpha_bar", squared_cosine_alpha_bar(levels), persistent=False)

    def _scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self.alpha_bar[level].unsqueeze(-1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def add_noise(self, clean_BHA: Tensor, noise_BHA: Tensor, level_BH: Tensor) -> Tensor:
        """Clean actions at the given levels."""
        signal, noise = self._scales(level_BH)
        return signal.float() * clean_BHA + noise.float() * noise_BHA

    def raising(self, level_H: Tensor, to_level_H: Tensor) -> tuple[Tensor, Tensor]:
        """Scales [H 1] of what is there and of fresh noise that take levels up to `to_level_H` (never down).

        The forward process between two levels: x_m = sqrt(r) x_n + sqrt(1 - r) noise, r = alpha_bar_m / alpha_bar_n.
        """
        ratio = (self.alpha_bar[to_level_H] / self.alpha_bar[level_H]).unsqueeze(-1)
        return ratio.sqrt().float(), (1 - ratio).sqrt().float()

    def ddim(self, level_H: Tensor, next_level_H: Tensor, clip: bool) -> Ddim:
        """The move from one vector of levels to a lower one."""
        signal, noise = self._scales(level_H)
        next_signal, next_noise = self._scales(next_level_H)
        moves = (level_H > next_level_H).unsqueeze(-1)
        return Ddim(
            clean_from_noisy=(1 / signal).float(),
            clean_from_noise=(-noise / signal).float(),
            signal=next_signal.float(),
            noise=next_noise.float(),
            moves=None if bool(moves.all()) else moves,
            clip=clip,
        )

    def ddpm_step(
        self, noisy_BHA: Tensor, predicted_noise_BHA: Tensor, level: int, fresh_noise_BHA: Tensor, clip: bool
    ) -> Tensor:
        """One ancestral step from `level` to `level - 1` (DDPM, arXiv 2006.11239, eq. 6-7; the smaller variance)."""
        alpha_bar, next_alpha_bar = float(self.alpha_bar[level]), float(self.alpha_bar[level - 1])
        alpha = alpha_bar / next_alpha_bar
        clean_BHA = (noisy_BHA - math.sqrt(1 - alpha_bar) * predicted_noise_BHA) / math.sqrt(alpha_bar)
        if clip:
            clean_BHA = clean_BHA.clamp(-1.0, 1.0)
        clean_share = math.sqrt(next_alpha_bar) * (1 - alpha) / (1 - alpha_bar)
        noisy_share = math.sqrt(alpha) * (1 - next_alpha_bar) / (1 - alpha_bar)
        variance = (1 - next_alpha_bar) / (1 - alpha_bar) * (1 - alpha)
        return clean_share * clean_BHA + noisy_share * noisy_BHA + math.sqrt(variance) * fresh_noise_BHA
