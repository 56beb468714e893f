"""Thinned and turned meshes against solids whose surfaces are known."""

from __future__ import annotations

import numpy as np
import pytest

from embodied.sim.lathe import turned
from embodied.sim.mesh_simplification import simplified


def area(vertices: np.ndarray, faces: np.ndarray) -> float:
    corners = vertices[faces]
    return float(
        np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum() / 2
    )


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """By the divergence theorem: positive where the faces look outwards."""
    corners = vertices[faces]
    return float(np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6)


def sphere(points: int = 60) -> tuple[np.ndarray, np.ndarray]:
    angles = np.linspace(-np.pi / 2, np.pi / 2, points)
    return turned(np.stack([np.cos(angles), np.sin(angles)], axis=1), sides=80)


def test_a_turned_cylinder_has_its_surface_and_volume():
    vertices, faces = turned(np.array([[0.0, -1.0], [0.5, -1.0], [0.5, 1.0], [0.0, 1.0]]), sides=200)
    assert area(vertices, faces) == pytest.approx(2 * np.pi * 0.5 * 2 + 2 * np.pi * 0.25, rel=1e-3)
    assert volume(vertices, faces) == pytest.approx(np.pi * 0.25 * 2, rel=1e-3), "its faces are expected to look out"


def test_a_thinned_sphere_is_a_sphere_of_fewer_faces():
    vertices, faces = sphere()
    thin_vertices, thin_faces = simplified(vertices, faces, 0.2)
    assert len(thin_faces) < len(faces) / 5
    np.testing.assert_allclose(np.linalg.norm(thin_vertices, axis=1), 1.0, atol=0.03)
    assert volume(thin_vertices, thin_faces) == pytest.approx(volume(vertices, faces), rel=0.05)


def test_a_fine_grid_changes_nothing_but_double_corners():
    vertices, faces = turned(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), sides=8)
    thin_vertices, thin_faces = simplified(vertices, faces, 1e-6)
    assert len(thin_vertices) == 8 + 8 + 2, "the corners on the axis are one each"
    assert area(thin_vertices, thin_faces) == pytest.approx(area(vertices, faces))
    assert volume(thin_vertices, thin_faces) == pytest.approx(volume(vertices, faces))


def test_what_is_smaller_than_a_cell_vanishes():
    vertices, faces = sphere()
    assert len(simplified(vertices + 5.5, faces, 10.0)[1]) == 0
