"""What is wrong with a store, one fault at a time, as `embodied data verify` lists it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from embodied.types import Json

Kind = Literal[
    "version",  # written by a newer program
    "metadata",  # of the store or of an array: missing, unreadable, or not what the spec says
    "manifest",  # a line that cannot be, or does not fit the arrays
    "length",  # an array or an episode with too few rows
    "unreadable",  # a file that is missing or cannot be decoded
    "checksum",  # bytes that are not those that were committed
    "not finite",  # nan or infinity
    "surplus",  # an array that the spec does not name
    "tail",  # rows or a part of a line behind what was committed
    "leftover",  # a file or folder of a write that was interrupted
]
REMOVABLE = ("tail", "leftover")
OF_AN_EPISODE = ("length", "unreadable", "checksum", "not finite")  # those for which an episode can be dropped


@dataclass(frozen=True)
class Fault:
    """One fault, and where it is."""

    kind: Kind
    found: str  # in words
    episode: str | None = None  # id
    key: str | None = None  # of the array
    files: tuple[str, ...] = ()  # below the store's folder; those that it can be in

    @property
    def is_removable(self) -> bool:
        """Whether nothing that was committed goes with it."""
        return self.kind in REMOVABLE

    @property
    def spoils_episode(self) -> bool:
        return self.episode is not None and self.kind in OF_AN_EPISODE

    def __str__(self) -> str:
        files = f"file {self.files[0]}" if self.files else ""
        if len(self.files) > 1:
            files += f" or one of {len(self.files) - 1} more up to {self.files[-1]}"
        where = [f"episode {self.episode}" if self.episode else "", f"key {self.key}" if self.key else "", files]
        return f"{', '.join(part for part in where if part) or 'store'}: {self.found}"

    def to_json(self) -> Json:
        return {**asdict(self), "files": list(self.files)}


def not_finite(values: np.ndarray, first_step: int) -> tuple[int, str] | None:
    """How many values [T ...] are nan or infinite, and which is the first, in words; None if none is.

    Args:
        first_step: of the episode, at `values[0]`.
    """
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return None
    places = np.argwhere(~np.isfinite(values))
    step, *element = (int(index) for index in places[0])
    where = f", element {','.join(map(str, element))}" if element else ""
    return len(places), f"{values[(step, *element)]} at step {first_step + step}{where}"
