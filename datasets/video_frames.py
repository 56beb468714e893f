"""Camera images as other programs keep them, in files of video and as PNG or JPEG, back to bytes.

PyAV comes with the extra `lerobot` and is imported where it is used.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embodied.datasets.foreign_episodes import COPY_REMEDY
from embodied.errors import UserError

NEAREST = 0.25  # of the time between two frames: further off, a frame is not the one that is meant


def decoded_image(content: Any, row_shape: Sequence[int]) -> np.ndarray:
    """A PNG or JPEG as uint8 [h w 3].

    Raises:
        ValueError: something else, in words: no such file, another size, or other colours than red, green, blue.
    """
    height, width = row_shape[:2]
    if not isinstance(content, bytes):
        raise ValueError("no image (a path to a file elsewhere is not followed)")
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            # Before the pixels are decoded: the file says how many it claims to have.
            if image.size != (width, height) or image.mode != "RGB":
                raise ValueError(f"an image of {image.size[1]}x{image.size[0]} in mode {image.mode}")
            return np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"an image that cannot be decoded ({error})") from error


class VideoReader:
    """The frames of several files of one camera, decoded forwards; going back starts at the key frame before."""

    def __init__(self, row_shape: Sequence[int], fps: float) -> None:
        self._shape = tuple(row_shape)
        self._dt_s = 1.0 / fps
        self._path: Path | None = None
        self._frames: Iterator[tuple[float, Any]] = iter(())
        self._next: tuple[float, Any] | None = None

    def frames(self, path: Path, times_s: Sequence[float]) -> np.ndarray:
        """The frame at each time, which rise: uint8 [T h w 3].

        Raises:
            UserError: a file that cannot be decoded, images of another size, or no frame at one of the times.
        """
        tolerance_s = NEAREST * self._dt_s
        if path != self._path or self._next is None or times_s[0] < self._next[0] - tolerance_s:
            self.close()
            self._path, self._frames = path, self._decode(path, times_s[0])
            self._next = next(self._frames, None)
        images = np.empty((len(times_s), *self._shape), np.uint8)
        for index, time_s in enumerate(times_s):
            while self._next is not None and self._next[0] < time_s - tolerance_s:
                self._next = next(self._frames, None)
            if self._next is None or self._next[0] > time_s + tolerance_s:
                found = "the video's end" if self._next is None else f"the next one at {self._next[0]:.4f} s"
                raise UserError(
                    expected=f"a frame at {time_s:.4f} s of {path}", found=found, remedy="copy or record it again"
                )
            images[index] = self._bytes(path, self._next[1])
        return images

    def close(self) -> None:
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()
        self._path, self._frames, self._next = None, iter(()), None

    def _bytes(self, path: Path, frame: Any) -> np.ndarray:
        if (frame.height, frame.width) != self._shape[:2]:
            raise UserError(
                expected=f"images of {self._shape[0]}x{self._shape[1]} in {path}",
                found=f"{frame.height}x{frame.width}",
                remedy=COPY_REMEDY,
            )
        return frame.to_ndarray(format="rgb24")

    def _decode(self, path: Path, start_s: float) -> Iterator[tuple[float, Any]]:
        """Frames in the order in which they are shown, with their times in s, from a key frame before `start_s` on."""
        import av
        from av.error import FFmpegError

        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                time_base = float(stream.time_base or 0)
                if start_s > 0:
                    container.seek(max(0, round(start_s / time_base) - 1), stream=stream)
                for frame in container.decode(stream):
                    if frame.pts is not None:
                        yield frame.pts * time_base, frame
        except (FFmpegError, IndexError, ZeroDivisionError) as error:
            raise UserError(
                expected=f"a video that can be decoded at {path}", found=str(error), remedy=COPY_REMEDY
            ) from error
