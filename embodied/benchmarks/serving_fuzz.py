"""What becomes of a policy server's clients while others send it what no robot sends."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from embodied import wire
from embodied.benchmarks.hostile_frames import KINDS, hostile_frame
from embodied.errors import UserError

ANSWER_TIMEOUT_S = 20.0
OUTCOMES = ("refused", "answered", "closed", "silent")


@dataclass
class FuzzCounts:
    """By kind of frame: refused with a reason, answered (it was a good one after all), closed, or nothing came."""

    by_kind: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    without_reason: int = 0  # refusals and closings that do not say why
    connections: int = 0

    def total(self, outcome: str) -> int:
        return sum(counts[outcome] for counts in self.by_kind.values())


def fuzz(
    address: str,
    message: Mapping[str, Any],
    frames: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> FuzzCounts:
    """Send hostile frames one after the other, on one connection until it is closed, then on another.

    Args:
        message: a good one.
        progress: is told how many more frames have been sent.
    """
    generator = np.random.default_rng(seed)
    counts = FuzzCounts()
    connection: ClientConnection | None = None
    try:
        for _ in range(frames):
            if connection is None:
                connection = _connected(address)
                counts.connections += 1
            kind, frame = hostile_frame(message, generator)
            outcome, has_reason = _sent(connection, frame)
            counts.by_kind[kind][outcome] += 1
            counts.without_reason += outcome in ("refused", "closed") and not has_reason
            if outcome in ("closed", "silent"):
                connection.close()
                connection = None
            progress(1)
    finally:
        if connection is not None:
            connection.close()
    return counts


def _connected(address: str) -> ClientConnection:
    connection = connect(address, proxy=None, compression=None, max_size=None, open_timeout=ANSWER_TIMEOUT_S)
    connection.recv(timeout=ANSWER_TIMEOUT_S)
    return connection


def _sent(connection: ClientConnection, frame: bytes | str) -> tuple[str, bool]:
    """What came back, and whether it said why."""
    try:
        connection.send(frame)
        reply = connection.recv(timeout=ANSWER_TIMEOUT_S)
        if isinstance(reply, str):  # the session's end
            with suppress(TimeoutError):
                connection.recv(timeout=ANSWER_TIMEOUT_S)
            return "closed", bool(reply)
    except TimeoutError:
        return "silent", False
    except ConnectionClosed as closed:
        return "closed", bool(closed.rcvd is not None and closed.rcvd.reason)
    answer = wire.unpack(reply)
    if "error" in answer:
        return "refused", bool(answer["error"].get("message"))
    return "answered", True


class Witness:
    """A well-behaved robot that must not notice anything: its actions are compared with those of a quiet time."""

    def __init__(self, address: str, message: Mapping[str, Any], requests: int) -> None:
        self._address, self._message, self._requests = address, dict(message), requests
        self.rounds = self.differing = 0
        self.failure: str | None = None
        self.worst_ms = 0.0  # of a round trip
        self._quiet = self._actions(requests)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                now = self._actions(self._requests)
            except (OSError, UserError, ConnectionClosed, TimeoutError) as error:
                self.failure = f"{type(error).__name__}: {error}"
                return
            self.differing += not np.array_equal(now, self._quiet)
            self.rounds += 1
            if self._end.is_set():  # at least one whole round
                return

    def _actions(self, requests: int) -> np.ndarray:
        """Of one episode with a seed of its own, [requests Ta A]."""
        connection = _connected(self._address)
        try:
            rows = []
            for index in range(requests):
                words = {"reset": True, "seed": 7} if index == 0 else {}
                began_s = time.perf_counter()
                connection.send(wire.pack({**self._message, "deadline_s": ANSWER_TIMEOUT_S, **words}))
                answer = wire.unpack(connection.recv(timeout=ANSWER_TIMEOUT_S))
                self.worst_ms = max(self.worst_ms, 1000 * (time.perf_counter() - began_s))
                rows.append(answer["actions"])
            return np.stack(rows)
        finally:
            connection.close()


def hostile_sockets(address: str, message: Mapping[str, Any], timeout_s: float) -> dict[str, float | None]:
    """Peers that break the rules below the frames: how long each one's connection lived, in s; None: for ever."""
    return {name: _lifetime_s(address, act, message, timeout_s) for name, act in _PEERS.items()}


