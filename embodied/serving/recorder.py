"""What the server tells a recorder: a seam that costs the loop one attempt to put something into a bounded queue."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from embodied.serving.answers import Answer
from embodied.types import Observation


@dataclass(frozen=True)
class RecordedRequest:
    """One request and what became of it."""

    session: str
    episode: int
    observation: Observation
    executed: int | None  # as the robot reported it
    answer: Answer | None  # None: it was refused
    refusal: str  # "" if it was answered


class Recorder(Protocol):
    """Writes what the server did. Called from one thread of its own, never from one that answers."""

    def request(self, recorded: RecordedRequest) -> None: ...

    def close(self) -> None:
        """Nothing follows."""
        ...


class RecordingQueue:
    """Hands records to a recorder in a thread of its own. What does not fit into the queue is dropped and counted."""

    def __init__(self, recorder: Recorder, capacity: int, dropped: Callable[[str], None] = lambda reason: None) -> None:
        """
        Args:
            capacity: records that may wait.
            dropped: is told the reason of each drop.
        """
        self._recorder, self._tell_dropped = recorder, dropped
        self._queue: queue.Queue[RecordedRequest | None] = queue.Queue(capacity)
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def put(self, recorded: RecordedRequest) -> None:
        """Never waits."""
        try:
            self._queue.put_nowait(recorded)
        except queue.Full:
            self._drop("recorder_queue")

    def close(self, timeout_s: float = 10.0) -> None:
        """Let the recorder finish what is in the queue."""
        self._queue.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _drop(self, reason: str) -> None:
        self.dropped += 1
        self._tell_dropped(reason)

    def _run(self) -> None:
        while (recorded := self._queue.get()) is not None:
            try:
                self._recorder.request(recorded)
            except Exception:
                # A recording that fails must not end those that follow, and the robot least of all.
                self._drop("recorder_failed")
                logging.getLogger(__name__).exception("recording failed")
        self._recorder.close()
