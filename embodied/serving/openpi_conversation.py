"""openpi's websocket protocol without the socket: a frame comes in, a frame goes out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from embodied import wire
from embodied.errors import UserError
from embodied.serving.access import TokenBucket
from embodied.serving.answers import Answer, from_now_on
from embodied.serving.observation_reader import UnusableValues
from embodied.serving.registry import SessionsFull, SessionTaken
from embodied.serving.request_reader import Request, RequestReader, echo_of
from embodied.serving.served_session import Frame
from embodied.serving.sessions import Sessions
from embodied.types import Json

LOG = logging.getLogger(__name__)
POLICY_VIOLATION, TRY_AGAIN_LATER = 1008, 1013  # close codes of RFC 6455
MOST_REFUSALS = 100  # one after the other: this client will not get it right any more
LOGGED_REFUSALS = (0, 1, 10, 100)  # of those in a row, so that nobody fills the disk; 0: the session's end


class EndOfConversation(Exception):
    """The session cannot go on: the client is told why in a text frame, and the connection is closed."""

    def __init__(self, message: str, code: int = POLICY_VIOLATION) -> None:
        self.message, self.code = message, code
        super().__init__(message)


class OpenpiConversation:
    """One connection's part of the protocol. Each key that its client uses is a session of its own.

    Not for several threads at once.
    """

    def __init__(
        self,
        name: str,
        sessions: Sessions,
        reader: RequestReader,
        *,
        rate: TokenBucket | None = None,
        refuses_by_text: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            name: of the connection, and of its session unless the client gives it a key.
            rate: of requests; None: unlimited.
            refuses_by_text: a refusal is a text frame, which openpi's own client raises with its message (and the
                session lives on all the same), instead of an answer without `actions`.
        """
        self._name, self._sessions, self._reader = name, sessions, reader
        self._rate, self._refuses_by_text, self._clock = rate, refuses_by_text, clock
        self._refusals = 0
        self._previous_ms: float | None = None
        self._answered: tuple[str, float] | None = None  # the last reply: its session, when its request came

    def answer(self, frame: bytes | str) -> bytes | str:
        """The reply to one frame.

        Raises:
            EndOfConversation: the session cannot go on.
        """
        received_s = self._clock()
        message: Any = None
        request: Request | None = None
        self._answered = None
        try:
            if self._rate is not None and not self._rate.take(received_s):
                raise _TooFast(
                    expected=f"at most {self._rate.per_s:g} requests a second",
                    found="more",
                    remedy="ask less often, or start the server with a higher rate_limit",
                )
            if isinstance(frame, str):
                raise UserError(
                    expected="a binary MessagePack message", found="a text frame", remedy="use openpi's protocol"
                )
            message = wire.unpack(frame)
            request = self._reader.read(message)
            reply = self._reply(request, received_s)
        except (SessionTaken, SessionsFull) as error:
            self._count(error)
            code = TRY_AGAIN_LATER if isinstance(error, SessionsFull) else POLICY_VIOLATION
            raise EndOfConversation(str(error), code) from error
        except UserError as error:
            if request is None:
                self._sessions.refused(self._session_of(message), self._name, received_s, error)
            if isinstance(error, UnusableValues):
                self._sessions.lost_frame(self._session_of(message), self._name)
            return self._refusal(error, message)
        self._refusals = 0
        return reply

    def sent(self, received_s: float) -> None:
        """The reply to what was received then is on its way."""
        self._previous_ms = 1000 * (self._clock() - received_s)
        if self._answered is not None:
            self._sessions.sent(*self._answered)

    def close(self) -> None:
        """The connection is gone, and so are its sessions."""
        self._sessions.close_all(self._name)

    def _reply(self, request: Request, received_s: float) -> bytes:
        name = request.session or self._name
        self._sessions.open(name, self._name)
        begun = request.episode_id is not None and self._sessions.begin_episode(name, self._name, request.episode_id)
        if request.resets and not (begun and request.seed is None):
            self._sessions.reset(name, self._name, request.seed)
        if request.lost_earlier:
            self._sessions.lost_frame(name, self._name)
        frame = Frame(request.observation, request.time_s)
        if request.observes_only:
            self._sessions.observe(name, self._name, frame)
            return wire.pack({"observed": True, "session": name, **request.echo})
        answer = self._sessions.act(
            name,
            self._name,
            frame,
            deadline_s=request.deadline_s,
            executed=request.executed,
            earlier=request.earlier,
            received_s=received_s,
            reported=request.reported,
        )
        self._answered = name, received_s
        return wire.pack(self._message(request, answer))

    def _session_of(self, message: Any) -> str:
        """That a message which could not be read is of, as far as it says; `Sessions` checks whose it is."""
        name = message.get("session") if isinstance(message, Mapping) else None
        return name if isinstance(name, str) else self._name

    def _message(self, request: Request, answer: Answer) -> Json:
        actions, start_s, valid = from_now_on(answer, self._sessions.spec.action)
        chunk, timings = answer.chunk, answer.timings
        sent_s = self._clock()
        server_timing = {
            "infer_ms": timings.infer_ms,
            "queue_ms": timings.queue_ms,
            "total_ms": 1000 * (sent_s - timings.received_s),
            "received_s": timings.received_s,
            "sent_s": sent_s,
        }
        if self._previous_ms is not None:
            server_timing["prev_total_ms"] = self._previous_ms
        message: Json = {
            "actions": actions,
            "valid_actions": valid,
            "start_s": start_s,
            "dt_s": chunk.dt_s,
            "observed_s": answer.observed_s,
            "asked_s": answer.asked_s,
            "stale": answer.stale,
            "late": answer.late,
            "reason": answer.reason,
            "history_repeated": answer.history_repeated,
            "network_calls": chunk.network_calls,
            "session": answer.session,
            "episode": answer.episode,
            "policy": answer.policy,
            "server_timing": server_timing,
            "policy_timing": {
                "infer_ms": timings.infer_ms,
                "network_calls": chunk.network_calls,
                "batch": timings.batch,
            },
            **request.echo,
        }
        if request.wants_preview and chunk.preview is not None:
            message |= {"preview_actions": chunk.preview.actions, "preview_levels": chunk.preview.levels}
        return message

    def _refusal(self, error: UserError, message: Any) -> bytes | str:
        self._refusals += 1
        self._count(error)
        if self._refusals >= MOST_REFUSALS:
            raise EndOfConversation(f"{MOST_REFUSALS} refused requests one after the other; the last one: {error}")
        if self._refuses_by_text:
            return str(error)
        parts = {"expected": error.expected, "found": error.found, "remedy": error.remedy}
        return wire.pack({"error": {"message": str(error), **parts}, **echo_of(message)})

    def _count(self, error: UserError) -> None:
        self._sessions.metrics.dropped(_reason(error))
        if self._refusals in LOGGED_REFUSALS:
            extra = {"connection": self._name, "why": str(error), "in_a_row": self._refusals}
            LOG.warning("refused", extra=extra)


class _TooFast(UserError):
    """More requests than the rate limit allows."""


def _reason(error: UserError) -> str:
    """For the counter of drops: few words, whatever a client sends."""
    kinds = {SessionTaken: "session_taken", SessionsFull: "sessions_full", _TooFast: "rate"}
    return kinds.get(type(error), "refused")
