"""Messages of openpi's websocket protocol: MessagePack with numpy arrays and scalars.

An array is a map with the bytes keys `__ndarray__`, `data`, `dtype` (numpy's `dtype.str`) and `shape`; a scalar has
`__npgeneric__`, `data` and `dtype`. Booleans, integers and floats alone: nothing on the wire can name code to run.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np

from embodied.errors import UserError

LARGEST_MESSAGE_BYTES = 64 * 2**20
MOST_DIMENSIONS = 8
KINDS = "biuf"  # of dtypes: booleans, integers, floats
_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"


def pack(message: dict[str, Any]) -> bytes:
    """One binary frame.

    Raises:
        UserError: a value that the protocol has no form for, such as an array of objects.
    """
    try:
        return msgpack.packb(message, default=_encode)  # type: ignore[return-value]  # the stub allows None
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            expected="a message of numbers, texts, lists, maps and numpy arrays of numbers",
            found=str(error),
            remedy="convert the value that it names before it is sent",
        ) from error


def unpack(frame: bytes) -> Any:
    """The inverse of `pack`. Arrays are read-only views of the frame.

    Raises:
        UserError: the frame is too large or damaged, or an array in it is not one of numbers or not whole.
    """
    if len(frame) > LARGEST_MESSAGE_BYTES:
        raise _unreadable(f"{len(frame)} bytes, more than {LARGEST_MESSAGE_BYTES}")
    try:
        return msgpack.unpackb(frame, object_hook=_decode)
    except UserError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise _unreadable(f"{type(error).__name__}: {error}") from error


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in KINDS:
        raise TypeError(f"numpy values of dtype {value.dtype}")
    if isinstance(value, np.ndarray):
        return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a value of type {type(value).__name__}")


def _decode(found: dict[Any, Any]) -> Any:
    if _ARRAY in found:
        return _array(found)
    if _SCALAR in found:
        return _dtype(found).type(found.get(b"data", 0))
    return found


def _array(found: dict[Any, Any]) -> np.ndarray:
    dtype, shape, data = _dtype(found), found.get(b"shape"), found.get(b"data")
    if (
        not isinstance(shape, list | tuple)
        or len(shape) > MOST_DIMENSIONS
        or not all(isinstance(size, int) and size >= 0 for size in shape)
    ):
        raise _unreadable(f"an array of shape {shape!r}")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        size = len(data) if isinstance(data, bytes) else "no"
        raise _unreadable(f"an array {list(shape)} of {dtype.name} with {size} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _dtype(found: dict[Any, Any]) -> np.dtype:
    name = found.get(b"dtype")
    try:
        dtype = np.dtype(name) if isinstance(name, str) else None
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    if dtype is None or dtype.kind not in KINDS:
        raise _unreadable(f"an array of dtype {name!r}")
    return dtype


def _unreadable(found: str) -> UserError:
    return UserError(
        expected="a MessagePack message of numbers, texts, lists, maps and whole arrays of numbers",
        found=found,
        remedy="check that both sides speak openpi's websocket protocol",
    )
