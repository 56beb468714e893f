"""Windows of several stores as one source, all of them once an epoch, or each store with a share of the draws.

Without weights the stores are one after another, and the order is that of one sampler over all their windows. With
weights the stream of draws is cut into decks: the shortest run of draws in which every share is a whole number, so that
the shares hold exactly in each. The order within a deck is shuffled; each store gives its windows in its own epochs'
order, every window once before any comes again. Draw p is a function of the seed and p alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from embodied.datasets.window_sampler import WindowSampler, check_share, epoch_batches, permutation
from embodied.errors import UserError
from embodied.types import Statistics, Window

LONGEST_DECK = 1_000_000  # draws
DECKS, STORES = 1 << 62, 1 << 40  # apart from the epochs, in the keys of permutations


class WindowMixture:
    """Several samplers of equal windows as one source (`protocols.WindowSource`)."""

    def __init__(self, samplers: Sequence[WindowSampler], weights: Sequence[float] | None = None) -> None:
        """
        Args:
            weights: of each sampler's draws among all, relative to each other; None for each window once an epoch.

        Raises:
            UserError: weights that do not fit (`whole_shares`).
        """
        self._samplers = tuple(samplers)
        self._ends = np.cumsum([len(sampler) for sampler in samplers])
        self._shares = None if weights is None else np.array(whole_shares(weights, len(samplers)))

    def __len__(self) -> int:
        """Windows of all samplers together."""
        return int(self._ends[-1])

    def gather(self, indices: np.ndarray) -> Window:
        """The windows with these indices, which count through the samplers one after another, as one batch."""
        owners = np.searchsorted(self._ends, indices, side="right")
        places, windows = [], []
        for number, sampler in enumerate(self._samplers):
            place = np.flatnonzero(owners == number)
            if len(place):
                places.append(place)
                windows.append(sampler.gather(indices[place] - self._first(number)))
        back = np.argsort(np.concatenate(places))
        executed = [window.executed for window in windows if window.executed is not None]
        return Window(
            state=np.concatenate([window.state for window in windows])[back],
            action=np.concatenate([window.action for window in windows])[back],
            valid=np.concatenate([window.valid for window in windows])[back],
            images={name: np.concatenate([w.images[name] for w in windows])[back] for name in windows[0].images},
            executed=np.concatenate(executed)[back] if len(executed) == len(windows) else None,
        )

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """An order of all windows, each once, whatever the weights: int64 [len]."""
        return permutation(seed, epoch, len(self))

    def batches(
        self, seed: int, batch_size: int, start_step: int = 0, *, rank: int = 0, world: int = 1
    ) -> Iterator[np.ndarray]:
        """As `WindowSampler.batches`; with weights, of the weighted stream.

        Raises:
            UserError: a batch size below 1 or not divisible by `world`.
        """
        share = check_share(batch_size, world)
        if self._shares is None:
            return epoch_batches(lambda epoch: self.epoch_order(seed, epoch), batch_size, start_step, rank, share)
        return self._weighted(seed, batch_size, start_step, rank * share, share)

    def _weighted(self, seed: int, batch_size: int, start_step: int, offset: int, share: int) -> Iterator[np.ndarray]:
        orders: dict[int, tuple[int, np.ndarray]] = {}  # of each sampler the epoch that it is in, and its order
        known, deck = -1, np.empty((0, 2), np.int64)
        for step in itertools.count(start_step):
            begin, parts = step * batch_size + offset, []
            while begin < step * batch_size + offset + share:
                number, place = divmod(begin, int(self._shares.sum()))
                if number != known:
                    known, deck = number, self._deck(seed, number)
                parts.append(deck[place : place + step * batch_size + offset + share - begin])
                begin += len(parts[-1])
            yield self._drawn(seed, np.concatenate(parts), orders)

    def _deck(self, seed: int, number: int) -> np.ndarray:
        """Of each draw of a deck the sampler, and how many draws that sampler had before: int64 [draws 2]."""
        owners = np.repeat(np.arange(len(self._shares)), self._shares)
        owners = owners[permutation(seed, DECKS + number, len(owners))]
        draws = np.empty(len(owners), np.int64)
        for owner, share in enumerate(self._shares):
            draws[owners == owner] = number * share + np.arange(share)
        return np.stack([owners, draws], axis=1)

    def _drawn(self, seed: int, deck: np.ndarray, orders: dict[int, tuple[int, np.ndarray]]) -> np.ndarray:
        """The window indices of these draws."""
        indices = np.empty(len(deck), np.int64)
        for owner in np.unique(deck[:, 0]):
            sampler, mine = self._samplers[owner], deck[:, 0] == owner
            epochs, places = np.divmod(deck[mine, 1], len(sampler))
            found = np.empty(len(places), np.int64)
            for epoch in np.unique(epochs):
                if owner not in orders or orders[owner][0] != epoch:
                    orders[owner] = epoch, permutation(seed, int(owner) * STORES + int(epoch), len(sampler))
                found[epochs == epoch] = orders[owner][1][places[epochs == epoch]]
            indices[mine] = found + self._first(owner)
        return indices

    def _first(self, number: int) -> int:
        return int(self._ends[number]) - len(self._samplers[number])


def whole_shares(weights: Sequence[float], count: int) -> tuple[int, ...]:
    """The smallest whole numbers in the ratio of the weights: (0.7, 0.3) gives (7, 3).

    Args:
        count: of the stores that they are for.

    Raises:
        UserError: another number of weights, one that is not above 0, or so many digits that no million draws hold
            them exactly.
    """
    if len(weights) != count:
        raise UserError(
            expected=f"{count} weights, one for each store of data.store",
            found=f"{len(weights)}",
            remedy="give data.weights in the order of data.store, or leave it null",
        )
    if not all(isinstance(weight, int | float) and math.isfinite(weight) and weight > 0 for weight in weights):
        raise UserError(
            expected="weights above 0",
            found=str(list(weights)),
            remedy="leave a store without weight out of data.store",
        )
    exact = [Fraction(str(weight)) for weight in weights]
    whole = [int(weight * math.lcm(*(other.denominator for other in exact))) for weight in exact]
    shares = tuple(weight // math.gcd(*whole) for weight in whole)
    if sum(shares) > LONGEST_DECK:
        raise UserError(
            expected=f"weights whose shares are exact within {LONGEST_DECK:,} draws",
            found=str(list(weights)),
            remedy="give them with fewer digits",
        )
    return shares


def mixed_statistics(parts: Sequence[Statistics], weights: Sequence[float] | None) -> Statistics:
    """Statistics of what the mixture draws: the extremes of all parts, mean and deviation by the share of the draws.

    Args:
        weights: as for `WindowMixture`; None for shares by how many rows each part counts.
    """
    if len(parts) == 1:
        return parts[0]
    share = np.array([part.count for part in parts] if weights is None else weights, np.float64)
    share = (share / share.sum())[:, None]
    means = np.stack([part.mean for part in parts])
    mean = (share * means).sum(0)
    variance = (share * (np.stack([part.std for part in parts]) ** 2 + (means - mean) ** 2)).sum(0)
    return Statistics(
        minimum=np.min([part.minimum for part in parts], axis=0),
        maximum=np.max([part.maximum for part in parts], axis=0),
        mean=mean,
        std=np.sqrt(variance),
        count=sum(part.count for part in parts),
    )
