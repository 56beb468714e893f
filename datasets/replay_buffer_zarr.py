"""The format of Diffusion Policy's and UMI's ReplayBuffer, both ways: Zarr v2, as a folder or as one zip file.

X/.zgroup                a Zarr v2 group
X/data/<key>             [T ...], Blosc: all episodes one after another
X/meta/episode_ends      int64 [episodes], cumulative: the row after the last of each
X/meta/.zattrs           the attribute "embodied" is this program's record
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.storage import LocalStore, ZipStore

from embodied.datasets.episode_layout import episode_arrays
from embodied.datasets.foreign_episodes import (
    COPY_REMEDY,
    RECORD,
    Column,
    Facts,
    Stated,
    by_shape,
    checked_record,
    details_of,
    exported_columns,
    made_whole,
    record_of,
    recorded,
)
from embodied.datasets.foreign_import import import_episodes
from embodied.datasets.zarr_v2_arrays import ZarrV2Array, ZarrV2Group, check_length, episode_ends
from embodied.errors import UserError
from embodied.protocols import DemonstrationStore
from embodied.types import Json

FORMAT = "replay_buffer"
CHUNK_BYTES = 2 * 1024 * 1024  # decoded; a few hundred files for an hour of small images
# Ours -> theirs, where ReplayBuffer's users expect a name; the rest is called as in the store.
_NAMES = {"state": "", "image": "", **{key: key for key in ("action", "executed", "reward", "success", "time_s")}}
_NAMES["physics"] = "physics"
_OURS = {"reward": "reward"}  # theirs -> ours; any other array is what its shape says
LOST = [
    f"the task's spec, seeds, variants, instructions and provenance: kept in the attribute '{RECORD}' of `meta`, "
    "which ReplayBuffer does not read",
    "checksums, and attempts that were dropped",
]


def is_replay_buffer(path: Path) -> bool:
    """Whether a Zarr v2 group may be at `path`, as far as names tell."""
    return (path / ".zgroup").is_file() or (path.is_file() and path.suffix == ".zip")


def export_replay_buffer(store: DemonstrationStore, path: str | Path) -> list[str]:
    """Write a store's episodes; a path that ends in ".zip" becomes one file. Holds one episode and a chunk an array.

    A store that was imported from this format gets its arrays back, in their names, types and shapes.

    Returns:
        what the format cannot hold, in words.

    Raises:
        UserError: something is at `path`, the store is empty, or its data are damaged.
    """
    path = Path(path)
    columns = exported_columns(store, FORMAT, _NAMES)
    with made_whole(path) as building:
        files = ZipStore(building, mode="w") if path.suffix == ".zip" else LocalStore(building)
        try:
            _write(store, columns, files)
        finally:
            files.close()
    made_up = store.provenance.get("source", {}).get("made_up")
    return LOST + ([f"{', '.join(made_up)}: not written, nobody recorded them"] if made_up else [])


def import_replay_buffer(path: str | Path, store_path: str | Path, stated: Stated | None = None) -> list[str]:
    """Make an episode store of a ReplayBuffer; what lies below `data/` is told apart by shape.

    [T h w 3] is a camera's images, [T d] and [T n d] a state vector, "action" the action, "reward" the reward.

    Returns:
        what was left out, rounded or made up, in words.

    Raises:
        UserError: see `import_episodes`; arrays that are missing, damaged, or unsafe to decode.
    """
    return import_episodes(ReplayBufferFile(Path(path)), store_path, stated or Stated())


class ReplayBufferFile:
    """A ReplayBuffer opened for reading (`ForeignEpisodes`)."""

    format = FORMAT

    def __init__(self, path: Path) -> None:
        self.path = path
        group = ZarrV2Group(path)
        self._ends = [int(end) for end in episode_ends(group)]
        self._arrays = {key.removeprefix("data/"): ZarrV2Array(group, key) for key in group.array_keys("data")}
        for array in self._arrays.values():
            check_length(array, self._ends[-1])
        self._record = self._read_record(group)
        self.lengths = tuple(np.diff(self._ends, prepend=0).tolist())
        self.columns = tuple(
            Column(key, array.dtype, array.row_shape, recorded(self._record, key, _holds(key, array.row_shape)))
            for key, array in self._arrays.items()
        )
        self.facts = Facts(task=f"imported/{path.name.partition('.')[0]}", record=self._record)

    def label(self, index: int) -> str:
        return f"episode {index}"

    def read(self, index: int, column: Column) -> np.ndarray:
        end = self._ends[index]
        return self._arrays[column.key].read(end - self.lengths[index], end)

    def details(self, index: int) -> Json:
        return self._record["episodes"][index] if self._record else {}

    def _read_record(self, group: ZarrV2Group) -> Json | None:
        try:
            attributes = group.metadata("meta/.zattrs") or {}
        except (OSError, ValueError) as error:
            raise UserError(
                expected=f"readable attributes of {self.path}", found=str(error), remedy=COPY_REMEDY
            ) from error
        if not isinstance(attributes, dict) or RECORD not in attributes:
            return None
        return checked_record(attributes[RECORD], self.path, len(self._ends))


def _holds(key: str, row_shape: tuple[int, ...]) -> str | None:
    name = key.replace("/", ".")
    if name == "action":
        return "action"
    return _OURS[name] if name in _OURS and row_shape in ((), (1,)) else by_shape(name, row_shape)


def _write(store: DemonstrationStore, columns: list[Column], files: LocalStore | ZipStore) -> None:
    total_steps = store.total_steps
    writers = {column.holds: _RowWriter(files, column, total_steps) for column in columns}
    ends, details = [], []
    for index in range(len(store)):
        episode = store.episode(index)
        arrays = episode_arrays(episode)
        for key, writer in writers.items():
            writer.add(arrays[str(key)])
        ends.append((ends[-1] if ends else 0) + episode.length)
        details.append(details_of(episode))
    for writer in writers.values():
        writer.finish()
    # Last, and each once: a zip file has no place for a second version.
    record = {**record_of(store, columns), "episodes": details}
    zarr.create_group(files, path="meta", zarr_format=2, attributes={RECORD: record})
    _array(files, "meta/episode_ends", np.dtype(np.int64), (), len(ends), len(ends))[:] = np.array(ends, np.int64)


class _RowWriter:
    """One array, written a whole chunk at a time, in order."""

    def __init__(self, files: LocalStore | ZipStore, column: Column, total_steps: int) -> None:
        row_bytes = column.size * column.dtype.itemsize
        self._column = column
        self._chunk_rows = max(1, min(total_steps, CHUNK_BYTES // row_bytes))
        self._array = _array(files, f"data/{column.key}", column.dtype, column.row_shape, total_steps, self._chunk_rows)
        self._waiting: list[np.ndarray] = []
        self._written = 0

    def add(self, values: np.ndarray) -> None:
        """The next rows, in the store's type and shape."""
        values = values.reshape(len(values), *self._column.row_shape).astype(self._column.dtype)
        self._waiting.append(values)
        waiting = sum(map(len, self._waiting))
        if waiting >= self._chunk_rows:
            self._flush(waiting - waiting % self._chunk_rows)

    def finish(self) -> None:
        self._flush(sum(map(len, self._waiting)))

    def _flush(self, count: int) -> None:
        if not count:
            return
        rows = np.concatenate(self._waiting)
        self._array[self._written : self._written + count] = rows[:count]
        self._written += count
        self._waiting = [rows[count:]]


def _array(
    files: LocalStore | ZipStore, key: str, dtype: np.dtype, row_shape: Iterable[int], rows: int, chunk_rows: int
) -> zarr.Array:
    return zarr.create_array(
        files,
        name=key,
        shape=(rows, *row_shape),
        chunks=(chunk_rows, *row_shape),
        dtype=dtype,
        compressors=Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE),
        zarr_format=2,
        config={"write_empty_chunks": True},
    )
