"""openpi's messages: arrays come back bit-equal, and nothing but numbers comes in."""

import msgpack
import numpy as np
import pytest
from stand_in_server import as_message, from_message

from embodied import wire
from embodied.errors import UserError

MESSAGE = {
    "state": np.array([[1.5, -np.inf], [np.nan, 0]], np.float32),
    "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    "mask": np.array([True, False]),
    "big": np.array([2**40], ">i8"),
    "nothing": np.zeros((0, 7)),
    "scalar": np.float64(0.1),
    "count": np.int16(-3),
    "prompt": "pick up the can",
    "nested": {"list": [1, 2.5, None, True], "bytes": b"\0\xff"},
}


def equal(one, other):
    if isinstance(one, np.ndarray | np.generic):
        return (
            one.dtype == other.dtype
            and np.shape(one) == np.shape(other)
            and np.asarray(one).tobytes() == np.asarray(other).tobytes()
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return one == other


def test_a_message_comes_back_bit_equal():
    assert equal(wire.unpack(wire.pack(MESSAGE)), MESSAGE)


def test_both_sides_read_the_other_form_of_the_protocol():
    arrays = {key: value for key, value in MESSAGE.items() if isinstance(value, np.ndarray) and value.size}
    assert equal(wire.unpack(msgpack.packb(arrays, default=as_message)), arrays)
    assert equal(msgpack.unpackb(wire.pack(arrays), object_hook=from_message), arrays)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.array([object()]), "dtype object"),
        (np.array(["a"]), "dtype <U1"),
        (np.array([1j]), "dtype complex128"),
        (np.zeros(2, [("a", "f4")]), "dtype"),
        (object(), "type object"),
        (2**70, "type int"),
    ],
    ids=["objects", "texts", "complex", "records", "object", "large"],
)
def test_what_the_protocol_has_no_form_for_is_named(value, named):
    with pytest.raises(UserError, match=f"a message of numbers, .*; found .*{named}"):
        wire.pack({"state": value})


def array(**changes):
    fields = {"__ndarray__": True, "data": b"\0" * 8, "dtype": "<f4", "shape": (2,), **changes}
    return msgpack.packb({"actions": {key.encode(): value for key, value in fields.items()}})


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        (array(dtype="|O"), "dtype '|O'"),
        (array(dtype="|V8"), "dtype"),
        (array(dtype="<c8"), "dtype"),
        (array(dtype="no such"), "dtype 'no such'"),
        (array(dtype=3), "dtype 3"),
        (array(shape=(3,)), r"an array \[3\] of float32 with 8 bytes"),
        (array(shape=(-2,)), r"shape \[-2\]"),
        (array(shape=2), "shape 2"),
        (array(shape=(1,) * 9), "shape"),
        (array(shape=(2**62, 2**62)), "with 8 bytes"),
        (array(data="text"), "with no bytes"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}), "dtype"),
        (b"\xc1", "FormatError"),
        (b"\x81\xa5acti", "incomplete input"),
        (msgpack.packb({"a": 1}) + b"\0", "ExtraData"),
        (b"", "ValueError|Unpack"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:20],
)
def test_damaged_or_foreign_frames_are_named(frame, named):
    with pytest.raises(UserError, match=f"MessagePack message of numbers.*; found .*({named})"):
        wire.unpack(frame)


def test_a_frame_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(wire, "LARGEST_MESSAGE_BYTES", 10)
    with pytest.raises(UserError, match="11 bytes, more than 10"):
        wire.unpack(b"\0" * 11)
