"""`ProcessPool`'s work spread over a Ray cluster: workers and whole nodes may die, and come and go, on the way."""

from __future__ import annotations

import importlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from embodied.errors import UserError
from embodied.process_pool import LOOK_AHEAD, MOST_DEATHS

# By the pool that asked: what this Ray process builds once and then applies to item after item.
_workers: dict[str, Callable[[Any], Any]] = {}


def import_ray() -> Any:
    """
    Raises:
        UserError: Ray is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            expected="Ray for engine=ray", found=str(error), remedy="pip install 'embodied-policies[ray]'"
        ) from error


class RayPool[Item, Result]:
    """As `ProcessPool`, on a Ray cluster; results travel through Ray, so that nodes need no common disk.

    Items are tasks of one core each, which Ray gives to whatever node has one to spare. A task whose process or node
    dies is done again elsewhere.
    """

    def __init__(
        self, make_worker: Callable[[], Callable[[Item], Result]], workers: int | None, address: str | None
    ) -> None:
        """
        Args:
            make_worker: builds a process's worker; importable on every node.
            workers: tasks at a time; None: one a core of the cluster.
            address: of a running cluster, or "auto" for the one that this machine belongs to; None: Ray is started on
                this machine, and stopped at the end.

        Raises:
            UserError: fewer than one worker, or Ray is not installed.
        """
        if workers is not None and workers < 1:
            raise UserError(expected="workers of at least 1", found=str(workers), remedy="set workers=1 or more")
        self._ray = import_ray()
        self._make_worker, self._workers, self._address = make_worker, workers, address
        self._name = uuid4().hex

    def __enter__(self) -> RayPool[Item, Result]:
        ray = self._ray
        self._started = not ray.is_initialized()
        if self._started:
            quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
            try:
                here = {"num_cpus": self._workers, "include_dashboard": False} if self._address is None else {}
                ray.init(address=self._address, **here, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(
                    expected=f"a Ray cluster at ray_address={self._address}",
                    found=str(error).splitlines()[0],
                    remedy="start one with `ray start --head`, or set ray_address=null for one on this machine",
                ) from error
        self.workers = self._workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._work = ray.remote(num_cpus=1, max_retries=MOST_DEATHS)(_work)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._started:
            self._ray.shutdown()

    def map(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Items and their results, in order; `items` may be endless, since only a few are taken ahead.

        Raises:
            UserError: the task of one item died again and again, on whatever node; or as the worker raises it.
        """
        return self._map(items, lambda tasks: tasks[0])

    def map_as_completed(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """As `map`, but each result as soon as it is there; as `ProcessPool.map_as_completed`.

        Raises:
            UserError: as `map`.
        """
        return self._map(items, self._first_completed)

    def _first_completed(self, tasks: Sequence[_Task[Item]]) -> _Task[Item]:
        (ready, *_), _ = self._ray.wait([task.reference for task in tasks], num_returns=1)
        return next(task for task in tasks if task.reference == ready)

    def _map(
        self, items: Iterable[Item], next_task: Callable[[Sequence[_Task[Item]]], _Task[Item]]
    ) -> Iterator[tuple[Item, Result]]:
        """`next_task` of those that are handed out and not yielded yet, the oldest first."""
        errors = self._ray.exceptions
        source = iter(items)
        tasks: deque[_Task[Item]] = deque()  # from the oldest one that is not yielded on
        while True:
            while tasks and tasks[0].is_yielded:
                tasks.popleft()
            for item in itertools.islice(source, LOOK_AHEAD * self.workers - len(tasks)):
                tasks.append(_Task(item, self._work.remote(self._name, self._make_worker, item)))
            if not tasks:
                return
            task = next_task([task for task in tasks if not task.is_yielded])
            try:
                result = self._ray.get(task.reference)
            except errors.RayTaskError as error:
                raise error.cause from error
            except (errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError) as error:
                raise UserError(
                    expected=f"a simulation of item {task.item} that lives to its end",
                    found=f"{MOST_DEATHS + 1} that died ({type(error).__name__})",
                    remedy="look into Ray's logs, free some memory, and give the same command again: it continues",
                ) from error
            task.is_yielded = True
            task.reference = None  # Ray need not keep the result
            yield task.item, result


@dataclass
class _Task[Item]:
    item: Item
    reference: Any  # of its result, in Ray
    is_yielded: bool = False


def _work(pool: str, make_worker: Callable[[], Callable[[Any], Any]], item: Any) -> Any:
    if pool not in _workers:
        _workers.clear()  # of pools before: a simulator that nobody asks for any more
        _workers[pool] = make_worker()
    return _workers[pool](item)
