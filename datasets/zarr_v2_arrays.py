"""One array of a Zarr v2 group, read-only, and only if decoding it runs none of its author's code."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from embodied.datasets.jpegxl_images import CODEC_ID as JPEG_XL
from embodied.datasets.jpegxl_images import register_jpegxl
from embodied.errors import UserError

# Compressors alone: numcodecs has filters, such as "pickle", that run whatever the file says.
SAFE_COMPRESSORS = ("blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma")
CHUNK_BYTES = 2**30  # at most: what a chunk claims to hold is asked of the memory before it is decoded
METADATA_BYTES = 2**28
COPY_REMEDY = "copy the store again from where it came"


class ZarrV2Group:
    """A Zarr v2 group in a folder or a zip file: its names, its metadata, and the store to open arrays from."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: nothing there, a damaged zip file, or no Zarr v2 group.
        """
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        if path.is_file():
            try:
                self._archive = zipfile.ZipFile(path)
                self._archive.getinfo(".zgroup")
            except (zipfile.BadZipFile, KeyError, OSError) as error:
                raise self._not_there(f"a file that is none ({error})") from error
        elif not (path / ".zgroup").is_file():
            raise self._not_there("something else" if path.exists() else "nothing")

    def _not_there(self, found: str) -> UserError:
        return UserError(expected=f"a Zarr v2 group at {self.path}", found=found, remedy=COPY_REMEDY)

    @property
    def store(self) -> LocalStore | ZipStore:
        return ZipStore(self.path, mode="r") if self._archive else LocalStore(self.path, read_only=True)

    def metadata(self, name: str) -> Any:
        """The JSON object `name`, such as "data/state/.zarray"; None without one.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        if self._archive is None:
            file = self.path / name
            return json.loads(file.read_bytes()) if file.is_file() else None
        try:
            info = self._archive.getinfo(name)
        except KeyError:
            return None
        if info.file_size > METADATA_BYTES:
            raise ValueError(f"{name} claims {info.file_size / 1e6:,.0f} MB")
        try:
            return json.loads(self._archive.read(info))
        except (zipfile.BadZipFile, RuntimeError) as error:
            raise ValueError(str(error)) from error

    def array_keys(self, folder: str) -> list[str]:
        """The arrays anywhere below `folder`, sorted."""
        if self._archive is None:
            names = [str(file.relative_to(self.path)) for file in (self.path / folder).rglob(".zarray")]
        else:
            names = self._archive.namelist()
        return sorted(
            name.removesuffix("/.zarray")
            for name in names
            if name.startswith(f"{folder}/") and name.endswith("/.zarray")
        )


