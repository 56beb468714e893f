"""The one thread that computes: the most urgent request first, several at once where that pays."""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable

import numpy as np
import torch

from embodied.errors import UserError
from embodied.protocols import Policy
from embodied.serving.answers import Answer
from embodied.serving.batching import StepCosts
from embodied.serving.collector import IdleCollector
from embodied.serving.requests import Outcome, PendingRequest
from embodied.serving.served_session import ComputedChunk
from embodied.session import PreparedStep, act_together
from embodied.types import ActionChunk

LOG = logging.getLogger(__name__)
IDLE_WAIT_S = 0.1  # without a request the thread looks after the garbage this often


class InferenceThread:
    """Owns the policy: nobody else calls its `step` while this runs."""

    def __init__(
        self,
        policy: Policy,
        weights: str,
        costs: StepCosts,
        lock: threading.Lock,
        *,
        threads: int,
        finished: Callable[[PendingRequest, Answer | Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            weights: what answers say of the policy.
            lock: of the sessions, held while they change and never during a step.
            threads: of torch, in this thread.
            finished: called for every request that gets its answer here.
        """
        self.policy, self.weights, self.costs = policy, weights, costs
        self._lock, self._threads, self._finished, self._clock = lock, threads, finished, clock
        self._arrivals: queue.SimpleQueue[PendingRequest | Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: list[tuple[float, int, PendingRequest]] = []  # a heap: the earliest deadline first
        self._count = itertools.count()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, pending: PendingRequest) -> None:
        self._arrivals.put(pending)

    def between_steps(self, work: Callable[[], None]) -> None:
        """Do this in the thread when no step runs, and wait for it; what it raises is raised here."""
        done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

        def guarded() -> None:
            try:
                work()
            except Exception as error:
                done.put(error)
            else:
                done.put(None)

        self._arrivals.put(guarded)
        if (error := done.get()) is not None:
            raise error

    def stop(self) -> None:
        """Answer what waits, then end."""
        self._arrivals.put(None)
        self._thread.join()

    @property
    def queue_length(self) -> int:
        """Requests that wait."""
        return len(self._waiting) + self._arrivals.qsize()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        collector = IdleCollector()
        collector.begin(self._clock())
        try:
            is_open = True
            while is_open or self._waiting:
                is_open = self._take_arrivals(collector, wait=not self._waiting) and is_open
                if self._waiting:
                    self._compute(self._next_batch())
                    collector.busy(self._clock())
        finally:
            collector.end()

    def _take_arrivals(self, collector: IdleCollector, *, wait: bool) -> bool:
        """Sort what has arrived into the heap. Returns False once the thread is to end."""
        while True:
            try:
                arrived = self._arrivals.get(timeout=IDLE_WAIT_S) if wait else self._arrivals.get_nowait()
            except queue.Empty:
                if not wait:
                    return True
                collector.idle(self._clock())
                continue
            if arrived is None:
                return False
            if isinstance(arrived, PendingRequest):
                heapq.heappush(self._waiting, (arrived.deadline_s, next(self._count), arrived))
                wait = False
            else:
                arrived()

    def _next_batch(self) -> list[PendingRequest]:
        """The most urgent request, and those that are computed with it."""
        while self._waiting and self._waiting[0][2].is_answered:  # at its deadline, with an earlier chunk
            heapq.heappop(self._waiting)
        if not self._waiting:
            return []
        if len(self._waiting) == 1 or len(self.costs.sizes) == 1:
            return [heapq.heappop(self._waiting)[2]]
        fresh = self._waiting[0][2].session.is_fresh
        alike = [
            entry for entry in sorted(self._waiting) if entry[2].session.is_fresh == fresh and not entry[2].is_answered
        ]
        size = self.costs.best_size(fresh, self._clock(), [deadline for deadline, _, _ in alike])
        chosen = alike[:size]
        taken = {entry[1] for entry in chosen}
        self._waiting = [entry for entry in self._waiting if entry[1] not in taken]
        heapq.heapify(self._waiting)
        return [pending for _, _, pending in chosen]

    def _compute(self, batch: list[PendingRequest]) -> None:
        outcomes: list[Outcome] = []
        ready: list[tuple[PendingRequest, PreparedStep, bool]] = []
        began_s = self._clock()
        with self._lock:
            for pending in batch:
                if pending.is_answered:
                    continue
                try:
                    step, repeated = pending.session.prepare(
                        pending.frame, pending.asked_s, pending.executed, pending.earlier
                    )
                    ready.append((pending, step, repeated))
                except Exception as error:
                    pending.is_answered = True
                    outcomes.append((pending, _as_user_error(error)))
        if ready:
            outcomes += self._stepped(ready, began_s)
        for pending, outcome in outcomes:
            try:
                self._finished(pending, outcome)
                pending.deliver(outcome)
            except Exception:  # of whoever asked; the others go on
                LOG.exception("an answer could not be delivered")

    def _stepped(self, ready: list[tuple[PendingRequest, PreparedStep, bool]], began_s: float) -> list[Outcome]:
        fresh = ready[0][0].session.is_fresh
        try:
            chunks = act_together(self.policy, [step for _, step, _ in ready])
        except Exception as error:
            if len(ready) > 1:  # whoever spoils the step is alone with it
                return [outcome for one in ready for outcome in self._stepped([one], self._clock())]
            return self._failed(ready[0][0], error)
        now_s = self._clock()
        self.costs.note(fresh, len(ready), now_s - began_s)
        infer_ms = 1000 * (now_s - began_s)
        with self._lock:
            outcomes = [
                self._outcome(pending, chunk, repeated, began_s, infer_ms, len(ready))
                for (pending, _, repeated), chunk in zip(ready, chunks, strict=True)
            ]
        return [outcome for outcome in outcomes if outcome is not None]

    def _outcome(
        self,
        pending: PendingRequest,
        chunk: ActionChunk,
        repeated: bool,
        began_s: float,
        infer_ms: float,
        batch: int,
    ) -> Outcome | None:
        """What the request gets; None if it was answered at its deadline. The chunk is the session's newest then."""
        session = pending.session
        computed = ComputedChunk(chunk, pending.asked_s, infer_ms, batch, self.weights)
        is_of_this_episode = session.episode == pending.episode
        if not np.isfinite(chunk.actions).all():
            if is_of_this_episode:
                session.move_to(self.policy)  # what the buffer holds is of no use any more
            error = UserError(
                expected="finite actions of the policy",
                found=str(chunk.actions.tolist())[:80],
                remedy="look at the observation; the session's buffer begins anew",
            )
            return self._given(pending, error)
        if is_of_this_episode:
            session.took(computed)
        queue_ms = 1000 * (began_s - pending.received_s)
        answer = pending.answer(computed, self._clock(), queue_ms=queue_ms, reason="", repeated=repeated)
        return self._given(pending, answer)

    def _failed(self, pending: PendingRequest, error: Exception) -> list[Outcome]:
        with self._lock:
            given = self._given(pending, _as_user_error(error))
        return [] if given is None else [given]

    @staticmethod
    def _given(pending: PendingRequest, outcome: Answer | Exception) -> Outcome | None:
        if pending.is_answered:
            return None
        pending.is_answered = True
        return pending, outcome


def _as_user_error(error: Exception) -> UserError:
    """In a sentence; what nobody expected goes into the log as well."""
    if isinstance(error, UserError):
        return error
    LOG.error("the policy failed", exc_info=error)
    return UserError(
        expected="a policy that can act on this observation",
        found=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
        remedy="look into the server's log",
    )
