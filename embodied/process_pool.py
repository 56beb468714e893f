"""Work spread over processes, each with a worker of its own that is built once."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for_futures
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any

from embodied.errors import UserError

# Simulation and small networks gain nothing from threads, and several processes with threads fight over the cores.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LOOK_AHEAD = 2  # items handed out before they are needed, a process
MOST_DEATHS = 3  # of processes, one after another without a result between

log = logging.getLogger(__name__)

_worker: Callable[[Any], Any] | None = None
_failure: Exception | None = None


def _start(make_worker: Callable[[], Callable[[Any], Any]]) -> None:
    """Build this process's worker. A failure waits for the first item, since an initializer cannot tell the parent."""
    global _worker, _failure
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        _worker = make_worker()
    except Exception as error:
        _failure = error


def _end_with_the_parent() -> None:
    """A parent that is killed cannot stop its processes, which would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


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
            raise UserError(
                expected="workers of at least 1", found=str(workers), remedy="set workers=1 or more, or 0 for none"
            )
        self.workers = workers or len(os.sched_getaffinity(0))
        self._threads = one_thread_a_process()
        self._make_worker = make_worker

    def __enter__(self) -> ProcessPool[Item, Result]:
        self._threads.__enter__()
        self._start_processes()
        return self

    def __exit__(self, *exception: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._threads.__exit__(None, None, None)

    def map(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Items and their results, in order; `items` may be endless, since only a few are taken ahead.

        Where a process dies (killed, or out of memory), the processes are replaced and what they had not finished is
        done again.

        Raises:
            UserError: processes die again and again, and nothing is finished between.
        """
        return self._map(items, lambda tasks: tasks[0])

    def map_as_completed(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """As `map`, but each result as soon as it is there. None is far ahead of an item that takes long: the same few
        are taken ahead.

        Raises:
            UserError: as `map`.
        """
        return self._map(items, _first_completed)

    def _map(
        self, items: Iterable[Item], next_task: Callable[[Sequence[_Task[Item, Result]]], _Task[Item, Result]]
    ) -> Iterator[tuple[Item, Result]]:
        """`next_task` of those that are handed out and not yielded yet, the oldest first."""
        source = iter(items)
        tasks: deque[_Task[Item, Result]] = deque()  # from the oldest one that is not yielded on
        deaths = 0
        while True:
            while tasks and tasks[0].is_yielded:
                tasks.popleft()
            tasks.extend(_Task(item) for item in itertools.islice(source, LOOK_AHEAD * self.workers - len(tasks)))
            if not tasks:
                return
            try:
                self._hand_out(tasks)
                task = next_task([task for task in tasks if not task.is_yielded])
                result = task.given.result()
            except BrokenProcessPool as error:
                deaths += 1
                if deaths >= MOST_DEATHS:
                    raise UserError(
                        expected=f"{self.workers} simulation processes that live to the end",
                        found=f"{deaths} that died one after another, without a result between",
                        remedy="free some memory or lower workers=, then give the same command again: it continues",
                    ) from error
                log.warning("a simulation process died: its work is done again by another")
                self._replace_processes(tasks)
                continue
            deaths = 0
            task.is_yielded = True
            yield task.item, result

    def _hand_out(self, tasks: Iterable[_Task[Item, Result]]) -> None:
        """Give the processes what they do not have yet."""
        for task in tasks:
            task.future = task.future or self._executor.submit(_work, task.item)

    def _start_processes(self) -> None:
        self._executor = ProcessPoolExecutor(
            self.workers, mp_context=get_context("spawn"), initializer=_start, initargs=(self._make_worker,)
        )

    def _replace_processes(self, tasks: deque[_Task[Item, Result]]) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._start_processes()
        for task in tasks:
            if task.future is not None and (task.future.cancelled() or task.future.exception() is not None):
                task.future = None


class SerialPool[Item, Result]:
    """As `ProcessPool`, in this process: slower, at once there, and open to a debugger."""

    def __init__(self, make_worker: Callable[[], Callable[[Item], Result]]) -> None:
        self._make_worker = make_worker

    def __enter__(self) -> SerialPool[Item, Result]:
        self._worker = self._make_worker()
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def map(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Items and their results, in order; an error of the worker comes as it is."""
        for item in items:
            yield item, self._worker(item)

    map_as_completed = map  # one after another: there is no other order


def pool_of[Item, Result](
    make_worker: Callable[[], Callable[[Item], Result]], workers: int | None
) -> ProcessPool[Item, Result] | SerialPool[Item, Result]:
    """So many processes; None: one a core; 0: none but this one.

    Raises:
        UserError: fewer than 0 workers.
    """
    return SerialPool(make_worker) if workers == 0 else ProcessPool(make_worker, workers)


@dataclass
class _Task[Item, Result]:
    item: Item
    future: Future[Result] | None = None  # None: not handed out yet
    is_yielded: bool = False

    @property
    def given(self) -> Future[Result]:
        """Of a task that is handed out."""
        assert self.future is not None
        return self.future


def _first_completed[Item, Result](tasks: Sequence[_Task[Item, Result]]) -> _Task[Item, Result]:
    wait_for_futures([task.given for task in tasks], return_when=FIRST_COMPLETED)
    return next(task for task in tasks if task.given.done())
