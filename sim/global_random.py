"""A private stream for code that draws from numpy's global random state."""

from __future__ import annotations

from typing import Any

import numpy as np


class GlobalRandomStream:
    """Inside `with stream:` the global state is the stream's own; outside it is as if nothing had been drawn.

    Simulators that know only `np.random` become addressable that way, and cannot disturb anybody else's numbers. A
    normal variate that numpy has in store (they come in pairs) stays in store outside; the stream's own is dropped at
    the end of a block.
    """

    def __init__(self, seed: int = 0) -> None:
        """
        Args:
            seed: 0 .. 2**32 - 1.
        """
        self._outside: Any = None  # the generator and state to come back to; None while not in use
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start the stream anew."""
        self._inside = np.random.MT19937()
        self._inside.state = np.random.RandomState(seed).get_state(legacy=False)

    def __enter__(self) -> None:
        if self._outside is not None:
            raise RuntimeError("this random stream is in use already")
        # Exchanging generators is a hundred times cheaper than copying states, but forgets the normal in store.
        self._outside = np.random.get_bit_generator(), np.random.get_state(legacy=False)
        np.random.set_bit_generator(self._inside)

    def __exit__(self, *exception: object) -> None:
        generator, state = self._outside
        np.random.set_bit_generator(generator)
        if state["has_gauss"]:
            np.random.set_state(state)
        self._outside = None
