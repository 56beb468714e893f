"""Meshes without repeated corners, and coded so that a general compressor does well on them. Nothing is lost.

Letters: V vertices, F faces, n elements.
"""

from __future__ import annotations

import numpy as np


def weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same triangles over each distinct corner once, numbered in the order in which the faces first use them.

    Model files repeat a corner for every normal and texture coordinate; a drawing by faces needs it once.

    Args:
        vertices: float32 [V 3], m.
        faces: uint32 [F 3], indices below V.

    Returns:
        float32 [W 3] and uint32 [F 3], with `new_vertices[new_faces]` bit-equal to `vertices[faces]`.
    """
    corners = np.ascontiguousarray(vertices, np.float32)[np.asarray(faces, np.int64).ravel()]
    # Compared as bytes, so that -0.0 stays -0.0.
    as_bytes = np.ascontiguousarray(corners).view(np.dtype((np.void, 12))).ravel()
    _, first, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
    by_first_use = np.argsort(first, kind="stable")
    number = np.empty(len(first), np.int64)
    number[by_first_use] = np.arange(len(first))
    return corners[first[by_first_use]].reshape(-1, 3), number[inverse].reshape(-1, 3).astype(np.uint32)


def encode_faces(faces: np.ndarray) -> np.ndarray:
    """How far each index lies below the next unused one, uint32 [n]: 0 for a first use, small for a recent corner.

    `faces` (uint32 [F 3]) must number its corners in the order of their first use, as `weld` leaves them.
    """
    indices = faces.astype(np.int64).ravel()
    highest_before = np.concatenate([[-1], np.maximum.accumulate(indices)[:-1]]) if len(indices) else indices
    return (highest_before + 1 - indices).astype(np.uint32)


def decode_faces(codes: np.ndarray) -> np.ndarray:
    """Inverse of `encode_faces`: uint32 [F 3].

    Raises:
        ValueError: the codes point below the first corner, or are not whole triangles.
    """
    codes = codes.astype(np.int64)
    used_before = np.cumsum(codes == 0) - (codes == 0)
    indices = used_before - codes
    if (indices < 0).any():
        raise ValueError("a face points below the first vertex")
    return indices.reshape(-1, 3).astype(np.uint32)


def to_byte_planes(values: np.ndarray) -> np.ndarray:
    """The first bytes of all elements, then all second bytes, and so on: uint8 [4 n] from four-byte elements."""
    return np.ascontiguousarray(np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, 4).T)


def from_byte_planes(planes: np.ndarray, dtype: type) -> np.ndarray:
    """Inverse of `to_byte_planes`: [n] of a four-byte `dtype`."""
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype)
