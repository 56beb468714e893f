"""How long a process that waits takes to go on: no server answers sooner, and none of its threads."""

from __future__ import annotations

import struct
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np

TIME = struct.Struct("<q")  # ns


def wake_ups(count: int, idle_s: float) -> np.ndarray:
    """Another process is sent something every `idle_s`, in which this one computes and that one waits.

    Returns:
        [count] ms from sending until the other process goes on.
    """
    context = get_context("spawn")
    ours, other = context.Pipe()
    process = context.Process(target=_say_when, args=(other,), daemon=True)
    process.start()
    other.close()
    took_ms = np.empty(count)
    try:
        ours.recv_bytes()
        for index in range(count):
            until_s = time.monotonic() + idle_s
            while time.monotonic() < until_s:
                pass
            sent_ns = time.monotonic_ns()
            ours.send_bytes(b" ")
            took_ms[index] = (TIME.unpack(ours.recv_bytes())[0] - sent_ns) / 1e6
    finally:
        ours.close()
        process.join(10)
        process.kill()
    return took_ms


def _say_when(connection: Connection) -> None:
    connection.send_bytes(b" ")
    try:
        while connection.recv_bytes():
            connection.send_bytes(TIME.pack(time.monotonic_ns()))
    except EOFError:
        return
