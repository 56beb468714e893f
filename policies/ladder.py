"""The levels that a streaming buffer passes through (Streaming Diffusion Policy, arXiv 2406.04806)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ladder:
    """Which position of the buffer is at which level, at which call of a cycle.

    `past` leading positions lie before the newest observation and belong to chunk 0; trailing positions that fill no
    chunk share the last chunk's level. With a `prefix` of d > 0 actions, those that will be executed while the policy
    thinks are known: they and the past are clean throughout, and chunk 0 begins behind them.
    """

    horizon: int  # Tp
    action_steps: int  # Ta
    past: int
    levels: int  # N
    prefix: int = 0  # d

    @property
    def head(self) -> int:
        """Where chunk 0's actions begin."""
        return self.past + self.prefix

    @property
    def chunks(self) -> int:
        """h"""
        return (self.horizon - self.head) // self.action_steps

    @property
    def most_calls(self) -> int:
        """The largest k: with more, the head chunk would be asked to stand still."""
        return self.levels // self.chunks

    def at(self, done: int, k: int) -> Tensor:
        """Levels after `done` of a cycle's k calls, int64 [H]: floor(N (i + 1 - done / k) / h), in exact integers."""
        position = torch.arange(self.horizon)
        chunk = ((position - self.head).clamp_min(0) // self.action_steps).clamp_max(self.chunks - 1)
        levels = self.levels * (k * (chunk + 1) - done) // (k * self.chunks)
        return torch.where(position < self.head, 0, levels) if self.prefix else levels

    def cycle(self, k: int) -> list[Tensor]:
        """The k + 1 vectors of levels of one observation, int64 [H] each."""
        return [self.at(call, k) for call in range(k + 1)]

    def visited(self) -> Tensor:
        """Every distinct vector of levels at which some k calls the network, int64 [M H].

        Where h divides N these are the start levels minus j, j = 0 .. N/h - 1, as in the paper's training. Where it
        does not, no common offset describes them.
        """
        vectors = {tuple(level.tolist()) for k in range(1, self.most_calls + 1) for level in self.cycle(k)[:-1]}
        return torch.tensor(sorted(vectors))
