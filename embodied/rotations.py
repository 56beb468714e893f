"""Rotations in torch: matrices, axis-angle vectors, quaternions and the 6-D representation. Float64 inside and out.

A matrix turns column vectors. All functions take any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A vector shorter than this has no direction.
SHORTEST = 1e-12


def matrix_from_axis_angle(vector: Tensor) -> Tensor:
    """Rodrigues' formula: [... 3], the axis times the angle in rad (any number of turns), to [... 3 3]."""
    vector = vector.double()
    angle = vector.norm(dim=-1)[..., None, None]
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    # torch.sinc(x) is sin(pi x) / (pi x): both coefficients are smooth at 0.
    sine = torch.sinc(angle / torch.pi)
    versine = 0.5 * torch.sinc(angle / (2 * torch.pi)).square()
    return torch.eye(3, dtype=vector.dtype, device=vector.device) + sine * cross + versine * (cross @ cross)


def axis_angle_from_matrix(matrix: Tensor) -> Tensor:
    """[... 3 3] to [... 3], rad, with an angle from 0 to pi; at pi either of the two opposite vectors."""
    quaternion = _quaternion_from_matrix(matrix.double())
    imaginary, real = quaternion[..., :3], quaternion[..., 3:]
    imaginary = torch.where(real < 0, -imaginary, imaginary)
    sine = imaginary.norm(dim=-1, keepdim=True)
    ratio = torch.where(sine < SHORTEST, 2.0, 2 * torch.atan2(sine, real.abs()) / sine)
    return ratio * imaginary


def matrix_from_quaternion(quaternion: Tensor) -> Tensor:
    """[... 4], x y z w of any length but 0, to [... 3 3]."""
    quaternion = quaternion.double()
    x, y, z, w = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def rotation_6d_from_matrix(matrix: Tensor) -> Tensor:
    """[... 3 3] to [... 6], the first column and then the second (Zhou et al., arXiv 1812.07035, sec. 4.2)."""
    return matrix.double()[..., :, :2].mT.flatten(-2)


def matrix_from_rotation_6d(columns: Tensor) -> Tensor:
    """[... 6] to [... 3 3] by Gram-Schmidt (Zhou et al., arXiv 1812.07035, eq. 15); always a rotation.

    The paper leaves open what a first column of 0 or two parallel columns mean: here the first is the x axis then,
    and the second the coordinate axis that is furthest from it, made square to it.
    """
    first, second = columns.double().unflatten(-1, (2, 3)).unbind(-2)
    axes = torch.eye(3, dtype=first.dtype, device=first.device)
    first = _unit(first, axes[0].expand_as(first))
    spare = _unit(_square_to(first, axes[first.abs().argmin(-1)]), first)
    second = _unit(_square_to(first, second), spare)
    # Once more: little may have been left of two columns that were nearly parallel.
    second = _unit(_square_to(first, second), spare)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -1)


def _quaternion_from_matrix(matrix: Tensor) -> Tensor:
    """[... 3 3] to [... 4], x y z w of either sign.

    4 q q^T is linear in the matrix; its row with the largest diagonal entry is the quaternion without cancellation
    (Shepperd, "Quaternion from rotation matrix", 1978).
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in matrix.unbind(-2))
    outer = torch.stack(
        [
            *(1 + xx - yy - zz, yx + xy, zx + xz, zy - yz),
            *(yx + xy, 1 - xx + yy - zz, zy + yz, xz - zx),
            *(zx + xz, zy + yz, 1 - xx - yy + zz, yx - xy),
            *(zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz),
        ],
        -1,
    ).unflatten(-1, (4, 4))
    largest = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*outer.shape[:-2], 1, 4)
    row = outer.gather(-2, largest).squeeze(-2)
    return row / row.norm(dim=-1, keepdim=True)


def _square_to(unit: Tensor, vector: Tensor) -> Tensor:
    return vector - (unit * vector).sum(-1, keepdim=True) * unit


def _unit(vector: Tensor, otherwise: Tensor) -> Tensor:
    """Of length 1; `otherwise` for a vector without direction. What is not finite stays so, and is found later."""
    length = vector.norm(dim=-1, keepdim=True)
    return torch.where(length < SHORTEST, otherwise, vector / length)
