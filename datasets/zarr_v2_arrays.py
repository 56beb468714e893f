"""One array of a Zarr v2 group, read-only, and only if decoding it runs none of its author's code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from embodied.errors import UserError

# Compressors alone: numcodecs has filters, such as "pickle", that run whatever the file says.
SAFE_COMPRESSORS = ("blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma")
_COPY_REMEDY = "copy the store again from where it came"


class ZarrV2Array:
    """Numbers with a leading axis of rows."""

    def __init__(self, path: Path, key: str, kinds: str, row_shape: tuple[int | None, ...]) -> None:
        """
        Args:
            path: of the group.
            key: of the array within it, such as "data/state".
            kinds: numpy's letters of the kinds of number that fit: "f", "i", "u".
            row_shape: what follows the leading axis; None where any size fits.

        Raises:
            UserError: no such array, of another kind or shape, or with filters or a compressor that are not plain.
        """
        self.path, self.key = path, key
        metadata = self._metadata()
        try:
            shape, dtype = tuple(metadata["shape"]), np.dtype(metadata["dtype"])
            compressor, filters = metadata["compressor"], metadata["filters"]
        except (KeyError, TypeError, ValueError) as error:
            raise self._unreadable(f"metadata that make no sense ({error})") from error
        fits = len(shape) == len(row_shape) + 1 and all(
            wanted in (None, size) for wanted, size in zip(row_shape, shape[1:], strict=True)
        )
        if dtype.kind not in kinds or not fits:
            wanted_shape = ["T", *("any" if size is None else size for size in row_shape)]
            names = {"f": "floats", "i": "integers", "u": "integers"}
            raise UserError(
                expected=f"{key} of {path} as {names[kinds[0]]} of shape [{' '.join(map(str, wanted_shape))}]",
                found=f"{dtype.name} {list(shape)}",
                remedy="name a store of the human Push-T demonstrations, or one made by `embodied collect`",
            )
        if filters or (compressor is not None and compressor.get("id") not in SAFE_COMPRESSORS):
            raise UserError(
                expected=f"{key} of {path} without filters, compressed by one of {', '.join(SAFE_COMPRESSORS)}",
                found=json.dumps({"filters": filters, "compressor": compressor})[:200],
                remedy="write the array again without them",
            )
        self.row_shape: tuple[int, ...] = shape[1:]
        self._array = zarr.open_array(
            LocalStore(path, read_only=True), path=key, mode="r", zarr_format=2, config={"read_missing_chunks": False}
        )

    def __len__(self) -> int:
        return self._array.shape[0]

    def read(self, start: int, end: int) -> np.ndarray:
        """Rows `start` to `end` (exclusive), in the stored type.

        Raises:
            UserError: they cannot be read, or are not finite.
        """
        try:
            values = np.asarray(self._array[start:end])
        except (ValueError, RuntimeError, OSError) as error:
            raise self._unreadable(str(error).partition("\n")[0]) from error
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = start + int(np.argwhere(~np.isfinite(values))[0][0])
            raise self._unreadable(f"a value that is not finite in row {row}")
        return values

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows, a chunk at a time."""
        step = self._array.chunks[0]
        for start in range(0, len(self), step):
            yield self.read(start, min(start + step, len(self)))

    def _metadata(self) -> dict[str, Any]:
        file = self.path / self.key / ".zarray"
        try:
            metadata = json.loads(file.read_bytes())
        except FileNotFoundError as error:
            raise self._unreadable("no such array") from error
        except (OSError, ValueError) as error:
            raise self._unreadable(str(error)) from error
        if not isinstance(metadata, dict):
            raise self._unreadable("metadata that are no JSON object")
        return metadata

    def _unreadable(self, found: str) -> UserError:
        return UserError(expected=f"the array {self.key} intact in {self.path}", found=found, remedy=_COPY_REMEDY)
