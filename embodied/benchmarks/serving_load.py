"""Clients of policy servers that measure: round trips side by side, many sessions at a rate, a long soak."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from embodied import wire
from embodied.protocols import Policy
from embodied.session import Session
from embodied.types import Json, Observation

ANSWER_TIMEOUT_S = 30.0
WARM_UP = 50  # round trips of each client that do not count


def connected(address: str) -> ClientConnection:
    """A connection that has had its metadata."""
    connection = connect(address, proxy=None, compression=None, max_size=None)
    connection.recv(timeout=ANSWER_TIMEOUT_S)
    return connection


def round_trips(
    addresses: Mapping[str, str], frame: bytes, blocks: int, block_requests: int, period_s: float = 0.0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same frame to each server in turn, block by block, so that whatever slows the machine slows all alike.

    Args:
        period_s: between two requests, as a robot's; 0: the next one follows the answer.

    Returns:
        By server: ms of each round trip, and ms of it that the server spent in its policy (0 where it does not say).
    """
    connections = {name: connected(address) for name, address in addresses.items()}
    took: dict[str, list[float]] = {name: [] for name in addresses}
    infer: dict[str, list[float]] = {name: [] for name in addresses}
    try:
        with _no_collection():
            for connection in connections.values():
                for _ in range(WARM_UP):
                    _round_trip(connection, frame)
            for _ in range(blocks):
                for name, connection in connections.items():
                    for _ in range(block_requests):
                        until_s = time.monotonic() + period_s
                        took_ms, reply = _round_trip(connection, frame)
                        took[name].append(took_ms)
                        infer[name].append(wire.unpack(reply).get("server_timing", {}).get("infer_ms", 0.0))
                        time.sleep(max(0.0, until_s - time.monotonic()))
    finally:
        for connection in connections.values():
            connection.close()
    return {k: np.asarray(v) for k, v in took.items()}, {k: np.asarray(v) for k, v in infer.items()}


def _round_trip(connection: ClientConnection, frame: bytes) -> tuple[float, bytes]:
    began_s = time.perf_counter()
    connection.send(frame)
    reply = connection.recv(timeout=ANSWER_TIMEOUT_S)
    return 1000 * (time.perf_counter() - began_s), reply  # type: ignore[return-value]  # a text fails in unpack


@dataclass(frozen=True)
class SentRequest:
    """One request of one session, as it was sent."""

    session: int
    sent_s: float  # since the load began
    took_ms: float  # until its answer
    stale: bool
    late: bool


def load(address: str, message: Mapping[str, Any], sessions: int, rate_hz: float, seconds: float) -> list[SentRequest]:
    """So many sessions, each asking at this rate for this long; a request that is overdue is sent at once.

    The deadline of each request is the time of the next one.
    """
    began_s = time.monotonic() + 0.5
    rows: list[list[SentRequest]] = [[] for _ in range(sessions)]
    robots = [
        threading.Thread(
            target=_robot, args=(address, message, index, sessions, rate_hz, seconds, began_s, rows[index])
        )
        for index in range(sessions)
    ]
    with _no_collection():
        for robot in robots:
            robot.start()
        for robot in robots:
            robot.join()
    return sorted((row for of_one in rows for row in of_one), key=lambda row: row.sent_s)


def _robot(
    address: str,
    message: Mapping[str, Any],
    index: int,
    sessions: int,
    rate_hz: float,
    seconds: float,
    began_s: float,
    rows: list[SentRequest],
) -> None:
    period_s = 1.0 / rate_hz
    connection = connected(address)
    first = wire.pack({**message, "executed": 1, "deadline_s": period_s, "reset": True})
    frame = wire.pack({**message, "executed": 1, "deadline_s": period_s})
    try:
        for step in range(round(seconds * rate_hz)):
            due_s = began_s + (step + index / sessions) * period_s  # evenly apart, as robots are that nobody aligned
            time.sleep(max(0.0, due_s - time.monotonic()))
            sent_s = time.monotonic()
            took_ms, reply = _round_trip(connection, first if step == 0 else frame)
            answer = wire.unpack(reply)
            rows.append(SentRequest(index, sent_s - began_s, took_ms, answer["stale"], answer["late"]))
    finally:
        connection.close()


def replayed(policy: Policy, observation: Observation, trace: Sequence[SentRequest]) -> list[float]:
    """The same requests at the same times through bare sessions in this process: ms from each one's time to its chunk.

    Sessions are those of `Session`, asked one after the other: what the policy itself costs under this load.
    """
    sessions: dict[int, Session] = {}
    steps: dict[int, int] = {}
    took_ms = []
    with _no_collection():
        began_s = time.monotonic() + 0.1
        for request in trace:
            session = sessions.get(request.session)
            if session is None:
                session = sessions[request.session] = Session(policy)
                session.reset(request.session)
            time.sleep(max(0.0, began_s + request.sent_s - time.monotonic()))
            step = steps[request.session] = steps.get(request.session, -1) + 1
            session.act(Observation(observation.state, observation.images, time_s=step * policy.spec.dt_s), executed=1)
            took_ms.append(1000 * (time.monotonic() - began_s - request.sent_s))
    return took_ms


def missed_share(took_ms: Sequence[float], deadline_ms: float) -> float:
    """Of the requests whose answer came after the deadline."""
    return float(np.mean(np.asarray(took_ms) > deadline_ms)) if len(took_ms) else 0.0


def soak(address: str, frame: bytes, requests: int, memory: Callable[[], int], progress: Callable[[int], None]) -> Json:
    """So many requests on one connection; the server's resident memory after a tenth of them, and at the end.

    Returns:
        `requests`, `before_mb`, `after_mb`, `growth_mb`, and `per_s`.
    """
    connection = connected(address)
    try:
        early = max(1, requests // 10)
        _ask(connection, frame, early, progress)
        before = memory()
        began_s = time.perf_counter()
        _ask(connection, frame, requests - early, progress)
        took_s = time.perf_counter() - began_s
        after = memory()
    finally:
        connection.close()
    mb = 2**20
    return {
        "requests": requests,
        "before_mb": before / mb,
        "after_mb": after / mb,
        "growth_mb": (after - before) / mb,
        "per_s": (requests - early) / took_s,
    }


def _ask(connection: ClientConnection, frame: bytes, requests: int, progress: Callable[[int], None]) -> None:
    for index in range(requests):
        _round_trip(connection, frame)
        if index % 100 == 99:
            progress(100)


def percentiles(values: Sequence[float] | np.ndarray) -> Json:
    """n, p50 and p99."""
    array = np.asarray(values)
    return {"n": len(array), "p50": float(np.percentile(array, 50)), "p99": float(np.percentile(array, 99))}


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
