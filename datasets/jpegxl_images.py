"""Images in chunks of JPEG XL, as UMI publishes them in Zarr v2: decoded, never written.

The file's name for the codec is `imagecodecs_jpegxl`; imagecodecs comes with the extra `umi`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numcodecs
import numpy as np
from numcodecs.abc import Codec

from embodied.errors import UserError

CODEC_ID = "imagecodecs_jpegxl"
MOST_PIXELS = 2**26  # of one image: asked of the memory before the file is decoded
_CODESTREAM = b"\xff\x0a"
_CONTAINER = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
# Width over height, by the number in a file's size header (ISO/IEC 18181-1, SizeHeader).
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


def register_jpegxl() -> None:
    """Let numcodecs, and so zarr, decode such chunks.

    Raises:
        UserError: imagecodecs is not installed.
    """
    try:
        import imagecodecs  # noqa: F401
    except ImportError as error:
        raise UserError(
            expected="imagecodecs, to decode images in JPEG XL",
            found=str(error),
            remedy="pip install 'embodied-policies[umi]'",
        ) from error
    numcodecs.register_codec(_JpegXlImage)


class _JpegXlImage(Codec):
    """One image a chunk. Its settings are those of the encoder; the file itself says what a decoder needs."""

    codec_id = CODEC_ID

    @classmethod
    def from_config(cls, config: Any) -> _JpegXlImage:
        return cls()

    def get_config(self) -> dict[str, Any]:
        return {"id": CODEC_ID}

    def encode(self, buf: Any) -> bytes:
        raise RuntimeError("arrays in JPEG XL are read only")

    def decode(self, buf: Any, out: Any = None) -> np.ndarray:
        """The first frame.

        Raises:
            ValueError: no JPEG XL, a damaged file, or more pixels than any camera has.
        """
        import imagecodecs

        data = bytes(buf)
        height, width = image_size(data)
        if height * width > MOST_PIXELS:
            raise ValueError(f"an image that claims {height}x{width} pixels")
        try:
            return imagecodecs.jpegxl_decode(data, index=0, numthreads=1)
        except RuntimeError as error:  # imagecodecs' own
            raise ValueError(f"JPEG XL that cannot be decoded ({error})") from error


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width that a JPEG XL file claims, without decoding it.

    Raises:
        ValueError: no JPEG XL.
    """
    stream = _codestream(data)
    if not stream.startswith(_CODESTREAM) or len(stream) < 12:
        raise ValueError("no JPEG XL image")
    bits = _Bits(stream[2:12])
    small = bits.take(1)
    height = _side(bits, small)
    ratio = bits.take(3)
    if ratio == 0:
        return height, _side(bits, small)
    times, over = _RATIOS[ratio]
    return height, height * times // over


def _side(bits: _Bits, small: int) -> int:
    if small:
        return 8 * (bits.take(5) + 1)
    return bits.take((9, 13, 18, 30)[bits.take(2)]) + 1


class _Bits:
    """Read from the least significant bit of the first byte on."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        taken = self._value & ((1 << count) - 1)
        self._value >>= count
        return taken


def _codestream(data: bytes) -> bytes:
    """The image within its container, if there is one: of a stream in parts the first."""
    if not data.startswith(_CONTAINER):
        return data
    for kind, content in _boxes(data):
        if kind == b"jxlc":
            return content
        if kind == b"jxlp":
            return content[4:]
    return b""


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of each box: a size of 4 bytes (0: to the end, 1: in the 8 bytes behind), the type, the rest."""
    place = 0
    while place + 8 <= len(data):
        size, kind, head = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        end = len(data) if size == 0 else place + size
        if end < place + head:
            return
        yield kind, data[place + head : end]
        place = end
