"""Windows that are decoded while the ones before are trained on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from types import TracebackType

import numpy as np

from embodied.errors import UserError
from embodied.protocols import WindowSource
from embodied.types import Window


class ReadAhead:
    """The windows of batches in their order, of which a thread gathers up to `ahead` before they are asked for.

    With `ahead` 0 there is no thread. What goes wrong in the thread is raised where its batch is asked for. `close`,
    or the end of a `with` block, ends the thread.
    """

    def __init__(self, source: WindowSource, batches: Iterator[np.ndarray], ahead: int) -> None:
        """
        Args:
            batches: window indices, as `source.batches` gives them.
            ahead: batches that wait at most; each takes memory.

        Raises:
            UserError: `ahead` below 0.
        """
        if ahead < 0:
            raise UserError(expected="batches to read ahead of at least 0", found=str(ahead), remedy="raise read_ahead")
        self._source, self._batches = source, batches
        self._closing = threading.Event()
        self._ready: queue.Queue[Window | BaseException] = queue.Queue(max(ahead, 1))
        self._thread = threading.Thread(target=self._work, name="read ahead", daemon=True) if ahead else None
        if self._thread is not None:
            self._thread.start()

    def __iter__(self) -> Iterator[Window]:
        return self

    def __next__(self) -> Window:
        if self._thread is None:
            return self._source.gather(next(self._batches))
        if self._closing.is_set():
            raise StopIteration
        ready = self._ready.get()
        if isinstance(ready, BaseException):
            self.close()
            raise ready
        return ready

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, after the batch that it is at."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                result: Window | BaseException = self._source.gather(next(self._batches))
            except BaseException as error:  # StopIteration, too: it is the consumer's
                result = error
            self._put(result)
            if isinstance(result, BaseException):
                return

    def _put(self, result: Window | BaseException) -> None:
        while not self._closing.is_set():
            try:
                return self._ready.put(result, timeout=0.1)
            except queue.Full:
                continue
