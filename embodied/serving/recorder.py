"""What the server tells a recorder: a seam that costs the loop one attempt to put something into a bounded queue."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from embodied.serving.answers import Answer
from embodied.types import Observation

LOG = logging.getLogger(__name__)
LATER_S = 0.005  # a record is written when its answer has left: two threads of Python would hold each other up


@dataclass(frozen=True)
class ExecutedActions:
    """What a robot really executed since its last request, as it reports it."""

    actions: np.ndarray  # float32 [n A]
    at_s: np.ndarray  # float64 [n], by the session's clock


@dataclass(frozen=True)
class RecordedRequest:
    """One request and what became of it."""

    session: str
    episode: int | None  # None: it was refused before anybody knew
    observation: Observation | None  # None: what came was none
    asked_s: float | None  # of the observation, by the session's clock
    received_s: float  # by the server's clock, as the next two
    given_s: float  # when its answer was known
    deadline_s: float | None
    executed: int | None  # control steps since the request before, as the robot said
    reported: ExecutedActions | None
    answer: Answer | None  # None: it was refused, or only an observation to remember
    refusal: str  # "" if it was not refused


@dataclass(frozen=True)
class RecordedSend:
    """The answer to the request that came at `received_s` has left."""

    session: str
    received_s: float
    sent_s: float


@dataclass(frozen=True)
class SessionEnd:
    """The session is closed: another of that name is another one."""

    session: str


Event = RecordedRequest | RecordedSend | SessionEnd


class Recorder(Protocol):
    """Writes what the server did. Called from one thread of its own, never from one that answers."""

    def write(self, event: Event) -> None:
        """
        Raises:
            Exception: the event is lost, and counted.
        """
        ...

    def lost(self, session: str, events: int) -> None:
        """So many of the session's events did not fit into the queue, before the next one that is written."""
        ...

    def close(self) -> None:
        """Nothing follows."""
        ...


class RecordingQueue:
    """Hands events to a recorder in a thread of its own. What does not fit into the queue is dropped and counted."""

    def __init__(
        self,
        recorder: Recorder,
        capacity: int,
        dropped: Callable[[str], None] = lambda reason: None,
        *,
        most_bytes: int = 2**28,
    ) -> None:
        """
        Args:
            capacity: events that may wait.
            dropped: is told the reason of each drop.
            most_bytes: of the images that wait.
        """
        self._recorder, self._tell_dropped, self._most_bytes = recorder, dropped, most_bytes
        self._queue: queue.Queue[Event | None] = queue.Queue(capacity)
        self._lock = threading.Lock()
        self._bytes = 0
        self._lost: Counter[str] = Counter()  # by session; the recorder was not told yet
        self.dropped: Counter[str] = Counter()  # by reason
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Never waits."""
        size = _image_bytes(event)
        with self._lock:
            fits = self._bytes + size <= self._most_bytes or not size
            self._bytes += size if fits else 0
        if fits:
            try:
                self._queue.put_nowait(event)
                return
            except queue.Full:
                self._release(size)
        with self._lock:
            self._lost[event.session] += 1
        self._drop("recorder_queue")

    def close(self, timeout_s: float = 10.0) -> None:
        """Let the recorder finish what is in the queue. What it does not within this time is dropped and counted."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            LOG.error("the recorder does not come to an end", extra={"dropped": self._drop_waiting()})
            self._queue.put(None)
            self._thread.join(timeout_s)

    def _drop_waiting(self) -> int:
        """Take out what waits; how many events that were."""
        count = 0
        with suppress(queue.Empty):
            while True:
                if (event := self._queue.get_nowait()) is not None:
                    count += 1
                    with self._lock:
                        self._lost[event.session] += 1
                    self._drop("recorder_closed")
        return count

    def _drop(self, reason: str) -> None:
        with self._lock:
            self.dropped[reason] += 1
        self._tell_dropped(reason)

    def _release(self, size: int) -> None:
        with self._lock:
            self._bytes -= size

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            if self._queue.empty():
                time.sleep(LATER_S)
            self._guarded(lambda event=event: self._tell(event))
            self._release(_image_bytes(event))
        for session in list(self._lost):
            self._guarded(lambda session=session: self._tell_lost(session))
        self._guarded(self._recorder.close)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except RecordingStopped:
            self._drop("recorder_stopped")
        except Exception:
            # A recording that fails must not end those that follow, and the robot least of all.
            self._drop("recorder_failed")
            LOG.exception("recording failed")

    def _tell(self, event: Event) -> None:
        self._tell_lost(event.session)
        self._recorder.write(event)

    def _tell_lost(self, session: str) -> None:
        with self._lock:
            lost = self._lost.pop(session, 0)
        if lost:
            self._recorder.lost(session, lost)


class RecordingStopped(Exception):
    """The recorder writes nothing any more, and has said why."""


def _image_bytes(event: Event) -> int:
    if not isinstance(event, RecordedRequest) or event.observation is None:
        return 0
    return sum(image.nbytes for image in event.observation.images.values())
