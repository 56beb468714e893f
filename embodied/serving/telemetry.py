"""What is counted, and handed to the recorder, of every request."""

from __future__ import annotations

import time
from collections.abc import Callable

from embodied.errors import UserError
from embodied.serving.answers import Answer
from embodied.serving.metrics import ServingMetrics
from embodied.serving.recorder import RecordedRequest, RecordedSend, RecordingQueue, SessionEnd
from embodied.serving.requests import PendingRequest
from embodied.types import Observation


class Telemetry:
    """Of one server. Its methods may be called from any thread, and never wait."""

    def __init__(
        self,
        metrics: ServingMetrics | None = None,
        recording: RecordingQueue | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            recording: None: nothing is recorded.
        """
        self.metrics = metrics or ServingMetrics()
        self._recording, self._clock = recording, clock

    def finished(self, pending: PendingRequest, outcome: Answer | Exception) -> None:
        """A request has its answer, or is refused."""
        answer = outcome if isinstance(outcome, Answer) else None
        now_s = self._clock()
        self.metrics.finished(answer, now_s - pending.received_s)
        if self._recording is not None:
            self._recording.put(
                RecordedRequest(
                    session=pending.session.name,
                    episode=pending.episode,
                    observation=pending.frame.observation,
                    asked_s=pending.asked_s,
                    received_s=pending.received_s,
                    given_s=now_s,
                    deadline_s=pending.deadline_s,
                    executed=pending.executed,
                    reported=pending.reported,
                    answer=answer,
                    refusal="" if answer is not None else str(outcome),
                )
            )

    def observed(self, session: str, episode: int, seen: Observation, seen_s: float, received_s: float) -> None:
        """An observation that no chunk is asked for, made at `seen_s` of the session's clock."""
        if self._recording is not None:
            self._recording.put(
                RecordedRequest(session, episode, seen, seen_s, received_s, received_s, None, None, None, None, "")
            )

    def refused(self, session: str, received_s: float, error: UserError) -> None:
        """A request that is none of an episode: it could not be read, or does not fit the session."""
        if self._recording is not None:
            now_s = self._clock()
            self._recording.put(
                RecordedRequest(session, None, None, None, received_s, now_s, None, None, None, None, str(error))
            )

    def sent(self, session: str, received_s: float) -> None:
        """The answer to the request that came at this time has left."""
        if self._recording is not None:
            self._recording.put(RecordedSend(session, received_s, self._clock()))

    def closed(self, session: str) -> None:
        """No more requests of this session."""
        if self._recording is not None:
            self._recording.put(SessionEnd(session))
