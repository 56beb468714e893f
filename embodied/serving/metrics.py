"""What a Prometheus server reads from `/metrics`."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from embodied.serving.answers import Answer

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class ServingMetrics:
    """Of one server, in a registry of its own. Counting one request takes some microseconds."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        names = {"registry": self._registry, "namespace": "embodied"}
        self._latency = Histogram(
            "request_seconds", "from a whole request to its answer", buckets=LATENCY_BUCKETS_S, **names
        )
        self._inference = Histogram(
            "inference_seconds", "the policy's step behind an answer", buckets=LATENCY_BUCKETS_S, **names
        )
        self._misses = Counter("deadline_misses", "answers that are stale or late", ["kind"], **names)
        self._drops = Counter("dropped_requests", "requests without actions, by reason", ["reason"], **names)
        self._batches = Histogram("batch_sessions", "sessions in one step", buckets=(1, 2, 4, 8, 16, 32), **names)
        self._sessions = Gauge("sessions", "open sessions", **names)
        self._queue = Gauge("queue_requests", "requests that wait for their inference", **names)
        self._records = Counter("dropped_records", "of a recording, by reason", ["reason"], **names)
        self._swaps = Counter("checkpoint_swaps", "by outcome", ["outcome"], **names)
        self._stale, self._late = self._misses.labels("stale"), self._misses.labels("late")

    def watch_queue(self, length: Callable[[], int]) -> None:
        self._queue.set_function(length)

    def sessions(self, count: int) -> None:
        self._sessions.set(count)

    def finished(self, answer: Answer | None, took_s: float) -> None:
        """A request has got its answer; None: it was refused, which is counted where the client is told (`dropped`)."""
        self._latency.observe(took_s)
        if answer is None:
            return
        if answer.stale:
            self._stale.inc()
            return
        self._inference.observe(answer.timings.infer_ms / 1000)
        self._batches.observe(answer.timings.batch)
        if answer.late:
            self._late.inc()

    def dropped(self, reason: str) -> None:
        """A request that nothing was computed for."""
        self._drops.labels(reason).inc()

    def record_dropped(self, reason: str) -> None:
        """Something that a recording lacks; whoever asked has the answer all the same."""
        self._records.labels(reason).inc()

    def swapped(self, outcome: str) -> None:
        self._swaps.labels(outcome).inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
