"""Responsive Noise-Relaying Diffusion Policy (RNR-DP): one network call and one action an observation.

The streaming buffer with chunks of a single action, Ta = 1, and k = 1: position i is at level floor(N (i + 1) / h) when
an observation comes. One call lowers every position to where the one before it began; the head, now clean, is executed,
and pure noise comes in at the end. Every executed action is conditioned on the newest observation.

    start-up   N       N       ...   N           pure noise
               N(h-1)/h  N     ...   N           h - 1 calls on the first observation
    cycle      N/h     2N/h    ...   N           one call an observation
    after it   0       N/h     ...   N(h-1)/h

B batch, H buffer length (Tp), A action; h = Tp - past; levels run 0 (clean) .. N (pure noise).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from embodied.catalog import STATE_ENCODER
from embodied.errors import UserError
from embodied.policies.programs import DenoiseLoop, Network
from embodied.policies.sdp import StreamingDiffusionPolicy, never_whole
from embodied.types import Json, TaskSpec


class NoiseRelayingPolicy(StreamingDiffusionPolicy):
    """A streaming policy that starts from pure noise, one rung of the ladder a call."""

    name = "rnr"
    run_time_settings = ("engine",)

    def __init__(
        self,
        spec: TaskSpec,
        network: Mapping[str, Any],
        encoder: Mapping[str, Any] = STATE_ENCODER,
        *,
        history: int,
        horizon: int,
        past: int,
        levels: int,
        clip: bool,
        random_levels: float,
        path: str = "ddpm",
        actions: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            horizon: Tp, length of the buffer; at most N + past.
            random_levels: share of training samples with a level of its own at every position; the rest are at the
                levels of the cycle.
            the rest: as in `DenoisingPolicy`.
        """
        super().__init__(
            spec,
            network,
            encoder,
            history=history,
            horizon=horizon,
            action_steps=1,
            past=past,
            levels=levels,
            clip=clip,
            k=1,
            initialization="zero",  # not used: `fresh_buffer` and `first_observation_calls` are this class's own
            initial_calls=1,
            chunkwise=1.0,
            path=path,
            actions=actions,
        )
        if not 0.0 < random_levels <= 1.0:
            raise UserError(
                expected="policy.random_levels above 0, since the start-up leaves the levels of a cycle, and at most 1",
                found=str(random_levels),
                remedy="use policy.random_levels=0.6",
            )
        self.random_levels = random_levels

    @classmethod
    def as_whole_chunks(cls, settings: Json) -> Json:
        """Levels are independent or on the ladder, hardly ever all the same."""
        raise never_whole(f"policy={cls.name}")

    @property
    def label(self) -> str:
        return f"rnr{self.path.suffix}{self.label_suffix}"

    @property
    def first_observation_calls(self) -> int:
        """The start-up's h - 1, and the one that every observation takes."""
        return self.ladder.chunks

    def start_up(self) -> list[Tensor]:
        """The h + 1 vectors of levels from pure noise to the end of the first cycle, int64 [H] each.

        After j calls a position is where the ladder wants it h - j cycles before the head is clean, at most at N.
        """
        h, N = self.ladder.chunks, self.path.levels
        return [self.ladder.at(done, 1).clamp_max(N) for done in range(1 - h, 2)]

    def training_levels(self, samples: int, generator: torch.Generator) -> Tensor:
        """A share at independent levels, which the start-up needs, the rest where a cycle begins; int64 [B H]."""
        random_BH = torch.randint(1, self.path.levels + 1, (samples, self.horizon), generator=generator)
        is_random_B = torch.rand(samples, generator=generator) < self.random_levels
        return torch.where(is_random_B.unsqueeze(1), random_BH, self.ladder.at(0, 1))

    def fresh_buffer(self, network: Network) -> nn.Module:
        return _StartUp(DenoiseLoop(network, self.path, self.start_up(), self.clip))


class _StartUp(nn.Module):
    """Pure noise, lowered until the head is clean."""

    def __init__(self, loop: DenoiseLoop) -> None:
        super().__init__()
        self.loop = loop

    def forward(self, noise_B2HA: Tensor, context_BC: Tensor) -> Tensor:
        return self.loop(noise_B2HA[:, 0], context_BC)
