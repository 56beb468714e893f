"""Training windows of state vectors, actions and images, in an order that is a pure function of seed and step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from embodied.datasets.image_rows import ImageRows
from embodied.errors import UserError
from embodied.protocols import DemonstrationStore
from embodied.types import TaskSpec, Window


class WindowSampler:
    """Every step t of every episode is one window; none is dropped near an episode's end.

        state    t-To+1 ... t                    history of To rows, the first row of the episode repeated before it
        action   t-past ... t ... t-past+H-1     H rows, the episode's first and last repeated outside it

    Outside the episode an absolute action is the command "stay", so it is trained (`valid` True). A delta repeated
    would be a motion that nobody made, so it is masked (`valid` False).
    """

    def __init__(
        self,
        state: np.ndarray,
        action: np.ndarray,
        episode_ends: np.ndarray,
        *,
        history: int,
        horizon: int,
        past: int = 0,
        representation: Literal["absolute", "delta"],
        episodes: np.ndarray | None = None,
        images: ImageRows | None = None,
        executed: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            state: float32 [T S], all episodes one after another.
            action: float32 [T A].
            episode_ends: int64 [episodes], the row after the last of each.
            history: To >= 1, observations up to and including t.
            horizon: H, actions of a window, the past ones included.
            past: actions of a window before t.
            episodes: indices of the episodes to take windows from; None for all.
            images: of the same T rows; None for windows without.
            executed: float32 [T A], what the robot was sent; None for windows without.

        Raises:
            UserError: sizes that do not fit each other, no episode, or an episode that does not exist.
        """
        _check_sizes(history, horizon, past, representation)
        ends = np.asarray(episode_ends, np.int64)
        _check_lengths(state, action, ends)
        if executed is not None:
            _check_lengths(state, executed, ends)
        starts = np.concatenate([[0], ends[:-1]])
        chosen = _check_episodes(np.arange(len(ends)) if episodes is None else np.asarray(episodes), len(ends))
        self.history, self.horizon, self.past, self.representation = history, horizon, past, representation
        self._images = images
        starts, ends = starts[chosen], ends[chosen]
        self._state = _Slices(state, starts, ends, before=history - 1, after=0)
        around = {"before": past, "after": horizon - past - 1}
        self._action = _Slices(action, starts, ends, **around)
        self._executed = None if executed is None else _Slices(executed, starts, ends, **around)
        self._row = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
        self._first = np.repeat(starts, ends - starts)
        self._last = np.repeat(ends - 1, ends - starts)

    @classmethod
    def from_store(
        cls,
        store: DemonstrationStore,
        *,
        history: int,
        horizon: int,
        past: int = 0,
        episodes: np.ndarray | None = None,
        inputs: TaskSpec | None = None,
        images: ImageRows | None = None,
        executed: bool = False,
    ) -> WindowSampler:
        """Read the state vectors, side by side in the spec's order, and the clean actions of a store.

        Args:
            inputs: a spec with the state vectors to read; None for the store's own.
            executed: whether windows hold the executed actions too.
            the rest: as for the constructor.
        """
        inputs = store.spec if inputs is None else inputs
        state = inputs.flatten_state({spec.name: store.read(f"state/{spec.name}") for spec in inputs.state})
        return cls(
            state,
            store.read("action"),
            store.episode_ends,
            history=history,
            horizon=horizon,
            past=past,
            representation=store.spec.action.representation,
            episodes=episodes,
            images=images,
            executed=store.read("executed") if executed else None,
        )

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._row)

    def gather(self, indices: np.ndarray) -> Window:
        """The windows with these indices (0 .. len - 1), as one batch."""
        return Window(
            state=self._state.take(indices),
            action=self._action.take(indices),
            valid=self._valid(indices),
            images=self._images.gather(self._state_rows(indices)) if self._images is not None else {},
            executed=None if self._executed is None else self._executed.take(indices),
        )

    def _state_rows(self, indices: np.ndarray) -> np.ndarray:
        """Rows of the history, int64 [B To]."""
        rows = self._row.take(indices)[:, None] + np.arange(1 - self.history, 1)
        return np.maximum(rows, self._first.take(indices)[:, None])

    def _valid(self, indices: np.ndarray) -> np.ndarray:
        if self.representation == "absolute":
            return np.ones((len(indices), self.horizon), bool)
        row, first, last = (bound.take(indices)[:, None] for bound in (self._row, self._first, self._last))
        wanted = row + np.arange(-self.past, self.horizon - self.past)
        return (first <= wanted) & (wanted <= last)

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """The order of all windows in one epoch: int64 [len], the same for the same arguments."""
        return permutation(seed, epoch, len(self))

    def batches(
        self, seed: int, batch_size: int, start_step: int = 0, *, rank: int = 0, world: int = 1
    ) -> Iterator[np.ndarray]:
        """Window indices of batch `start_step`, `start_step + 1`, ... without end.

        The batches cut one stream, epoch after epoch, so each window comes exactly once an epoch and a batch may
        straddle two. Batch i depends on `seed` and i alone.

        Args:
            batch_size: of all processes together.
            rank, world: this process gets the `rank`-th of `world` equal slices of each batch.

        Raises:
            UserError: a batch size below 1 or not divisible by `world`.
        """
        share = check_share(batch_size, world)
        return epoch_batches(lambda epoch: self.epoch_order(seed, epoch), batch_size, start_step, rank, share)


