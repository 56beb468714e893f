"""Camera images of a store for training: all in memory where they fit, else read from the store as they are needed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import psutil

from embodied.protocols import DemonstrationStore
from embodied.types import CameraSpec

# Share of the memory that is free at the start which images may fill; they are copied out of the store once.
MEMORY_SHARE = 0.5
BLOCK_ROWS = 512  # decoded at once on the way into memory


class ImageRows:
    """The images of some cameras, by the row of their control step. Nothing is read before it is asked for."""

    def __init__(
        self, store: DemonstrationStore, cameras: Iterable[CameraSpec], *, most_bytes: int | None = None
    ) -> None:
        """
        Args:
            cameras: those to read; the store's others are left alone.
            most_bytes: memory that the images may take together; None for half of what is free now.
        """
        self._store = store
        self._cameras = tuple(cameras)
        self._most_bytes = most_bytes
        self._memory: dict[str, np.ndarray] | None = None  # None before the first request

    @property
    def bytes(self) -> int:
        """Of all images, decoded."""
        return self._store.total_steps * sum(camera.height * camera.width * 3 for camera in self._cameras)

    def gather(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The images at these rows, int64 [...]: of each camera uint8 [... h w 3].

        Raises:
            UserError: damaged data.
        """
        if self._memory is None:
            self._memory = self._load()
        return {
            camera.name: self._memory[camera.name][rows] if self._memory else self._read(camera.name, rows)
            for camera in self._cameras
        }

    def _load(self) -> dict[str, np.ndarray]:
        most = MEMORY_SHARE * psutil.virtual_memory().available if self._most_bytes is None else self._most_bytes
        if self.bytes > most:
            return {}
        return {camera.name: self._load_camera(camera) for camera in self._cameras}

    def _load_camera(self, camera: CameraSpec) -> np.ndarray:
        steps = self._store.total_steps
        images = np.empty((steps, camera.height, camera.width, 3), np.uint8)
        for start in range(0, steps, BLOCK_ROWS):
            end = min(start + BLOCK_ROWS, steps)
            images[start:end] = self._store.read_rows(f"image/{camera.name}", start, end)
        return images

    def _read(self, camera: str, rows: np.ndarray) -> np.ndarray:
        """Each run of neighbours at once: the frames of a history share a chunk."""
        wanted, places = np.unique(rows, return_inverse=True)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)
        images = [self._store.read_rows(f"image/{camera}", int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
        return np.concatenate(images)[places].reshape(*rows.shape, *images[0].shape[1:])
