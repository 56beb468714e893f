"""Diffusion Policy (arXiv 2303.04137): every observation starts from pure noise and is denoised to a clean chunk.

B batch, H horizon, A action; levels run 0 (clean) .. N (pure noise), the same for all positions of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from embodied.catalog import STATE_ENCODER
from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.seeded_noise import seeded_normal
from embodied.types import ActionChunk, Observation, TaskSpec


@dataclass(frozen=True)
class DiffusionState:
    """All that lasts between two observations: which noise comes next."""

    seed: int
    observations: int = 0


class DiffusionPolicy(DenoisingPolicy):
    """Chunks from pure noise by DDIM-k (arXiv 2010.02502) or by ancestral sampling over all N levels."""

    run_time_settings = ("sampler", "calls")

    def __init__(
        self,
        spec: TaskSpec,
        network: Mapping[str, Any],
        encoder: Mapping[str, Any] = STATE_ENCODER,
        *,
        history: int,
        horizon: int,
        action_steps: int,
        past: int,
        levels: int,
        clip: bool,
        sampler: Literal["ddim", "ddpm"],
        calls: int,
        actions: Mapping[str, Any] | None = None,
    ) -> None:
        """`sampler` and `calls` may be changed later by `configure`; the rest is as in `DenoisingPolicy`."""
        super().__init__(
            spec,
            network,
            encoder,
            history=history,
            horizon=horizon,
            action_steps=action_steps,
            past=past,
            levels=levels,
            clip=clip,
            actions=actions,
        )
        self.sampler = sampler
        self.calls = calls
        self.prepare()

    def prepare(self) -> None:
        levels = self.path.levels
        if self.sampler not in ("ddim", "ddpm"):
            raise UserError(
                expected="policy.sampler ddim or ddpm", found=str(self.sampler), remedy="use one of the two"
            )
        if not 1 <= self.calls <= levels:
            raise UserError(
                expected=f"policy.calls between 1 and policy.levels ({levels})",
                found=str(self.calls),
                remedy="change policy.calls",
            )
        if self.sampler == "ddpm" and self.calls != levels:
            raise UserError(
                expected=f"policy.calls={levels} with sampler ddpm, which visits every level",
                found=str(self.calls),
                remedy="use policy.sampler=ddim for fewer calls",
            )

    @property
    def label(self) -> str:
        return f"{self.sampler}-{self.calls}{self.actions.suffix}"

    @property
    def calls_per_observation(self) -> int:
        return self.calls

    @property
    def first_observation_calls(self) -> int:
        return self.calls

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Noise-prediction error at one uniformly drawn level a sample (arXiv 2303.04137, eq. 3)."""
        level_B = torch.randint(1, self.path.levels + 1, (len(batch),), generator=generator)
        level_BH = level_B.unsqueeze(1).expand(-1, self.horizon).to(batch.action_BHA.device)
        return self.noise_error(batch, level_BH, generator)

    def sample(self, noise_BHA: Tensor, context_BC: Tensor, fresh_noise_BNHA: Tensor | None = None) -> Tensor:
        """Pure noise to clean, normalised chunks [B H A] in `calls` network calls.

        `fresh_noise_BNHA` is what ancestral sampling adds on the way, entry n on leaving level n + 1.
        """
        levels = [self.path.levels * (self.calls - call) // self.calls for call in range(self.calls + 1)]
        x_BHA = noise_BHA
        for level, next_level in pairwise(levels):
            level_H = torch.full((self.horizon,), level, device=x_BHA.device)
            fraction_BH = (level_H / self.path.levels).expand(len(x_BHA), -1)
            predicted_BHA = self.network(x_BHA, fraction_BH, context_BC)
            if fresh_noise_BNHA is not None:
                fresh_BHA = fresh_noise_BNHA[:, level - 1]
                x_BHA = self.path.ddpm_step(x_BHA, predicted_BHA, level, fresh_BHA, self.clip)
            else:
                next_level_H = torch.full_like(level_H, next_level)
                x_BHA = self.path.ddim(level_H, next_level_H, self.clip)(x_BHA, predicted_BHA)
        return x_BHA

    def initial_state(self, seed: int) -> DiffusionState:
        return DiffusionState(seed)

    @torch.inference_mode()
    def step(
        self,
        histories: Sequence[Sequence[Observation]],
        states: Sequence[DiffusionState],
        executed: Sequence[int],
    ) -> tuple[list[ActionChunk], list[DiffusionState]]:
        """One chunk a session, each from its own noise; nothing is carried over but the count of observations."""
        draws = 1 + (self.path.levels if self.sampler == "ddpm" else 0)
        shape = (draws, self.horizon, self.actions.size)
        noise = torch.stack([seeded_normal(shape, state.seed, state.observations) for state in states]).to(self.device)
        fresh = noise[:, 1:] if self.sampler == "ddpm" else None
        buffer_BHA = self.sample(noise[:, 0], self.encode(histories), fresh)
        clean = np.zeros(self.horizon - self.past - self.action_steps, np.float32)
        chunks = self.chunks(buffer_BHA, histories, self.anchors(histories), self.calls, clean)
        return chunks, [DiffusionState(state.seed, state.observations + 1) for state in states]
