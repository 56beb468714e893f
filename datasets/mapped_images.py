"""Decoded images in a file that every process maps into its memory: decoded once, used by all runs on that store.

    FOLDER/<content hash of the store>/<camera>.npy     uint8 [T h w 3], in NumPy's own format
                                       <camera>.json    the marker, written last: rows, size, and the hash again

Without its marker a file is none. It is written by ordinary writes, since a full disk ends a process that writes
through a mapping.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from embodied.console import say
from embodied.datasets.durable_files import PARTIAL, replace_file, sync_folder
from embodied.protocols import DemonstrationStore
from embodied.types import CameraSpec, Json

BLOCK_ROWS = 512  # decoded at once
VERSION = 1  # another one when the same store decodes to other images


def map_images(store: DemonstrationStore, camera: CameraSpec, folder: Path) -> np.ndarray:
    """All images of a camera, uint8 [T h w 3], mapped read-only; decoded first where no run has done so.

    Processes that ask at the same time wait for the one that decodes.

    Raises:
        OSError: the folder cannot be written, or the disk is full; nothing half-written is left.
        UserError: damaged data.
    """
    content = store.content_hash()
    place = folder / content
    place.mkdir(parents=True, exist_ok=True)
    file, shape = place / f"{camera.name}.npy", (store.total_steps, camera.height, camera.width, 3)
    with _held(file.with_suffix(".lock")):
        if not is_mapped(store, camera, folder):
            say(f"decoding camera {camera.name} of {store.path} once into {file}, {np.prod(shape) / 1e6:,.1f} MB")
            _decode(store, camera, file, shape)
            marker = json.dumps(_marker(content, shape, file.stat().st_size))
            replace_file(file.with_suffix(".json"), marker.encode(), root=folder)
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


def is_mapped(store: DemonstrationStore, camera: CameraSpec, folder: Path) -> bool:
    """Whether a whole file of this camera's images stands in the folder."""
    content = store.content_hash()
    file, shape = folder / content / f"{camera.name}.npy", (store.total_steps, camera.height, camera.width, 3)
    try:
        return json.loads(file.with_suffix(".json").read_bytes()) == _marker(content, shape, file.stat().st_size)
    except (OSError, ValueError):
        return False


def _marker(content: str, shape: tuple[int, ...], size: int) -> Json:
    return {"version": VERSION, "content_hash": content, "shape": list(shape), "bytes": size}


def _decode(store: DemonstrationStore, camera: CameraSpec, file: Path, shape: tuple[int, ...]) -> None:
    partial = file.with_name(file.name + PARTIAL)
    try:
        with partial.open("wb") as out:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(out, header)
            for start in range(0, shape[0], BLOCK_ROWS):
                images = store.read_rows(f"image/{camera.name}", start, min(start + BLOCK_ROWS, shape[0]))
                out.write(np.ascontiguousarray(images).data)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
        sync_folder(file.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """One process at a time; the system lets go when a process ends, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
