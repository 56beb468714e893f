"""A request between its arrival and its answer, which it gets exactly once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embodied.errors import UserError
from embodied.serving.answers import Answer, Timings
from embodied.serving.recorder import ExecutedActions
from embodied.serving.served_session import ComputedChunk, Frame, ServedSession
from embodied.types import Observation

Deliver = Callable[[Answer | Exception], None]


@dataclass(eq=False)
class PendingRequest:
    """Whoever changes `is_answered` holds the lock of `Sessions`."""

    session: ServedSession
    frame: Frame
    earlier: Sequence[Observation]
    executed: int | None
    reported: ExecutedActions | None  # for the recording
    asked_s: float  # by the session's clock
    received_s: float  # by the server's
    deadline_s: float  # by the server's
    deliver: Deliver  # called once, outside the lock
    episode: int
    is_answered: bool = False

    def answer(self, computed: ComputedChunk, now_s: float, *, queue_ms: float, reason: str, repeated: bool) -> Answer:
        """The answer with this chunk, given now.

        Args:
            reason: why the chunk is not this request's own; "" if it is.
        """
        return Answer(
            session=self.session.name,
            episode=self.episode,
            chunk=computed.chunk,
            observed_s=computed.observed_s,
            asked_s=self.asked_s,
            stale=bool(reason),
            late=not reason and now_s > self.deadline_s,
            reason=reason,
            history_repeated=repeated,
            policy=computed.weights,
            timings=Timings(self.received_s, queue_ms, computed.infer_ms, computed.batch),
        )

    def earlier_answer(self, reason: str, now_s: float) -> Answer | None:
        """The answer with the session's newest chunk, in the place of this request's own; its observation is kept.

        None if it has its answer already, belongs to an episode that is over, or no action of that chunk is of use.
        """
        session = self.session
        if self.is_answered or session.episode != self.episode:
            return None
        newest = session.newest_valid(self.asked_s)
        if newest is None:
            return None
        self.is_answered = True
        session.observe_late(self.frame, self.asked_s)
        waited_ms = 1000 * (now_s - self.received_s)
        return self.answer(newest, now_s, queue_ms=waited_ms, reason=reason, repeated=False)

    def superseded(self, by: str, now_s: float) -> Answer | UserError | None:
        """What it gets now that something newer has come: as `earlier_answer`, else a refusal that names it.

        None if it has its answer already.
        """
        if self.is_answered:
            return None
        if (answer := self.earlier_answer("superseded", now_s)) is not None:
            return answer
        self.is_answered = True
        return UserError(
            expected="one request at a time", found=by, remedy="wait for an answer before the next request"
        )


Outcome = tuple[PendingRequest, Answer | Exception]  # a request and what it gets