class _Slices:
    """For every step of some episodes the rows around it, in one piece.

    The first and the last row of each episode are repeated in the copy that is kept, so that each slice is contiguous
    and is copied by one move, where gathering its rows one by one takes several times as long.
    """

    def __init__(self, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray, *, before: int, after: int) -> None:
        """
        Args:
            rows: float32 [T d].
            starts, ends: int64 [episodes], rows of each, ends exclusive.
            before, after: rows of a slice on either side of its step.
        """
        repeated = [
            np.clip(np.arange(start - before, end + after), start, end - 1)
            for start, end in zip(starts, ends, strict=True)
        ]
        self._rows = np.ascontiguousarray(rows, np.float32).take(np.concatenate(repeated), axis=0)
        self._shape = (before + 1 + after, rows.shape[1])
        number_of_episode = np.repeat(np.arange(len(ends)), ends - starts)
        self._begin = np.arange(len(number_of_episode)) + number_of_episode * (before + after)
        row_bytes = self._rows.strides[0]
        # One element a slice; neighbours overlap.
        self._slices = np.ndarray(
            len(self._rows) - before - after,
            np.dtype((np.void, self._shape[0] * row_bytes)),
            buffer=self._rows,
            strides=(row_bytes,),
        )

    def take(self, steps: np.ndarray) -> np.ndarray:
        """The slices around these steps (counted over all episodes): float32 [B before+1+after d]."""
        begin = self._begin[steps]
        if not self._shape[1]:  # nothing to copy, and no element to hold it
            return np.empty((len(begin), *self._shape), np.float32)
        return self._slices[begin].view(np.float32).reshape(-1, *self._shape)


def permutation(seed: int, number: int, size: int) -> np.ndarray:
    """A permutation of 0 .. size - 1 that depends on the arguments alone: int64 [size]."""
    return np.random.Generator(np.random.Philox(key=[seed, number])).permutation(size)


def check_share(batch_size: int, world: int) -> int:
    """How many windows of a batch each of `world` processes gets.

    Raises:
        UserError: a batch size below 1 or not divisible by `world`.
    """
    if batch_size < 1 or batch_size % world:
        raise UserError(
            expected=f"a batch size that {world} process(es) can share equally",
            found=str(batch_size),
            remedy=f"choose a positive multiple of {world}",
        )
    return batch_size // world


def epoch_batches(
    epoch_order: Callable[[int], np.ndarray], batch_size: int, start_step: int, rank: int, share: int
) -> Iterator[np.ndarray]:
    """One process's slices of batch `start_step` and on, of a stream of epochs that `epoch_order` gives by number."""
    known_epoch, order = 0, epoch_order(0)
    for step in itertools.count(start_step):
        position, wanted, parts = step * batch_size + rank * share, share, []
        while wanted:
            epoch, place = divmod(position, len(order))
            if epoch != known_epoch:
                known_epoch, order = epoch, epoch_order(epoch)
            parts.append(order[place : place + wanted])
            wanted -= len(parts[-1])
            position += len(parts[-1])
        yield np.concatenate(parts)


def split_episodes(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide episodes into training and validation, as sorted indices: int64 [n], int64 [count - n].

    Args:
        share: of the episodes that are for validation, 0 <= share < 1; a share above 0 gives at least one, and
            training always keeps at least one.

    Raises:
        UserError: no episodes, or a share outside its range.
    """
    if count < 1:
        raise _no_episodes()
    if not 0 <= share < 1:
        raise UserError(
            expected="a validation share from 0 to below 1", found=str(share), remedy="choose 0.05, for example"
        )
    held_out = min(max(round(count * share), 1), count - 1) if share > 0 else 0
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(count)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _check_sizes(history: int, horizon: int, past: int, representation: str) -> None:
    if history < 1 or past < 0:
        raise UserError(
            expected="a history of at least 1 and at least 0 past actions",
            found=f"history {history}, past {past}",
            remedy="the newest observation always counts as one of the history",
        )
    if horizon < past + 1:
        raise UserError(
            expected=f"a horizon of at least {past + 1}: {past} past actions and the present one",
            found=f"horizon {horizon}",
            remedy="lengthen the horizon or take fewer past actions",
        )
    if representation not in ("absolute", "delta"):
        raise UserError(
            expected="the representation 'absolute' or 'delta'",
            found=f"'{representation}'",
            remedy="take it from the task's action spec",
        )


def _check_lengths(state: np.ndarray, action: np.ndarray, ends: np.ndarray) -> None:
    if not len(ends):
        raise _no_episodes()
    if state.ndim != 2 or action.ndim != 2 or not len(state) == len(action) == ends[-1]:
        raise UserError(
            expected=f"state [T S] and action [T A] of {ends[-1]} rows, as the episode ends say",
            found=f"state {list(state.shape)}, action {list(action.shape)}",
            remedy="read all three from the same store",
        )
    if (np.diff(ends, prepend=0) < 1).any():
        raise UserError(
            expected="episode ends that rise by at least 1", found=str(ends.tolist()), remedy="leave out empty episodes"
        )


def _check_episodes(chosen: np.ndarray, count: int) -> np.ndarray:
    if not len(chosen):
        raise _no_episodes()
    if chosen.min() < 0 or chosen.max() >= count:
        raise UserError(
            expected=f"episode indices from 0 to {count - 1}",
            found=f"{chosen.min()} to {chosen.max()}",
            remedy="choose among the episodes of the store",
        )
    return chosen


def _no_episodes() -> UserError:
    return UserError(
        expected="at least one episode to take windows from",
        found="none",
        remedy="collect demonstrations with `embodied collect`, or choose at least one episode",
    )
