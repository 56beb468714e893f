"""Noise as a pure function of integers, so that a session's randomness needs no hidden generator."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor


def mixed_seed(*key: int) -> int:
    """A well mixed 32-bit seed: torch's CPU generator looks at no more bits."""
    return zlib.crc32(struct.pack(f"<{len(key)}q", *key))


def seeded_normal(shape: Sequence[int], *key: int) -> Tensor:
    """N(0, 1) of `shape`, float32 on the CPU; equal keys give equal values, whatever was drawn before."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(mixed_seed(*key)))


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) of x's shape on x's device, drawn on the CPU so that every device sees the same values."""
    return torch.randn(x.shape, generator=generator).to(x.device, non_blocking=True)
