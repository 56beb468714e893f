"""Addressed starts: the first ids walk over a grid of cells, later ones lie somewhere in the cells, in the same order.

Any run of ids visits the kinds of a start (an orientation, a drawer, a pair of things) in turn and the places evenly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embodied.catalog import nearest
from embodied.errors import UserError


@dataclass(frozen=True)
class Draw:
    """What an id stands for."""

    kind: Any  # of the kinds given
    offsets: tuple[float, ...]  # one an axis, -1..1 over the grid
    generator: np.random.Generator  # for whatever else differs from start to start; the same for the same id


@dataclass(frozen=True)
class Grid:
    """Kinds times places; one number of places an axis."""

    kinds: tuple[Any, ...]
    places: tuple[int, ...]

    @property
    def size(self) -> int:
        """Starts on the grid itself: ids 0 to size - 1."""
        return len(self.kinds) * math.prod(self.places)

    def draw(self, start_id: int) -> Draw:
        """The same for the same id."""
        generator = np.random.default_rng([start_id, 20])
        kind = self.kinds[start_id % len(self.kinds)]
        count = math.prod(self.places)
        # A stride without a common factor visits all places, neighbours far apart.
        stride = next(step for step in range(int(0.62 * count) + 1, count + 2) if math.gcd(step, count) == 1)
        place = (start_id // len(self.kinds)) * stride % count
        offsets = []
        for number in self.places:
            place, index = divmod(place, number)
            jitter = generator.uniform(-0.5, 0.5) if start_id >= self.size else 0.0
            offsets.append((2 * (index + 0.5 + jitter) / number - 1) if number > 1 else 2 * jitter)
        return Draw(kind, tuple(offsets), generator)


def chosen(key: str, wanted: str | None, kinds: Sequence[str]) -> tuple[str, ...]:
    """All kinds, or the one that the task's settings ask for.

    Raises:
        UserError: an unknown kind.
    """
    if wanted is None:
        return tuple(kinds)
    if wanted not in kinds:
        raise UserError(
            expected=f"a name for task.{key}, or null for all", found=f"'{wanted}'", remedy=nearest(str(wanted), kinds)
        )
    return (wanted,)
