"""Minimum, maximum, mean and deviation of data that come block by block."""

from __future__ import annotations

import numpy as np

from embodied.errors import UserError
from embodied.types import Statistics


class StreamingStatistics:
    """Merges blocks [rows d] by the pairwise rule of Chan, Golub and LeVeque (1983), in float64.

    Values are taken relative to the first row, so that a constant element has a deviation of exactly 0.
    """

    def __init__(self) -> None:
        self._count = 0

    def add(self, block: np.ndarray) -> None:
        """Take in a block [rows d]; one without rows changes nothing."""
        count = len(block)
        if count == 0:
            return
        if self._count == 0:
            size = block.shape[1]
            self._origin = block[0].astype(np.float64)
            self._mean, self._squares = np.zeros(size), np.zeros(size)
            self._minimum, self._maximum = np.full(size, np.inf), np.full(size, -np.inf)
        values = block.astype(np.float64)
        self._minimum = np.minimum(self._minimum, values.min(axis=0))
        self._maximum = np.maximum(self._maximum, values.max(axis=0))
        values -= self._origin
        mean = values.mean(axis=0)
        squares = ((values - mean) ** 2).sum(axis=0)
        difference, total = mean - self._mean, self._count + count
        self._mean = self._mean + difference * (count / total)
        self._squares = self._squares + squares + difference**2 * (self._count * count / total)
        self._count = total

    def result(self) -> Statistics:
        """Statistics of everything so far; the deviation is the population's.

        Raises:
            UserError: no rows were added.
        """
        if self._count == 0:
            raise UserError(
                expected="at least one row to take statistics of", found="none", remedy="give data that are not empty"
            )
        return Statistics(
            minimum=self._minimum,
            maximum=self._maximum,
            mean=self._origin + self._mean,
            std=np.sqrt(self._squares / self._count),
            count=self._count,
        )
