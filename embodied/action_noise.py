"""Noise on executed actions: of demonstrations, and of an evaluation whose robot does not do exactly as it is told."""

from __future__ import annotations

import numpy as np

from embodied.types import ActionSpec


def bounded_noise(
    spec: ActionSpec, noise: float, noise_bound: float, seed: int, start_id: int, steps: int
) -> np.ndarray:
    """Noise for every step of one episode, float32 [steps A]: Gaussian, cut at the bound, none on binary elements.

    Args:
        noise: standard deviation, as a share of half the action range.
        noise_bound: no value is larger, same unit.
        seed: with `start_id` that of the episode's own stream.
    """
    generator = np.random.default_rng([seed, start_id])
    values = noise * generator.standard_normal((steps, spec.size))
    return (np.clip(values, -noise_bound, noise_bound) * half_ranges(spec)).astype(np.float32)


def half_ranges(spec: ActionSpec) -> np.ndarray:
    """Half of each element's range, float64 [A]; 0 where it is binary."""
    return np.where(spec.binary, 0.0, (np.asarray(spec.high) - np.asarray(spec.low)) / 2)
