"""Meshes of things that are round about an axis."""

from __future__ import annotations

import numpy as np


def turned(profile: np.ndarray, sides: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """The surface that a profile sweeps about the z axis.

    Args:
        profile: radius and height of its corners, float64 [P 2]; outwards on the right as it goes upwards outside.
        sides: of the polygon that stands for a circle.

    Returns:
        Vertices float64 [P * sides 3] and triangles int64 [F 3], counter-clockwise seen from outside.
    """
    angles = 2 * np.pi * np.arange(sides) / sides
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rings = profile[:, None, :1] * circle  # [P sides 2]
    heights = np.broadcast_to(profile[:, None, 1:], (len(profile), sides, 1))
    vertices = np.concatenate([rings, heights], axis=2).reshape(-1, 3)
    ring, side = np.meshgrid(np.arange(len(profile) - 1), np.arange(sides), indexing="ij")
    low, low_next = ring * sides + side, ring * sides + (side + 1) % sides
    high, high_next = low + sides, low_next + sides
    triangles = np.concatenate(
        [np.stack([low, low_next, high_next], axis=-1), np.stack([low, high_next, high], axis=-1)], axis=0
    ).reshape(-1, 3)
    corners = vertices[triangles]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    return vertices, triangles[area > 1e-12]
