"""Frames that no robot sends: mutations of a good one, and bytes that are none."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np

from embodied import wire

Message = dict[str, Any]
Frame = bytes | str


def hostile_frame(message: Mapping[str, Any], generator: np.random.Generator) -> tuple[str, Frame]:
    """A kind, by its name, and a frame of it, made of a good message.

    Some mutations leave the message good (a flipped bit in an image): such a frame may be answered with actions.
    """
    name = list(KINDS)[generator.integers(len(KINDS))]
    return name, KINDS[name](dict(message), generator)


def _flipped(message: Message, generator: np.random.Generator) -> Frame:
    """One to eight bits are others."""
    frame = bytearray(wire.pack(message))
    for _ in range(generator.integers(1, 9)):
        frame[generator.integers(len(frame))] ^= 1 << generator.integers(8)
    return bytes(frame)


def _truncated(message: Message, generator: np.random.Generator) -> Frame:
    frame = wire.pack(message)
    return frame[: generator.integers(len(frame))]


def _padded(message: Message, generator: np.random.Generator) -> Frame:
    return wire.pack(message) + generator.bytes(int(generator.integers(1, 64)))


def _random(message: Message, generator: np.random.Generator) -> Frame:
    return generator.bytes(int(generator.integers(0, 512)))


def _huge(message: Message, generator: np.random.Generator) -> Frame:
    """Headers of MessagePack that promise up to 4 GiB."""
    header = [b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"][generator.integers(5)]  # array, map, bin, str, ext
    return header + struct.pack(">I", generator.integers(2**20, 2**32)) + generator.bytes(16)


def _nested(message: Message, generator: np.random.Generator) -> Frame:
    depth = int(generator.integers(100, 20_000))
    opening = [b"\x91", b"\x81\xa1a"][generator.integers(2)]  # arrays of one, maps of one
    return opening * depth + b"\xc0"


def _wrong_array(message: Message, generator: np.random.Generator) -> Frame:
    """An array whose dtype, shape or bytes are not those of an array."""
    fields: Message = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    changes: list[Message] = [
        {b"dtype": ["|O", "|V8", "<c8", "<U4", "no dtype", 7][generator.integers(6)]},
        {b"shape": [[2**62, 2**62], [-1], "x", [0] * 40, [2, 2**40]][generator.integers(5)]},
        {b"data": ["text", b"\0", None, bytes(64)][generator.integers(4)]},
    ]
    return _with_value(message, generator, fields | changes[generator.integers(len(changes))])


def _wrong_scalar(message: Message, generator: np.random.Generator) -> Frame:
    scalar = {b"__npgeneric__": True, b"data": "x" * 9, b"dtype": ["<f8", "|O", "<i4"][generator.integers(3)]}
    return _with_value(message, generator, scalar)


def _wrong_value(message: Message, generator: np.random.Generator) -> Frame:
    """Something of another kind, of another size, or no number."""
    values = [None, True, "text", 3, 2.5, [], {}, [[1, 2], [3]], np.zeros(5), np.full(2, np.nan), np.zeros((2, 2))]
    return _with_value(message, generator, values[generator.integers(len(values))])


def _wrong_words(message: Message, generator: np.random.Generator) -> Frame:
    """What a request says beside its observation, of another kind."""
    words = ("session", "reset", "seed", "episode_id", "time_s", "deadline_s", "executed", "earlier", "request_id")
    values = [-1, 2**60, float("nan"), float("inf"), "", "x" * 500, [1], {"a": 1}, b"\0", False]
    word = words[generator.integers(len(words))]
    return wire.pack({**message, word: values[generator.integers(len(values))]})


def _no_map(message: Message, generator: np.random.Generator) -> Frame:
    return msgpack.packb([None, 1, "x", [1, 2], b"x", {}][generator.integers(6)])  # type: ignore[return-value]


def _text(message: Message, generator: np.random.Generator) -> Frame:
    return "".join(map(chr, generator.integers(32, 0x2000, generator.integers(0, 60))))


def _with_value(message: Message, generator: np.random.Generator, value: Any) -> bytes:
    key = list(message)[generator.integers(len(message))]
    return wire.pack({**message, key: value})


KINDS: dict[str, Callable[[Message, np.random.Generator], Frame]] = {
    "bits flipped": _flipped,
    "truncated": _truncated,
    "padded": _padded,
    "random bytes": _random,
    "huge lengths": _huge,
    "deep nesting": _nested,
    "no array": _wrong_array,
    "no scalar": _wrong_scalar,
    "wrong value": _wrong_value,
    "wrong words": _wrong_words,
    "no map": _no_map,
    "text": _text,
}
