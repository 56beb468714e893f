"""A request between its arrival and its answer, which it gets exactly once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embodied.serving.answers import Answer, Timings
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
    asked_s: float  # by the session's clock
    received_s: float  # by the server's
    deadline_s: float  # by the server's
    deliver: Deliver  # called once, outside the lock
    episode: int
    is_answered: bool = False

    def answer(
        self, computed: ComputedChunk, policy: str, now_s: float, *, queue_ms: float, reason: str, repeated: bool
    ) -> Answer:
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
            policy=policy,
            timings=Timings(self.received_s, queue_ms, computed.infer_ms, computed.batch),
        )
