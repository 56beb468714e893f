"""What a policy server's round trip is measured beside: a loop that unpacks, calls, packs and checks nothing.

Built as openpi's own server is: one asyncio loop, metadata first, a reply to each frame, no compression.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import psutil
from websockets.asyncio.server import ServerConnection, serve

from embodied import wire


class BareWebsocketLoop:
    """Runs in a thread of its process; called with "address", it says where."""

    def __init__(self, answer: Callable[[Any], dict[str, Any]]) -> None:
        """
        Args:
            answer: the reply to a message, called in the loop: one client at a time.
        """
        self._reply_to = answer
        self._address = ""
        self._is_listening = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._is_listening.wait()

    def __call__(self, question: str) -> Any:
        return self._address if question == "address" else psutil.Process().memory_info().rss

    async def _serve(self) -> None:
        async with serve(self._answer, "127.0.0.1", 0, compression=None, max_size=None) as server:
            self._address = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
            self._is_listening.set()
            await asyncio.get_running_loop().create_future()

    async def _answer(self, connection: ServerConnection) -> None:
        await connection.send(wire.pack({}))
        async for frame in connection:
            message = wire.unpack(frame)  # type: ignore[arg-type]  # a text would be an error, as it should
            await connection.send(wire.pack(self._reply_to(message)))


def bare_loop(reply: dict[str, Any]) -> Callable[[str], Any]:
    """For a process of its own: the same reply to everything."""
    return BareWebsocketLoop(lambda message: reply)
