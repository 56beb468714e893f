"""Rotations against scipy's, which is another implementation, and where they are hard."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from embodied.rotations import (
    axis_angle_from_matrix,
    matrix_from_axis_angle,
    matrix_from_quaternion,
    matrix_from_rotation_6d,
    rotation_6d_from_matrix,
)

ANGLES = [0.0, 1e-300, 1e-12, 1e-8, 1e-4, 1.0, 3.0, np.pi - 1e-4, np.pi - 1e-8, np.pi - 1e-12, np.pi]


def vectors(angle, count=200):
    axes = np.random.default_rng(0).normal(size=(count, 3))
    return angle * axes / np.linalg.norm(axes, axis=1, keepdims=True)


@pytest.mark.parametrize("angle", [*ANGLES, 2 * np.pi, 7.0, 500.0])
def test_matrices_of_axis_angle_are_scipy_s(angle):
    matrix = matrix_from_axis_angle(torch.from_numpy(vectors(angle)))
    np.testing.assert_allclose(matrix, Rotation.from_rotvec(vectors(angle)).as_matrix(), atol=1e-13 * max(1, angle))


@pytest.mark.parametrize("angle", ANGLES)
def test_axis_angle_of_matrices_is_scipy_s(angle):
    rotation = Rotation.from_rotvec(vectors(angle))
    found = axis_angle_from_matrix(torch.from_numpy(rotation.as_matrix())).numpy()
    assert (np.linalg.norm(found, axis=1) <= np.pi + 1e-12).all()
    expected = rotation.as_rotvec()
    if angle > np.pi - 1e-6:  # v and -v are the same half turn there
        expected *= np.sign((expected * found).sum(1, keepdims=True))
    np.testing.assert_allclose(found, expected, atol=1e-7 if angle > 3.1 else 1e-13, rtol=0)


@pytest.mark.parametrize("angle", ANGLES)
def test_axis_angle_there_and_back(angle):
    once = matrix_from_axis_angle(torch.from_numpy(vectors(angle)))
    again = matrix_from_axis_angle(axis_angle_from_matrix(once))
    torch.testing.assert_close(again, once, atol=1e-14, rtol=0)


def test_half_turns_about_the_coordinate_axes_and_none():
    for axis in torch.eye(3, dtype=torch.float64):
        found = axis_angle_from_matrix(2 * torch.outer(axis, axis) - torch.eye(3))
        torch.testing.assert_close(found.abs(), torch.pi * axis)
    assert torch.equal(axis_angle_from_matrix(torch.eye(3)), torch.zeros(3, dtype=torch.float64))


def test_small_angles_keep_their_digits():
    vector = torch.tensor([3e-9, -4e-9, 1e-12], dtype=torch.float64)
    torch.testing.assert_close(axis_angle_from_matrix(matrix_from_axis_angle(vector)), vector, rtol=1e-6, atol=0)


def test_quaternions_are_scipy_s_of_either_sign_and_any_length():
    quaternion = np.random.default_rng(1).normal(size=(5, 40, 4))
    expected = Rotation.from_quat(quaternion.reshape(-1, 4)).as_matrix().reshape(5, 40, 3, 3)
    for factor in (1.0, -2.5):
        np.testing.assert_allclose(matrix_from_quaternion(torch.from_numpy(factor * quaternion)), expected, atol=1e-14)


def test_6d_is_the_first_two_columns_and_back():
    matrix = torch.from_numpy(Rotation.random(100, random_state=0).as_matrix()).reshape(4, 25, 3, 3)
    columns = rotation_6d_from_matrix(matrix)
    assert torch.equal(columns[..., :3], matrix[..., 0]) and torch.equal(columns[..., 3:], matrix[..., 1])
    torch.testing.assert_close(matrix_from_rotation_6d(columns), matrix, atol=1e-14, rtol=0)


def test_gram_schmidt_against_its_definition():
    """First column: the direction of the first; second: in the plane of both; the third by the right hand."""
    columns = np.random.default_rng(2).normal(size=(50, 6))
    found = matrix_from_rotation_6d(torch.from_numpy(columns)).numpy()
    orthonormal = found.transpose(0, 2, 1) @ found
    np.testing.assert_allclose(orthonormal, np.broadcast_to(np.eye(3), orthonormal.shape), atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(found), 1.0)
    for matrix, (first, second) in zip(found, columns.reshape(-1, 2, 3), strict=True):
        np.testing.assert_allclose(matrix[:, 0], first / np.linalg.norm(first))
        assert abs(matrix[:, 2] @ second) < 1e-14 and matrix[:, 1] @ second > 0


@pytest.mark.parametrize(
    "columns",
    [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [1, 2, 3, 1, 2, 3],
        [1, 2, 3, -2, -4, -6],
        [1, 1e-11, 0, 1, 0, 0],
        [1e-300, 0, 0, 0, 1e300, 0],
    ],
)
def test_whatever_a_network_predicts_becomes_a_rotation(columns):
    found = matrix_from_rotation_6d(torch.tensor(columns, dtype=torch.float64))
    torch.testing.assert_close(found.mT @ found, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert float(torch.linalg.det(found)) == pytest.approx(1.0)


def test_what_is_not_finite_does_not_become_a_rotation():
    for bad in (float("nan"), float("inf")):
        for place in range(6):
            columns = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
            columns[place] = bad
            assert not axis_angle_from_matrix(matrix_from_rotation_6d(columns)).isfinite().all()
