"""The Zarr v3 arrays of a store: sharded, compressed with zstd, growing along the leading time axis."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore

from embodied.datasets.durable_files import DurableStore
from embodied.datasets.episode_layout import ArrayLayout
from embodied.errors import UserError

# Every chunk is written, even one of zeros, so that a missing one is an error and not silently zeros.
ARRAY_CONFIG = {"write_empty_chunks": True, "read_missing_chunks": False}
# The synchronous pipeline takes a third off the time of a commit; it is chosen when an array is made or opened.
FAST_PIPELINE = {"codec_pipeline.path": "zarr.core.codec_pipeline.FusedCodecPipeline"}
# Decodes image shards several times as fast, where it is installed. Its threads do not survive a fork: spawn processes.
ZARRS_PIPELINE = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
COPY_REMEDY = "copy the store again from where it came, or remove it and run `embodied collect`"


class TimeArrays:
    """The arrays below `data/` of the store at `path`, by their layouts. An array of width 0 has no file.

    Arrays grow by whole shards, because a new length is one more file to sync; `cut` takes off the spare room.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self._files = DurableStore(path, read_only=not writable)
        self._mode = "r+" if writable else "r"
        self._opened: dict[str, zarr.Array] = {}
        self._selected: dict[str, zarr.Array] = {}  # as `take` reads them

    def row_count(self, layout: ArrayLayout) -> int:
        """Rows of an array, committed, spare or left from a crash; 0 for one that does not exist."""
        return self._open(layout.key).shape[0] if (self._folder(layout) / "zarr.json").exists() else 0

    def shard_rows(self, layout: ArrayLayout) -> int:
        """Rows of one file of the array that is there, which may have been made with others than the layout's."""
        array = self._open(layout.key)
        return (array.shards or array.chunks)[0]

    def shard_file(self, layout: ArrayLayout, row: int) -> str:
        """The file that holds a row, below the store's folder."""
        place = (row // self.shard_rows(layout), *(0 for _ in layout.row_shape))
        return f"data/{layout.key}/c/{'/'.join(map(str, place))}"

    def misfit(self, layout: ArrayLayout) -> str | None:
        """Why the array that is there is not the layout's, in words; None if it is.

        An array that was never written, in a store without episodes, is one that fits.
        """
        try:
            array = self._open(layout.key)
        except FileNotFoundError:
            return "no such array"
        except (KeyError, TypeError, ValueError, OSError, ArithmeticError) as error:
            return f"metadata that cannot be read ({str(error).partition(chr(10))[0]})"
        row_shape = array.shape[1:]
        if (array.dtype, row_shape) == (layout.dtype, layout.row_shape):
            return None
        wanted = f"{layout.dtype} {list(layout.row_shape)}"
        return f"{array.dtype} {list(row_shape)} a step, where the spec says {wanted}"

    def write(self, layout: ArrayLayout, start: int, values: np.ndarray) -> None:
        """Make `values` the rows from `start` on; they are on the disk on return."""
        if not layout.row_bytes:
            return
        end = start + len(values)
        if start == 0:  # whatever is there is left from a crash, perhaps with another width
            self._opened[layout.key] = self._make(layout)
        array = self._open(layout.key)
        if array.shape[0] < end:
            array.resize((-(-end // layout.shard_rows) * layout.shard_rows, *layout.row_shape))
        array[start:end] = values

    def cut(self, layout: ArrayLayout, end: int) -> None:
        """Take away the rows from `end` on."""
        self._opened.pop(layout.key, None)  # a write that failed may have left its view of the array wrong
        if end == 0:
            shutil.rmtree(self._folder(layout), ignore_errors=True)
        elif self.row_count(layout) > end:
            self._open(layout.key).resize((end, *layout.row_shape))

    def read(self, layout: ArrayLayout, start: int, end: int) -> np.ndarray:
        """Rows `start` to `end` (exclusive).

        Raises:
            UserError: they cannot be read.
        """
        if not layout.row_bytes or start == end:
            return np.zeros((end - start, *layout.row_shape), layout.dtype)
        try:
            array = self._open(layout.key)
            if self._is_read_by_zarrs(layout.key):
                self._require_shards(layout, start, end)
            return np.asarray(array[start:end])
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(
                expected=f"rows {start} to {end} of '{layout.key}' intact in {self.path}",
                found=str(error).partition("\n")[0],
                remedy=COPY_REMEDY,
            ) from error

    def take(self, layout: ArrayLayout, rows: np.ndarray) -> np.ndarray:
        """The rows at these places (int64 [n], rising), by one selection.

        Each call of Zarr's waits for a thread of its own, which takes longer than to decode an image: one for all rows,
        through the synchronous pipeline, is faster than one for each run of neighbours through zarrs.

        Raises:
            UserError: they cannot be read.
        """
        if not layout.row_bytes or not len(rows):
            return np.zeros((len(rows), *layout.row_shape), layout.dtype)
        try:
            if layout.key not in self._selected:
                self._selected[layout.key] = self._open_synchronous(layout.key)
            return np.asarray(self._selected[layout.key].oindex[rows])
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(
                expected=f"rows {rows[0]} to {rows[-1] + 1} of '{layout.key}' intact in {self.path}",
                found=str(error).partition("\n")[0],
                remedy=COPY_REMEDY,
            ) from error

    def _is_read_by_zarrs(self, key: str) -> bool:
        return self._mode == "r" and key.startswith("image/") and find_spec("zarrs") is not None

    def _require_shards(self, layout: ArrayLayout, start: int, end: int) -> None:
        """zarrs takes a missing file for zeros, and cannot be told otherwise."""
        rows = self.shard_rows(layout)
        for row in range(start - start % rows, end, rows):
            file = self.path / self.shard_file(layout, row)
            if not file.is_file():
                raise FileNotFoundError(f"no file {file.relative_to(self.path)}")

    def _folder(self, layout: ArrayLayout) -> Path:
        return self.path / "data" / layout.key

    def _open(self, key: str) -> zarr.Array:
        if key not in self._opened and self._is_read_by_zarrs(key):
            with zarr.config.set(ZARRS_PIPELINE):  # which knows Zarr's own local store alone, none derived from it
                files = LocalStore(self.path, read_only=True)
                self._opened[key] = zarr.open_array(files, path=f"data/{key}", mode="r")
        elif key not in self._opened:
            self._opened[key] = self._open_synchronous(key)
        return self._opened[key]

    def _open_synchronous(self, key: str) -> zarr.Array:
        with zarr.config.set(FAST_PIPELINE):
            return zarr.open_array(self._files, path=f"data/{key}", mode=self._mode, config=ARRAY_CONFIG)

    def _make(self, layout: ArrayLayout) -> zarr.Array:
        with zarr.config.set(FAST_PIPELINE):
            return zarr.create_array(
                self._files,
                name=f"data/{layout.key}",
                shape=(0, *layout.row_shape),
                dtype=layout.dtype,
                chunks=(layout.chunk_rows, *layout.row_shape),
                shards=(layout.shard_rows, *layout.row_shape),
                compressors=ZstdCodec(level=3),
                config=ARRAY_CONFIG,
                overwrite=True,
            )
