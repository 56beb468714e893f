"""A chunk of actions as the pickle that LeRobot's robot client reads: a list of its `TimedAction`s.

Written operation by operation (`pickletools` names them), so that neither LeRobot nor torch is needed here: each action
is a 1-D float32 CPU tensor, a row of one storage that all of them share.
"""

from __future__ import annotations

import struct

import numpy as np

_HELPERS = "lerobot.async_inference.helpers"
# Places in the memo.
_TIMED_ACTION, _REBUILD, _STORAGE, _NO_HOOKS = range(4)


def timed_actions(actions_TA: np.ndarray, timestamp: float, timestep: int, dt_s: float) -> bytes:
    """
    Args:
        actions_TA: float32 [T A].
        timestamp: of the observation, in s of the robot's clock: that of the first action; the others follow each
            `dt_s` later.
        timestep: control step of the first action.
    """
    count, size = actions_TA.shape
    head = b"\x80\x04" + _name(_HELPERS, "TimedAction", _TIMED_ACTION) + b"0"
    head += _name("torch._utils", "_rebuild_tensor_v2", _REBUILD) + b"0"
    storage = _storage(actions_TA)
    head += _name("torch.storage", "_load_from_bytes") + b"B" + struct.pack("<I", len(storage)) + storage + b"\x85R"
    head += _put(_STORAGE) + b"0"
    head += _name("collections", "OrderedDict") + b")R" + _put(_NO_HOOKS) + b"0"
    rows = [
        _timed_action(timestamp + index * dt_s, timestep + index, _row(index * size, size)) for index in range(count)
    ]
    return head + b"](" + b"".join(rows) + b"e."


def _timed_action(timestamp: float, timestep: int, tensor: bytes) -> bytes:
    """An object without arguments, and its fields."""
    fields = _text("timestamp") + b"G" + struct.pack(">d", timestamp)
    fields += _text("timestep") + _integer(timestep) + _text("action") + tensor
    return _get(_TIMED_ACTION) + b")\x81}(" + fields + b"ub"


def _row(offset: int, size: int) -> bytes:
    """_rebuild_tensor_v2(storage, offset, (size,), (1,), False, {})"""
    arguments = _get(_STORAGE) + _integer(offset) + _integer(size) + b"\x85" + _integer(1) + b"\x85"
    return _get(_REBUILD) + b"(" + arguments + b"\x89" + _get(_NO_HOOKS) + b"tR"


def _storage(actions_TA: np.ndarray) -> bytes:
    """Torch's legacy format: a magic number, its version, the byte order, a description, a key, then the values."""
    values = np.ascontiguousarray(actions_TA, "<f4")
    sizes = b"".join(_text2(name) + b"K" + bytes([size]) for name, size in (("short", 2), ("int", 4), ("long", 4)))
    system = _text2("protocol_version") + b"M\xe9\x03" + _text2("little_endian") + b"\x88"
    system += _text2("type_sizes") + b"}(" + sizes + b"u"
    description = _text2("storage") + b"ctorch\nFloatStorage\n" + _text2("0") + _text2("cpu") + _integer(values.size)
    return b"".join(
        [
            b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b".",
            b"\x80\x02M\xe9\x03.",
            b"\x80\x02}(" + system + b"u.",
            b"\x80\x02(" + description + b"NtQ.",
            b"\x80\x02](" + _text2("0") + b"e.",
            struct.pack("<q", values.size),
            values.tobytes(),
        ]
    )


def _name(module: str, name: str, place: int | None = None) -> bytes:
    return _text(module) + _text(name) + b"\x93" + (b"" if place is None else _put(place))


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"\x8c" + bytes([len(encoded)]) + encoded


def _text2(text: str) -> bytes:
    """As protocol 2 writes it, which torch's format is in."""
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    encoded = value.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + encoded


def _put(place: int) -> bytes:
    return b"q" + bytes([place])


def _get(place: int) -> bytes:
    return b"h" + bytes([place])