def _lifetime_s(
    address: str, act: Callable[[socket.socket, bytes], None], message: Mapping[str, Any], timeout_s: float
) -> float | None:
    parts = urlsplit(address)
    began_s = time.monotonic()
    with socket.create_connection((parts.hostname, parts.port), timeout=timeout_s) as peer:
        try:
            act(peer, wire.pack(dict(message)))
            if peer.fileno() >= 0:
                peer.settimeout(max(0.1, began_s + timeout_s - time.monotonic()))
                while peer.recv(65536):
                    pass
        except TimeoutError:
            return None
        except OSError:  # reset by the server, or by ourselves
            pass
    return time.monotonic() - began_s


def _garbage(peer: socket.socket, frame: bytes) -> None:
    peer.sendall(b"\x16\x03\x01" + bytes(range(256)) + b"\r\n\r\n")


def _says_nothing(peer: socket.socket, frame: bytes) -> None:
    """A half-open socket: nobody is there any more."""


def _slow_handshake(peer: socket.socket, frame: bytes) -> None:
    with suppress(OSError):
        for byte in b"GET / HTTP/1.1\r\nHost: robot\r\n" * 4:
            peer.sendall(bytes([byte]))
            time.sleep(0.02)


def _endless_header(peer: socket.socket, frame: bytes) -> None:
    with suppress(OSError):
        peer.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 2**20)


def _upgraded(peer: socket.socket) -> None:
    peer.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    peer.recv(65536)


def _stops_within_a_frame(peer: socket.socket, frame: bytes) -> None:
    _upgraded(peer)
    peer.sendall(b"\x82\xfe" + struct.pack(">H", 1000) + bytes(4) + bytes(10))


def _promises_too_much(peer: socket.socket, frame: bytes) -> None:
    _upgraded(peer)
    peer.sendall(b"\x82\xff" + struct.pack(">Q", 2**62) + bytes(4) + bytes(10))


def _without_mask(peer: socket.socket, frame: bytes) -> None:
    _upgraded(peer)
    peer.sendall(b"\x82\x05hello")


def _slow_frame(peer: socket.socket, frame: bytes) -> None:
    _upgraded(peer)
    with suppress(OSError):
        peer.sendall(b"\x82\xfe" + struct.pack(">H", 1000) + bytes(4))
        for _ in range(100):
            peer.sendall(b"\0")
            time.sleep(0.02)


def _never_reads(peer: socket.socket, frame: bytes) -> None:
    """Asks and asks, and leaves every answer where it is."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    _upgraded(peer)
    masked = b"\x82" + _length(len(frame)) + bytes(4) + frame
    with suppress(OSError):
        peer.settimeout(1.0)
        for _ in range(20_000):
            peer.sendall(masked)
    time.sleep(0.1)


def _length(size: int) -> bytes:
    if size < 126:
        return bytes([0x80 | size])
    return b"\xfe" + struct.pack(">H", size) if size < 2**16 else b"\xff" + struct.pack(">Q", size)


def _resets(peer: socket.socket, frame: bytes) -> None:
    _upgraded(peer)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


_PEERS: dict[str, Callable[[socket.socket, bytes], None]] = {
    "no HTTP": _garbage,
    "half-open": _says_nothing,
    "slow handshake": _slow_handshake,
    "endless header": _endless_header,
    "stops within a frame": _stops_within_a_frame,
    "promises 2^62 bytes": _promises_too_much,
    "without a mask": _without_mask,
    "slow frame": _slow_frame,
    "never reads": _never_reads,
    "resets": _resets,
}