class ZarrV2Array:
    """Numbers with a leading axis of rows."""

    def __init__(
        self, group: ZarrV2Group | Path, key: str, kinds: str = "fiub", row_shape: tuple[int | None, ...] | None = None
    ) -> None:
        """
        Args:
            group: that holds it, or the group's path.
            key: of the array within it, such as "data/state".
            kinds: numpy's letters of the kinds of number that fit: "f", "i", "u", "b".
            row_shape: what follows the leading axis; None where any size, or any shape, fits.

        Raises:
            UserError: no such array, of another kind or shape, or with filters or a compressor that are not plain.
        """
        group = ZarrV2Group(group) if isinstance(group, Path) else group
        self.path, self.key = group.path, key
        metadata = self._metadata(group)
        try:
            shape, self.dtype = tuple(metadata["shape"]), np.dtype(metadata["dtype"])
            compressor, filters = metadata["compressor"], metadata["filters"]
            chunk_bytes = math.prod(metadata["chunks"]) * self.dtype.itemsize
        except (KeyError, TypeError, ValueError) as error:
            raise self._unreadable(f"metadata that make no sense ({error})") from error
        self._check_shape(shape, kinds, row_shape)
        self._check_decoding(filters, compressor)
        if chunk_bytes > CHUNK_BYTES:
            raise self._unreadable(f"chunks of {chunk_bytes / 1e9:,.1f} GB, more than {CHUNK_BYTES / 1e9:,.1f}")
        self.row_shape: tuple[int, ...] = shape[1:]
        try:
            self._array = zarr.open_array(
                group.store, path=key, mode="r", zarr_format=2, config={"read_missing_chunks": False}
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._unreadable(f"metadata that make no sense ({error})") from error

    def __len__(self) -> int:
        return self._array.shape[0]

    def read(self, start: int, end: int) -> np.ndarray:
        """Rows `start` to `end` (exclusive), in the stored type.

        Raises:
            UserError: they cannot be read, or are not finite.
        """
        values = self.decode(start, end)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = start + int(np.argwhere(~np.isfinite(values))[0][0])
            raise self._unreadable(f"a value that is not finite in row {row}")
        return values

    def decode(self, start: int, end: int) -> np.ndarray:
        """Rows `start` to `end` (exclusive), whatever their values.

        Raises:
            UserError: they cannot be read.
        """
        try:
            return np.asarray(self._array[start:end])
        except (ValueError, RuntimeError, OSError, MemoryError, KeyError, zipfile.BadZipFile) as error:
            raise self._unreadable(str(error).partition("\n")[0] or type(error).__name__) from error

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows, a chunk at a time."""
        for start, end in self.chunk_ranges():
            yield self.read(start, end)

    def chunk_ranges(self) -> Iterator[tuple[int, int]]:
        """The rows of each chunk: the first, and the one after the last."""
        step = self._array.chunks[0]
        for start in range(0, len(self), step):
            yield start, min(start + step, len(self))

    def chunk_file(self, row: int) -> str:
        """The file that holds a row (its first element), below the group's folder."""
        place = (row // self._array.chunks[0], *(0 for _ in self.row_shape))
        return f"{self.key}/{self._array.metadata.encode_chunk_key(place)}"

    def _check_decoding(self, filters: Any, compressor: Any) -> None:
        name = None if compressor is None else compressor.get("id") if isinstance(compressor, dict) else compressor
        if filters or name not in (None, *SAFE_COMPRESSORS, JPEG_XL):
            raise UserError(
                expected=f"{self.key} of {self.path} without filters, compressed by one of "
                f"{', '.join(SAFE_COMPRESSORS)}, or images in JPEG XL",
                found=json.dumps({"filters": filters, "compressor": compressor})[:200],
                remedy="write the array again without them",
            )
        if name == JPEG_XL:
            register_jpegxl()

    def _check_shape(self, shape: tuple[int, ...], kinds: str, row_shape: tuple[int | None, ...] | None) -> None:
        fits = len(shape) > 0 if row_shape is None else len(shape) == len(row_shape) + 1
        if fits and row_shape is not None:
            fits = all(wanted in (None, size) for wanted, size in zip(row_shape, shape[1:], strict=True))
        if self.dtype.kind not in kinds or not fits:
            names = {"f": "floats", "i": "integers", "u": "integers", "b": "truth values"}
            sizes = ["T", *("any" if size is None else size for size in row_shape or ("...",))]
            wanted = f"{names[kinds[0]]} of shape [{' '.join(map(str, sizes))}]"
            remedy = "name a store of the human Push-T demonstrations, or one made by `embodied collect`"
            raise UserError(
                expected=f"{self.key} of {self.path} as {wanted}",
                found=f"{self.dtype.name} {list(shape)}",
                remedy=remedy if row_shape is not None else "take that array out of the store",
            )

    def _metadata(self, group: ZarrV2Group) -> dict[str, Any]:
        try:
            metadata = group.metadata(f"{self.key}/.zarray")
        except (OSError, ValueError) as error:
            raise self._unreadable(str(error)) from error
        if metadata is None:
            raise self._unreadable("no such array")
        if not isinstance(metadata, dict):
            raise self._unreadable("metadata that are no JSON object")
        return metadata

    def _unreadable(self, found: str) -> UserError:
        return UserError(expected=f"the array {self.key} intact in {self.path}", found=found, remedy=COPY_REMEDY)


def episode_ends(group: ZarrV2Group | Path) -> np.ndarray:
    """`meta/episode_ends`, the row after the last of each episode: int64 [episodes].

    Raises:
        UserError: none, or they do not rise.
    """
    ends = ZarrV2Array(group, "meta/episode_ends", "iu", ())
    values = ends.read(0, len(ends)).astype(np.int64)
    if not len(values) or (np.diff(values, prepend=0) < 1).any():
        raise UserError(
            expected=f"episode ends that rise by at least 1 in {ends.path}",
            found=str(values[:10].tolist()) if len(values) else "none",
            remedy=COPY_REMEDY,
        )
    return values


def check_length(array: ZarrV2Array, total_steps: int) -> None:
    """Raise a UserError if an array has not as many rows as the episode ends say."""
    if len(array) != total_steps:
        raise UserError(
            expected=f"{total_steps} rows of {array.key} in {array.path}, as its episode ends say",
            found=str(len(array)),
            remedy=COPY_REMEDY,
        )
