"""Work spread over processes, each with a worker of its own that is built once; results come in the order of items."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from embodied.errors import UserError

# Simulation and small networks gain nothing from threads, and several processes with threads fight over the cores.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LOOK_AHEAD = 2  # items handed out before they are needed, a process

_worker: Callable[[Any], Any] | None = None
_failure: Exception | None = None


def _start(make_worker: Callable[[], Callable[[Any], Any]]) -> None:
    """Build this process's worker. A failure waits for the first item, since an initializer cannot tell the parent."""
    global _worker, _failure
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _worker = make_worker()
    except Exception as error:
        _failure = error


def _work(item: Any) -> Any:
    if _worker is None:
        raise _failure or RuntimeError("the worker was never built")
    return _worker(item)


@contextmanager
def one_thread_a_process() -> Iterator[None]:
    """Processes started inside use one thread each."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class ProcessPool[Item, Result]:
    """`workers` processes; each builds its worker with `make_worker()` and then applies it to items.

    Both must be importable (processes are spawned, not forked: simulators and thread pools do not survive a fork).
    """

    def __init__(self, make_worker: Callable[[], Callable[[Item], Result]], workers: int | None) -> None:
        """
        Raises:
            UserError: fewer than one worker.
        """
        if workers is not None and workers < 1:
            raise UserError(expected="workers of at least 1", found=str(workers), remedy="set workers=1 or more")
        self.workers = workers or len(os.sched_getaffinity(0))
        self._threads = one_thread_a_process()
        self._make_worker = make_worker

    def __enter__(self) -> ProcessPool[Item, Result]:
        self._threads.__enter__()
        self._executor = ProcessPoolExecutor(
            self.workers, mp_context=get_context("spawn"), initializer=_start, initargs=(self._make_worker,)
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._threads.__exit__(None, None, None)

    def map(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Items and their results, in order; `items` may be endless, since only a few are taken ahead.

        Raises:
            UserError: a process died (killed, or out of memory).
        """
        source = iter(items)
        pending: deque[tuple[Item, Future[Result]]] = deque()

        def hand_out() -> bool:
            for item in source:
                pending.append((item, self._executor.submit(_work, item)))
                return True
            return False

        try:
            while len(pending) < LOOK_AHEAD * self.workers and hand_out():
                pass
            while pending:
                item, future = pending.popleft()
                result = future.result()
                hand_out()
                yield item, result
        except BrokenProcessPool as error:
            raise UserError(
                expected=f"{self.workers} simulation processes that live to the end",
                found="one died",
                remedy="free some memory or lower workers=, then give the same command again: it continues",
            ) from error
