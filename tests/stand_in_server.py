"""A policy server as openpi's protocol has it, in a thread: metadata, then an answer to each observation."""

from __future__ import annotations

import threading
import traceback
from contextlib import contextmanager

import msgpack
import numpy as np
from websockets.sync.server import serve


def as_message(value):
    """Written anew rather than taken from embodied.wire, so that each side is checked against the other."""
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(type(value))


def from_message(found):
    if b"__ndarray__" in found:
        return np.ndarray(buffer=found[b"data"], dtype=np.dtype(found[b"dtype"]), shape=found[b"shape"])
    return found


@contextmanager
def policy_server(answer, metadata=None):
    """Yields the address; `answer` takes an observation and gives the reply, or raises what the client is told."""

    def handle(connection):
        connection.send(msgpack.packb(metadata or {}))
        for frame in connection:
            try:
                reply = answer(msgpack.unpackb(frame, object_hook=from_message))
            except Exception:
                connection.send(traceback.format_exc())
                connection.close(1011)
                return
            connection.send(reply if isinstance(reply, bytes | str) else msgpack.packb(reply, default=as_message))

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()
