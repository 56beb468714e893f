"""Camera images of a store for training: from a memory map where they fit on the disk, else from the shards."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from embodied.console import say
from embodied.datasets.mapped_images import is_mapped, map_images
from embodied.protocols import DemonstrationStore
from embodied.types import CameraSpec

DISK_SHARE = 0.5  # of the disk's free space, which decoded images may fill


class ImageRows:
    """The images of some cameras, by the row of their control step. Nothing is read before it is asked for."""

    def __init__(
        self,
        store: DemonstrationStore,
        cameras: Iterable[CameraSpec],
        *,
        cache: Path | None = None,
        most_bytes: int | None = None,
    ) -> None:
        """
        Args:
            cameras: those to read; the store's others are left alone.
            cache: folder for decoded images (`map_images`); None to read the shards.
            most_bytes: that the decoded images may take on the disk together; None for half of what is free.
        """
        self._store = store
        self._cameras = tuple(cameras)
        self._cache, self._most_bytes = cache, most_bytes
        self._mapped: dict[str, np.ndarray] | None = None  # None before the first request
        self._opening = threading.Lock()  # training reads ahead while it validates

    @property
    def bytes(self) -> int:
        """Of all images, decoded."""
        return sum(self._camera_bytes(camera) for camera in self._cameras)

    @property
    def are_mapped(self) -> bool:
        """Whether they come from a memory map; decided, and made, at the first request."""
        return bool(self._mapped)

    def gather(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The images at these rows, int64 [...]: of each camera uint8 [... h w 3].

        Raises:
            UserError: damaged data.
        """
        with self._opening:
            if self._mapped is None:
                self._mapped = self._open()
        return {
            camera.name: self._mapped[camera.name][rows] if self._mapped else self._read(camera.name, rows)
            for camera in self._cameras
        }

    def _open(self) -> dict[str, np.ndarray]:
        if self._cache is None or not self._fits(self._cache):
            return {}
        try:
            return {camera.name: map_images(self._store, camera, self._cache) for camera in self._cameras}
        except OSError as error:
            say(f"images are read from the shards of {self._store.path}: {self._cache}: {error.strerror or error}")
            return {}

    def _fits(self, cache: Path) -> bool:
        if self._most_bytes is not None and self.bytes > self._most_bytes:
            return False
        missing = [camera for camera in self._cameras if not is_mapped(self._store, camera, cache)]
        existing = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
        return sum(map(self._camera_bytes, missing)) <= DISK_SHARE * shutil.disk_usage(existing).free

    def _camera_bytes(self, camera: CameraSpec) -> int:
        return self._store.total_steps * camera.height * camera.width * 3

    def _read(self, camera: str, rows: np.ndarray) -> np.ndarray:
        """Every row once: the frames of a history share a chunk."""
        wanted, places = np.unique(rows, return_inverse=True)
        images = self._store.read_at(f"image/{camera}", wanted)
        return images[places].reshape(*rows.shape, *images.shape[1:])
