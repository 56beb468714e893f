"""Parquet files read a column and a batch of rows at a time, so that memory does not grow with the file.

pyarrow comes with the extra `lerobot` and is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embodied.datasets.foreign_episodes import COPY_REMEDY
from embodied.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BUFFER_BYTES = 2**18  # read of a column's file at once; without it a whole row group of the column is


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A parquet file.

    Raises:
        UserError: it cannot be read, also while it is open.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        expected=f"a whole parquet file at {path}",
        found=str(error).strip().splitlines()[0],
        remedy="a recording that was killed before it was finished leaves such a file: record it again, "
        f"or {COPY_REMEDY}",
    )


def read_table(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    """These columns of a small file, whole.

    Raises:
        UserError: it cannot be read, or lacks a column that is required.
    """
    if not path.is_file():
        raise UserError(expected=f"a parquet file at {path}", found="none", remedy=COPY_REMEDY)
    with opened(path) as file:
        _require(path, file, required)
        there = set(file.schema_arrow.names)
        return file.read(columns=[*required, *(name for name in optional if name in there)])


def _require(path: Path, file: pq.ParquetFile, names: Sequence[str]) -> None:
    there = file.schema_arrow.names
    missing = [name for name in names if name not in there]
    if missing:
        raise UserError(
            expected=f"the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} in {path}",
            found=", ".join(there[:20]) or "no columns",
            remedy=COPY_REMEDY,
        )


class ColumnReader:
    """One column of several files, read forwards; going back, or into another file, starts at the row group there."""

    def __init__(self, key: str, batch_rows: int) -> None:
        self._key = key
        self._batch_rows = batch_rows
        self._path: Path | None = None
        self._batches: Iterator[tuple[int, pa.Array]] = iter(())
        self._batch: tuple[int, pa.Array] | None = None

    def rows(self, path: Path, start: int, stop: int) -> Iterator[pa.Array]:
        """Rows `start` to `stop` (exclusive) of a file, a batch at a time.

        Raises:
            UserError: the file cannot be read, lacks the column, or ends before.
        """
        if path != self._path or self._batch is None or start < self._batch[0]:
            self.close()
            self._path, self._batches = path, self._read(path, start)
            self._batch = next(self._batches, None)
        while start < stop:
            while self._batch is not None and self._batch[0] + len(self._batch[1]) <= start:
                self._batch = next(self._batches, None)
            if self._batch is None:
                raise UserError(
                    expected=f"rows up to {stop} of {self._key} in {path}", found=str(start), remedy=COPY_REMEDY
                )
            first, values = self._batch
            part = values[start - first : stop - first]
            start += len(part)
            yield part

    def close(self) -> None:
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
        self._path, self._batches, self._batch = None, iter(()), None

    def _read(self, path: Path, start: int) -> Iterator[tuple[int, pa.Array]]:
        """Batches from the row group that holds row `start` on, each with its first row."""
        with opened(path) as file:
            _require(path, file, [self._key])
            counts = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
            ends = np.cumsum(counts)
            group = int(np.searchsorted(ends, start, side="right"))
            first = int(ends[group - 1]) if group else 0
            groups = list(range(group, len(counts)))
            for batch in file.iter_batches(self._batch_rows, row_groups=groups, columns=[self._key]):
                yield first, batch.column(0)
                first += len(batch)


def as_numbers(values: pa.Array, row_shape: Sequence[int]) -> np.ndarray:
    """Numbers, [rows, *row_shape] in the file's type.

    Raises:
        ValueError: something else, in words: another shape, empty cells, or no numbers.
    """
    import pyarrow as pa

    rows, sizes = len(values), list(row_shape)
    while True:
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        if values.null_count:
            raise ValueError("empty cells")
        if not isinstance(values, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
            break
        expected = sizes.pop(0) if sizes else 1
        is_fixed = isinstance(values, pa.FixedSizeListArray)
        lengths = {values.type.list_size} if is_fixed else set(np.diff(values.offsets.to_numpy()).tolist())
        if lengths - {expected}:
            raise ValueError(f"{min(lengths - {expected})} values in the place of {expected}")
        values = values.flatten()
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)):
        raise ValueError(f"values of type {values.type}")
    if any(size != 1 for size in sizes):
        raise ValueError(f"single values in the place of {' x '.join(map(str, sizes))}")
    return values.to_numpy(zero_copy_only=False).reshape(rows, *row_shape)
