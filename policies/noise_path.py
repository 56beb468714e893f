"""Between clean actions and noise: x_n = signal_n * clean + noise_n * z, with a level for every position of a buffer.

Levels run 0 (clean) .. N (pure noise). diffusers' schedulers take one level for a whole sample; at constant levels
these paths equal them (`tests/test_noise_path.py`, `tests/test_flow_path.py`).

B batch, H horizon, A action. `level` arguments are integer tensors that broadcast to [B H].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Prediction:
    """What a network's prediction p says at given levels: two linear maps of (x, p), tensors [H 1] in float64."""

    clean_from_noisy: Tensor
    clean_from_predicted: Tensor
    noise_from_noisy: Tensor
    noise_from_predicted: Tensor


class Move(nn.Module):
    """A deterministic move between two vectors of levels, tensors [H 1].

    The clean actions that the prediction stands for, clipped if they are to be, are noised to the lower level with the
    noise that it stands for. A position whose level does not fall is returned as it came.
    """

    clean_from_noisy: Tensor
    clean_from_predicted: Tensor
    next_from_clean: Tensor
    next_from_noisy: Tensor
    next_from_predicted: Tensor

    def __init__(self, *, clip: bool, **coefficients: Tensor) -> None:
        """`coefficients` are the tensors above, by name."""
        super().__init__()
        self.clip = clip
        for name, coefficient_H1 in coefficients.items():
            self.register_buffer(name, coefficient_H1.float(), persistent=False)

    def forward(self, noisy_BHA: Tensor, predicted_BHA: Tensor) -> Tensor:
        clean_BHA = torch.addcmul(noisy_BHA * self.clean_from_noisy, predicted_BHA, self.clean_from_predicted)
        if self.clip:
            clean_BHA = clean_BHA.clamp(-1.0, 1.0)
        moved_BHA = torch.addcmul(noisy_BHA * self.next_from_noisy, predicted_BHA, self.next_from_predicted)
        return torch.addcmul(moved_BHA, clean_BHA, self.next_from_clean)


class NoisePath(nn.Module, ABC):
    """`signal` and `noise` are the scales of levels 0 .. N, float64 [N + 1]."""

    name: ClassVar[str]
    suffix: ClassVar[str]  # of a policy's label
    signal: Tensor
    noise: Tensor

    def __init__(self, signal: Tensor, noise: Tensor) -> None:
        super().__init__()
        self.levels = len(signal) - 1
        # Not persistent: they are functions of the configuration, which travels with the weights.
        self.register_buffer("signal", signal, persistent=False)
        self.register_buffer("noise", noise, persistent=False)

    @abstractmethod
    def target(self, clean_BHA: Tensor, noise_BHA: Tensor) -> Tensor:
        """What the network learns to predict."""

    @abstractmethod
    def prediction(self, level_H: Tensor) -> Prediction:
        """What it has said when it has predicted, at levels above 0."""

    @abstractmethod
    def velocity(self, clean_BHA: Tensor, noise_BHA: Tensor, level_BH: Tensor) -> Tensor:
        """Of a point along the path: what tells clean actions and noise apart, equally well at every level."""

    @abstractmethod
    def velocity_prediction(self, level_H: Tensor) -> Prediction:
        """What a predicted velocity has said, at any level."""

    def evenly_spaced(self, calls: int) -> list[int]:
        """The levels that so many calls begin at, from pure noise, and 0."""
        return [self.levels * (calls - call) // calls for call in range(calls + 1)]

    def scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise, [... 1] for levels [...]."""
        return self.signal[level].unsqueeze(-1), self.noise[level].unsqueeze(-1)

    def add_noise(self, clean_BHA: Tensor, noise_BHA: Tensor, level_BH: Tensor) -> Tensor:
        """Clean actions at the given levels."""
        signal, noise = self.scales(level_BH)
        return signal.float() * clean_BHA + noise.float() * noise_BHA

    def raising(self, level_H: Tensor, to_level_H: Tensor) -> tuple[Tensor, Tensor]:
        """Scales [H 1] of what is there and of fresh noise that take levels up to `to_level_H` (never down).

        The forward process between levels n and m: x_m = r x_n + sqrt(noise_m^2 - r^2 noise_n^2) z, r the ratio of
        their signals.
        """
        signal, noise = self.scales(level_H)
        to_signal, to_noise = self.scales(to_level_H)
        stays = (level_H == to_level_H).unsqueeze(-1)  # also at pure noise, where there may be no signal to divide by
        ratio = torch.where(stays, 1.0, to_signal / torch.where(stays, 1.0, signal))
        fresh = (to_noise.square() - (ratio * noise).square()).clamp_min(0.0).sqrt()
        return ratio.float(), torch.where(stays, 0.0, fresh).float()

    def move(self, level_H: Tensor, next_level_H: Tensor, clip: bool) -> Move:
        """From one vector of levels to a lower one: DDIM (arXiv 2010.02502, eq. 12 with sigma 0), on any path."""
        return self._moved(self.prediction(level_H), level_H, next_level_H, clip)

    def jump(self, level_H: Tensor, next_level_H: Tensor, clip: bool) -> Move:
        """The same of a predicted velocity: the parametrisation of a flow map.

        x_s = signal_s * clean + noise_s * (x_t - signal_t * clean) / noise_t, where clean is what the velocity says.
        The coefficients are finite at every level, and a jump from a level to itself gives x_t whatever is predicted.
        """
        return self._moved(self.velocity_prediction(level_H), level_H, next_level_H, clip)

    def _moved(self, said: Prediction, level_H: Tensor, next_level_H: Tensor, clip: bool) -> Move:
        falls = (level_H > next_level_H).unsqueeze(-1)
        next_signal, next_noise = self.scales(next_level_H)
        return Move(
            clean_from_noisy=said.clean_from_noisy,
            clean_from_predicted=said.clean_from_predicted,
            next_from_clean=torch.where(falls, next_signal, 0.0),
            next_from_noisy=torch.where(falls, next_noise * said.noise_from_noisy, 1.0),
            next_from_predicted=torch.where(falls, next_noise * said.noise_from_predicted, 0.0),
            clip=clip,
        )
