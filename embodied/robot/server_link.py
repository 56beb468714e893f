"""The way to a policy server and back, in a thread of its own, so that a control loop never waits for it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from embodied.client import PolicyClient, PolicyServerError
from embodied.errors import UserError
from embodied.robot.clock_offset import ClockOffset, Exchange
from embodied.types import Json

FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 2.0


@dataclass(frozen=True)
class Reply:
    """What became of one request."""

    ticket: int  # of the request
    connection: int  # counted from 1: another number is another session of the server, which knows nothing of the last
    answer: Json | None  # None: `error` says why
    error: UserError | None = None


class Link(Protocol):
    """What a controller asks through. At most one request is on its way."""

    def ask(self, request: Json) -> int:
        """Send a request, at once and without waiting. Returns its ticket."""
        ...

    def poll(self, wait_s: float = 0.0) -> Reply | None:
        """What came back since the last call, or does within `wait_s`; None if nothing did."""
        ...

    @property
    def delay_s(self) -> float:
        """The least time that a request and its answer spent on the way; 0 while nobody knows."""
        ...


class ServerLink:
    """A connection that is made again when it breaks. Times of the robot are those of `clock`, in s."""

    def __init__(
        self, connect: Callable[[], PolicyClient], *, clock: Callable[[], float] = time.monotonic, name: str = "policy"
    ) -> None:
        """
        Args:
            connect: makes a connection; called from the thread, and once from here.
            clock: never runs backwards.

        Raises:
            PolicyServerError: no server answers.
        """
        self._connect, self._clock = connect, clock
        self._client: PolicyClient | None = connect()
        self.metadata: Json = self._client.metadata
        self.connections = 1
        self.offset = ClockOffset()  # of the server's clock; written by the thread alone
        self._retry_s, self._next_try_s = FIRST_RETRY_S, -float("inf")
        self._requests: queue.SimpleQueue[tuple[int, Json] | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._tickets = 0
        self._thread = threading.Thread(target=self._run, name=f"link to {name}", daemon=True)
        self._thread.start()

    def ask(self, request: Json) -> int:
        """Send a request from the thread; it may not be changed any more."""
        self._tickets += 1
        self._requests.put((self._tickets, request))
        return self._tickets

    def poll(self, wait_s: float = 0.0) -> Reply | None:
        """What came back since the last call, or does within `wait_s`; None if nothing did."""
        try:
            return self._replies.get(timeout=wait_s) if wait_s > 0 else self._replies.get_nowait()
        except queue.Empty:
            return None

    @property
    def delay_s(self) -> float:
        best = self.offset.best
        return 0.0 if best is None else best.delay_s

    def close(self) -> None:
        """End the thread and the connection, within about the time of one answer."""
        self._requests.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._requests.get()) is not None:
            ticket, request = item
            try:
                answer = self._answered(request)
            except UserError as error:
                self._replies.put(Reply(ticket, self.connections, None, error))
            except Exception as error:  # a defect here must not leave the robot waiting for ever
                self._drop()
                self._replies.put(Reply(ticket, self.connections, None, _broken(error)))
            else:
                self._replies.put(Reply(ticket, self.connections, answer))
        self._drop()

    def _answered(self, request: Json) -> Json:
        client = self._connected()
        sent_s = self._clock()
        try:
            answer = client.infer(request)
        except PolicyServerError:
            self._drop()
            raise
        self._note(sent_s, answer, self._clock())
        self._retry_s = FIRST_RETRY_S
        return answer

    def _connected(self) -> PolicyClient:
        """The connection, made again if it broke. Attempts are spaced, twice as far each time that one fails."""
        if self._client is not None:
            return self._client
        wait_s = self._next_try_s - self._clock()
        if wait_s > 0:
            raise PolicyServerError(
                expected="a connection to the policy server",
                found=f"none; the next attempt is in {wait_s:.1f} s",
                remedy="start the server again, or look at the network",
            )
        try:
            client = self._connect()
        except UserError:
            self._next_try_s = self._clock() + self._retry_s
            self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
            raise
        self._client = client
        self.connections += 1
        self.offset.reset()  # perhaps another machine
        return client

    def _drop(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    def _note(self, sent_s: float, answer: Json, returned_s: float) -> None:
        """The four time stamps, of a server that states its two."""
        timing = answer.get("server_timing")
        if not isinstance(timing, dict):
            return
        stamps = timing.get("received_s"), timing.get("sent_s")
        if all(isinstance(stamp, int | float) for stamp in stamps):
            self.offset.add(Exchange(sent_s, *stamps, returned_s))  # type: ignore[arg-type]


def _broken(error: Exception) -> UserError:
    return UserError(
        expected="an answer of the policy server",
        found=f"{type(error).__name__}: {str(error)[:200]}",
        remedy="report it: this is a defect of the client",
    )
