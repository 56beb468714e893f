"""Fewer triangles for meshes that a small camera sees from afar."""

from __future__ import annotations

import numpy as np


def simplified(vertices: np.ndarray, faces: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """A mesh whose vertices in one cell of a cubic grid have become their mean (vertex clustering, Rossignac 1993).

    Args:
        vertices: float64 [V 3].
        faces: int64 [F 3].
        cell: edge of the grid's cells, in the unit of the vertices.

    Returns:
        Vertices and faces; those that lost their area or another's place are left out.
    """
    cells = np.floor(vertices / cell).astype(np.int64)
    _, cluster, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    cluster = cluster.reshape(-1)
    means = np.zeros((len(count), 3))
    np.add.at(means, cluster, vertices)
    means /= count[:, None]
    corners = cluster[faces]
    whole = (corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2]) & (corners[:, 2] != corners[:, 0])
    corners = corners[whole]
    _, first = np.unique(np.sort(corners, axis=1), axis=0, return_index=True)
    corners = corners[np.sort(first)]
    used, faces = np.unique(corners, return_inverse=True)
    return means[used], faces.reshape(-1, 3).astype(np.int64)
