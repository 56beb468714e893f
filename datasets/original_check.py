"""What can be checked of demonstrations in Diffusion Policy's Zarr v2, which keeps no checksums. Writes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from embodied import pusht_board
from embodied.datasets.diffusion_policy_zarr import FORMAT
from embodied.datasets.faults import Fault, not_finite
from embodied.datasets.zarr_v2_arrays import ZarrV2Array
from embodied.errors import UserError

ENDS = "meta/episode_ends"
# What our reader asks of the arrays that it reads: kinds of number, and the shape of a row.
KNOWN: dict[str, tuple[str, tuple[int | None, ...]]] = {
    "data/state": ("f", (pusht_board.STATE_SIZE,)),
    "data/action": ("f", (2,)),
    "data/img": ("fu", (None, None, 3)),
}
REQUIRED = ("data/state", "data/action")


class OriginalCheck:
    """The check of one such store: every chunk of every array, also of those that training does not read."""

    format = FORMAT
    unit = "chunks"
    writer = None  # nobody writes these

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[Fault] = []
        self._check_group()
        self._ends = self._read_ends()  # int64 [episodes]; empty if it cannot be read
        found = (file.parent for file in (path / "data").glob("*/.zarray"))
        keys = sorted({*REQUIRED, *(str(folder.relative_to(path)) for folder in found)})
        opened = {key: self._open(key) for key in keys}
        self._arrays = {key: array for key, array in opened.items() if array is not None}
        for key, array in self._arrays.items():
            self._check_length(key, len(array))

    @property
    def episodes(self) -> int:
        return len(self._ends)

    def describe(self) -> str:
        """What was checked, in words."""
        steps = int(self._ends[-1]) if len(self._ends) else 0
        return (
            f"{self.episodes} episodes, {steps} steps, all {self.total} chunks can be decoded and hold finite numbers "
            "(the format keeps no checksums)"
        )

    @property
    def total(self) -> int:
        """Parts to check."""
        return sum(len(list(array.chunk_ranges())) for array in self._arrays.values())

    def parts(self) -> Iterator[list[Fault]]:
        """The faults of each chunk, as it is read."""
        for key, array in self._arrays.items():
            for start, end in array.chunk_ranges():
                yield self._chunk_faults(key, array, start, end)

    def _check_group(self) -> None:
        try:
            version = json.loads((self.path / ".zgroup").read_bytes())["zarr_format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.faults.append(Fault("metadata", f"cannot be read ({error})", files=(".zgroup",)))
            return
        if version != 2:
            self.faults.append(Fault("version", f"Zarr of version {version}, where 2 is read", files=(".zgroup",)))

    def _read_ends(self) -> np.ndarray:
        try:
            array = ZarrV2Array(self.path, ENDS, "iu", ())
            ends = array.read(0, len(array)).astype(np.int64)
        except UserError as error:
            self.faults.append(Fault("metadata", error.found, key=ENDS, files=(ENDS,)))
            return np.zeros(0, np.int64)
        if not len(ends):
            self.faults.append(Fault("length", "no episodes", key=ENDS, files=(ENDS,)))
        for index, length in enumerate(np.diff(ends, prepend=0)):
            if length < 1:
                found = f"{length} steps: it ends at row {ends[index]}, the one before at {ends[index] - length}"
                self.faults.append(Fault("length", found, str(index), ENDS, (ENDS,)))
        return ends

    def _open(self, key: str) -> ZarrV2Array | None:
        try:
            kinds, shape = KNOWN.get(key) or ("fiu", self._any_row(key))
            return ZarrV2Array(self.path, key, kinds, shape)
        except UserError as error:
            self.faults.append(Fault("metadata", f"{error.found}, not {error.expected}", key=key, files=(key,)))
            return None

    def _any_row(self, key: str) -> tuple[None, ...]:
        try:
            shape = json.loads((self.path / key / ".zarray").read_bytes())["shape"]
            return (None,) * (len(shape) - 1)
        except (OSError, ValueError, KeyError, TypeError):
            return ()  # ZarrV2Array says what is wrong

    def _check_length(self, key: str, rows: int) -> None:
        if not len(self._ends) or rows == self._ends[-1]:
            return
        kind = "length" if rows < self._ends[-1] else "tail"
        found = f"{rows} rows, where the episodes end at {self._ends[-1]}"
        self.faults.append(Fault(kind, found, key=key, files=(f"{key}/.zarray",)))

    def _chunk_faults(self, key: str, array: ZarrV2Array, start: int, end: int) -> list[Fault]:
        file = array.chunk_file(start)
        try:
            values = array.decode(start, end)
        except UserError as error:
            place = self.path / file
            found = f"{place.stat().st_size} bytes that cannot be decoded" if place.exists() else "no such file"
            return [Fault("unreadable", f"{found} ({error.found})", self._episodes(start, end), key, (file,))]
        faults = []
        for index, first, last in self._pieces(start, end):
            bad = not_finite(values[first - start : last - start], first - self._first_row(index))
            if bad is not None:
                found = bad[1] + (f" and {bad[0] - 1} more in this file" if bad[0] > 1 else "")
                faults.append(Fault("not finite", found, str(index), key, (file,)))
        return faults

    def _episodes(self, start: int, end: int) -> str | None:
        """Places of the episodes with rows in a range, in words."""
        places = [index for index, _, _ in self._pieces(start, end)]
        if not places:
            return None
        return str(places[0]) if len(places) == 1 else f"{places[0]} to {places[-1]}"

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The episodes with rows in a range: place, and their first and last row in it, the last exclusive."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        for index in range(first, len(self._ends)):
            begin = max(start, self._first_row(index))
            if begin >= end:
                return
            if begin < min(end, self._ends[index]):
                yield index, begin, int(min(end, self._ends[index]))

    def _first_row(self, index: int) -> int:
        return int(self._ends[index - 1]) if index else 0
