"""openpi's websocket protocol on a port: a thread a connection, so that no robot waits for another's bytes.

An asyncio loop would hand each request over to the inference thread and its answer back: two more changes of thread.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from ssl import SSLContext
from typing import Any

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from embodied import wire
from embodied.errors import UserError
from embodied.serving.access import TokenBucket, may_enter
from embodied.serving.http_routes import HttpRoutes, Page, text, unauthorized
from embodied.serving.openpi_conversation import EndOfConversation, OpenpiConversation
from embodied.types import Json

LOG = logging.getLogger(__name__)
MOST_QUEUED_FRAMES = 4  # of one connection, before its client has to wait
LONGEST_REASON = 120  # bytes of a close frame's reason


@dataclass(frozen=True)
class ListeningSettings:
    """Where the server listens, and what it puts up with."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    tls: SSLContext | None = None
    most_connections: int = 128  # of any kind, those that have not said anything yet included
    largest_frame: int = 2**20  # bytes
    rate_limit: float = 1000.0  # requests a second and connection
    handshake_timeout_s: float = 5.0
    idle_timeout_s: float = 300.0  # without a whole message a connection is closed
    send_timeout_s: float = 5.0  # for a client that does not read
    ping_interval_s: float = 5.0  # a robot that went away without a word holds its session until both have passed
    ping_timeout_s: float = 10.0


class OpenpiServer:
    """Accepts connections; a conversation a connection says what is answered."""

    def __init__(
        self,
        settings: ListeningSettings,
        converse: Callable[[str, TokenBucket], OpenpiConversation],
        metadata: Callable[[], Json],
        routes: HttpRoutes,
        *,
        dropped: Callable[[str], None],
    ) -> None:
        """Listens from now on; nobody is answered before `start`.

        Args:
            converse: makes the conversation of a new connection, by its name.
            dropped: counts what was turned away, by reason.

        Raises:
            UserError: the address cannot be listened on.
        """
        self._settings, self._converse, self._metadata = settings, converse, metadata
        self._routes, self._dropped = routes, dropped
        self._connections: set[ServerConnection] = set()
        self._answering: set[ServerConnection] = set()  # those with a request that has no answer yet
        self._handling = 0
        self._lock = threading.Lock()
        self._drains = False
        self._server = self._listening()
        self._thread = threading.Thread(target=self._server.serve_forever, name="listener", daemon=True)

    @property
    def address(self) -> str:
        """As a client names it."""
        scheme = "ws" if self._settings.tls is None else "wss"
        host, port = self._server.socket.getsockname()[:2]
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def start(self) -> None:
        self._thread.start()

    def refuse_new(self) -> None:
        """Let nobody new in from now on."""
        self._drains = True

    def drain(self, timeout_s: float) -> None:
        """Let nobody new in, wait for those who are here, then close what is left and the port."""
        self.refuse_new()
        deadline_s = time.monotonic() + timeout_s
        while self._connections and time.monotonic() < deadline_s:
            time.sleep(0.02)
        self._server.shutdown()
        # Each in a thread: one that does not answer the closing handshake must not hold up the others.
        closing = [threading.Thread(target=self._send_away, args=(one,)) for one in list(self._connections)]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
        while self._handling and time.monotonic() < deadline_s + 3 * self._settings.send_timeout_s:
            time.sleep(0.02)

    def _send_away(self, connection: ServerConnection) -> None:
        """Close once the request that is being answered has its answer."""
        deadline_s = time.monotonic() + self._settings.send_timeout_s
        while connection in self._answering and time.monotonic() < deadline_s:
            time.sleep(0.002)
        connection.close(CloseCode.GOING_AWAY, "the server ends")

    def _listening(self) -> Server:
        settings = self._settings
        try:
            family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((settings.host, settings.port), family=family)
        except OSError as error:
            raise UserError(
                expected=f"to listen on {settings.host}, port {settings.port}",
                found=str(error.strerror or error),
                remedy="end what uses it, or choose another port= or host=",
            ) from error
        server = serve(
            self._handle,
            sock=listener,
            ssl=settings.tls,
            compression=None,
            process_request=self._process_request,
            server_header=None,
            open_timeout=settings.handshake_timeout_s,
            ping_interval=settings.ping_interval_s,
            ping_timeout=settings.ping_timeout_s,
            close_timeout=settings.send_timeout_s,
            max_size=settings.largest_frame,
            max_queue=MOST_QUEUED_FRAMES,
            logger=_handshake_log(),
        )
        server.handler = self._within_limits(server.handler)
        return server

    def _within_limits(self, handle: Callable[[socket.socket, Any], None]) -> Callable[[socket.socket, Any], None]:
        """Turns connections away before anything is read from them once there are too many."""

        def limited(sock: socket.socket, address: Any) -> None:
            with self._lock:
                is_full = self._handling >= self._settings.most_connections
                self._handling += not is_full
            if is_full:
                self._dropped("connections_full")
                sock.close()
                return
            try:
                _set_timeouts(sock, self._settings.send_timeout_s)
                handle(sock, address)
            finally:
                with self._lock:
                    self._handling -= 1

        return limited

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """HTTP's answer, or None where the websocket begins."""
        is_known = may_enter(_only(request.headers, "Authorization"), self._settings.api_key)
        page = self._routes.page(request.path, is_known)
        if page is None and not is_known:
            self._dropped("unauthorized")
            LOG.warning("refused", extra={"peer": _peer(connection), "why": "no or a wrong API key"})
            page = unauthorized()
        if page is None and self._drains:
            self._dropped("draining")
            page = text(HTTPStatus.SERVICE_UNAVAILABLE, "the server is about to end")
        return None if page is None else _response(page)

    def _handle(self, connection: ServerConnection) -> None:
        """One connection from its handshake to its end."""
        name = f"connection-{uuid.uuid4().hex}"
        extra = {"connection": name, "peer": _peer(connection)}
        conversation = self._converse(name, TokenBucket(self._settings.rate_limit))
        self._connections.add(connection)
        LOG.info("connected", extra=extra)
        try:
            connection.send(wire.pack(self._metadata()))
            self._answer_all(connection, conversation)
        except EndOfConversation as end:
            _part(connection, end.message, end.code)
        except TimeoutError:
            self._dropped("idle")
            connection.close(CloseCode.POLICY_VIOLATION, f"nothing came for {self._settings.idle_timeout_s:g} s")
        except ConnectionClosed as closed:
            if closed.sent is not None and closed.sent.code == CloseCode.MESSAGE_TOO_BIG:
                self._dropped("frame_too_large")
            elif closed.sent is not None and closed.sent.code == CloseCode.PROTOCOL_ERROR:
                self._dropped("protocol_error")
            extra["why"] = str(closed)
        except Exception:
            LOG.exception("a connection failed", extra=extra)
            _part(connection, "the server failed; its log says why", CloseCode.INTERNAL_ERROR)
        finally:
            conversation.close()
            self._connections.discard(connection)
            LOG.info("disconnected", extra=extra)

    def _answer_all(self, connection: ServerConnection, conversation: OpenpiConversation) -> None:
        while True:
            frame = connection.recv(timeout=self._settings.idle_timeout_s)
            received_s = time.monotonic()
            self._answering.add(connection)
            try:
                connection.send(conversation.answer(frame))
            finally:
                self._answering.discard(connection)
            conversation.sent(received_s)


