"""When several sessions' requests are computed in one step: only if that pays, and breaks nobody's deadline."""

from __future__ import annotations

from collections.abc import Sequence

SMOOTHING = 0.1  # weight of a new measurement in the running mean


class StepCosts:
    """How long a step takes by batch size, measured; fresh sessions apart from running ones, whose calls are others."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """
        Args:
            sizes: of batches that the policy has been warmed up for, rising, 1 first. No others are ever computed: a
                compiled engine would compile.
        """
        self.sizes = tuple(sizes)
        self._cost_s: dict[tuple[bool, int], float] = {}

    def note(self, fresh: bool, size: int, took_s: float) -> None:
        """A measurement."""
        before = self._cost_s.get((fresh, size))
        self._cost_s[fresh, size] = took_s if before is None else before + SMOOTHING * (took_s - before)

    def expected_s(self, fresh: bool, size: int) -> float:
        """Of a step of one of `sizes`; 0 where nothing was measured yet."""
        return self._cost_s.get((fresh, size), 0.0)

    def best_size(self, fresh: bool, now_s: float, deadlines_s: Sequence[float]) -> int:
        """How many of the waiting requests to compute together.

        The most sessions a second win. A request that would make its deadline in a step of its own, begun now, must
        make it in the batch too.

        Args:
            deadlines_s: of the waiting requests, the most urgent first; at least one.
        """
        alone_s = self.expected_s(fresh, 1)
        best = 1
        for size in self.sizes[1:]:
            if size > len(deadlines_s):
                break
            cost_s = self.expected_s(fresh, size)
            breaks = any(now_s + alone_s <= deadline < now_s + cost_s for deadline in deadlines_s[:size])
            if not breaks and cost_s / size < self.expected_s(fresh, best) / best:
                best = size
        return best


def batch_sizes(largest: int) -> list[int]:
    """Powers of two up to `largest`."""
    sizes = [1]
    while 2 * sizes[-1] <= largest:
        sizes.append(2 * sizes[-1])
    return sizes
