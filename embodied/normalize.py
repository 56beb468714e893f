"""Scaling of observations and actions by the statistics that travel in the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embodied.types import Statistics

# A range below this is a constant with float noise on it: scaling it up would only amplify the noise.
SMALLEST_RANGE = 1e-4


class LimitsNormalizer(nn.Module):
    """Maps each element's [minimum, maximum] over the data to [-1, 1] (Diffusion Policy, arXiv 2303.04137, sec. VI).

    An element that never varies in the data is mapped to 0 with scale 1.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("offset", torch.zeros(size))

    @torch.no_grad()
    def fit(self, statistics: Statistics, tied: Sequence[Sequence[int]] = ()) -> None:
        """Take scale and offset from `statistics` ([d] each, d as given to the constructor).

        The elements of each group in `tied` share one scale, that of the widest among them.
        """
        minimum = torch.tensor(statistics.minimum, dtype=torch.float64)
        maximum = torch.tensor(statistics.maximum, dtype=torch.float64)
        for group in map(list, tied):
            centre, span = (minimum + maximum)[group] / 2, (maximum - minimum)[group].max()
            minimum[group], maximum[group] = centre - span / 2, centre + span / 2
        constant = maximum - minimum < SMALLEST_RANGE
        scale = torch.where(constant, 1.0, 2.0 / (maximum - minimum).clamp_min(SMALLEST_RANGE))
        self.scale.copy_(scale)
        self.offset.copy_(torch.where(constant, -(minimum + maximum) / 2.0, -1.0 - minimum * scale))

    def normalize(self, x: Tensor) -> Tensor:
        """[... d] in the data's units to [... d], within [-1, 1] for values within the data's limits."""
        return torch.addcmul(self.offset, x, self.scale)

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return (x - self.offset) / self.scale