def _part(connection: ServerConnection, message: str, code: int) -> None:
    """Say why the session cannot go on, and end it; the client may be gone already."""
    with suppress(ConnectionClosed):
        connection.send(message)
        connection.close(code, message.encode()[:LONGEST_REASON].decode(errors="ignore"))


def _set_timeouts(sock: socket.socket, timeout_s: float) -> None:
    """A peer that is gone, or does not read, must not hold a thread for ever."""
    seconds, fraction = divmod(timeout_s, 1.0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(1e6 * fraction)))
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * timeout_s))


def _only(headers: Headers, name: str) -> str | None:
    """The header's value; none if it comes several times."""
    values = headers.get_all(name)
    return values[0] if len(values) == 1 else None


def _response(page: Page) -> Response:
    status, kind, body = page
    headers = Headers([("Content-Type", kind), ("Content-Length", str(len(body))), ("Connection", "close")])
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Api-Key"
    return Response(status.value, status.phrase, headers, body)


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)


def _handshake_log() -> logging.Logger:
    """What websockets says of handshakes that failed: one line each, without a traceback."""
    log = logging.getLogger(f"{__name__}.handshakes")
    log.setLevel(logging.ERROR)
    if not log.filters:
        log.addFilter(_without_traceback)
    return log


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and record.exc_info[1] is not None:
        record.why = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        record.exc_info = record.exc_text = None
    return True
