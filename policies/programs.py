"""A policy's mathematics as modules that an engine can take as a whole: all network calls of one observation at once.

A program maps tensors to a tuple of tensors; the first dimension of each is the batch.

B batch, H horizon, A action, To history, S state vectors, C context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from embodied.normalize import LimitsNormalizer
from embodied.policies.noise_path import NoisePath

if TYPE_CHECKING:
    from embodied.policies.denoising_policy import DenoisingPolicy

# Noisy actions, their levels, contexts -> prediction.
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class NetworkCall(nn.Module):
    """One call of the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy_BHA: Tensor, level_BH: Tensor, context_BC: Tensor) -> tuple[Tensor]:
        return (self.network(noisy_BHA, level_BH, context_BC),)


def normalized_state(state_BTS: Tensor, normalizer: LimitsNormalizer, seen_S: Tensor) -> Tensor:
    """The elements of the state vectors that an encoder sees, normalised."""
    normal_BTS = normalizer.normalize(state_BTS)
    return normal_BTS if len(seen_S) == state_BTS.shape[-1] else normal_BTS[..., seen_S]


class ContextEncoder(nn.Module):
    """State vectors as the task has them and images, a camera each in the order of the policy's inputs, to contexts."""

    def __init__(self, policy: DenoisingPolicy) -> None:
        super().__init__()
        self.state_normalizer = policy.state_normalizer
        self.encoder = policy.encoder
        self.seen = policy.seen
        self.cameras = [camera.name for camera in policy.inputs.cameras]

    def forward(self, state_BTS: Tensor, *images: Tensor) -> tuple[Tensor]:
        normal_BTS = normalized_state(state_BTS, self.state_normalizer, self.seen)
        return (self.encoder(normal_BTS, dict(zip(self.cameras, images, strict=True)), None),)


class DenoiseLoop(nn.Module):
    """From one vector of levels down to another through those between, one network call a move.

    The levels are constants of the module: an engine that folds constants embeds them once and for all.
    """

    fraction_K1H: Tensor

    def __init__(self, network: Network, path: NoisePath, levels: Sequence[Tensor], clip: bool) -> None:
        """
        Args:
            levels: K + 1 vectors, int64 [H] each, the last one where the moves end.
            clip: keep predicted clean actions within [-1, 1].
        """
        super().__init__()
        self.network = network
        device = path.signal.device
        fractions = torch.stack([level / path.levels for level in levels[:-1]]).unsqueeze(1)
        self.register_buffer("fraction_K1H", fractions.to(device), persistent=False)
        pairs = pairwise([level.to(device) for level in levels])
        self.moves = nn.ModuleList(path.move(level, below, clip) for level, below in pairs)

    def forward(self, x_BHA: Tensor, context_BC: Tensor) -> Tensor:
        for call, move in enumerate(self.moves):
            x_BHA = move(x_BHA, self.network(x_BHA, self.fraction_K1H[call], context_BC))
        return x_BHA


class ObservationStep(nn.Module):
    """A sampler with what stands before and behind it: the encoder, if it is to be part of it, and the units."""

    def __init__(self, sampler: nn.Module, normalizer: LimitsNormalizer, encoder: ContextEncoder | None) -> None:
        super().__init__()
        self.sampler = sampler
        self.normalizer = normalizer
        self.encoder = encoder

    def forward(self, x_BHA: Tensor, condition: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            condition: contexts [B C], or with an encoder the histories of state vectors [B To S].
            x_BHA, inputs: the sampler's first and further ones.

        Returns:
            what the sampler gives, normalised and in the units of the learned actions.
        """
        context_BC = condition if self.encoder is None else self.encoder(condition)[0]
        x_BHA = self.sampler(x_BHA, context_BC, *inputs)
        return x_BHA, self.normalizer.denormalize(x_BHA)
