"""How far a student's actions are from their target, a scalar a sample.

B batch, H horizon, A action.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from embodied.catalog import nearest
from embodied.errors import UserError

Distance = Callable[[Tensor, Tensor, Tensor], Tensor]
PSEUDO_HUBER_C = 0.00054  # of the root of the number of elements (arXiv 2310.14189, sec. 3.3)


def squared(x_BHA: Tensor, target_BHA: Tensor, valid_BH: Tensor) -> Tensor:
    """Mean squared difference over the valid positions, [B]."""
    error_BH = (x_BHA - target_BHA).square().mean(-1)
    valid_BH = valid_BH.to(error_BH.dtype)
    return (error_BH * valid_BH).sum(-1) / valid_BH.sum(-1).clamp_min(1.0)


def pseudo_huber(x_BHA: Tensor, target_BHA: Tensor, valid_BH: Tensor) -> Tensor:
    """sqrt(d^2 + c^2) - c with d^2 the mean squared difference, [B].

    That of arXiv 2310.14189, sec. 3.3, over the root of the number of elements, so that it does not grow with a chunk.
    """
    return (squared(x_BHA, target_BHA, valid_BH) + PSEUDO_HUBER_C**2).sqrt() - PSEUDO_HUBER_C


DISTANCES: dict[str, Distance] = {"pseudo_huber": pseudo_huber, "squared": squared}


def distance_named(name: str) -> Distance:
    """
    Raises:
        UserError: an unknown name.
    """
    if name not in DISTANCES:
        raise UserError(expected="a distance for objective.distance", found=str(name), remedy=nearest(name, DISTANCES))
    return DISTANCES[name]
