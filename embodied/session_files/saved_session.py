"""One episode of a served session: what the robot saw, what it was answered, what it did, and when."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from embodied.types import ActionChunk, Observation, TaskSpec


@dataclass(frozen=True)
class SessionHeader:
    """What holds for the whole file."""

    spec: TaskSpec
    session: str
    episode: int  # of the session, counted from 1
    policy: str  # label
    weights: str  # first digits of their hash, when the episode began
    action_steps: int  # Ta
    inference_delay: int
    began: str  # by the server's wall clock, ISO 8601


@dataclass
class SavedRequest:
    """One request and what became of it. `..._at_s` are times of the server's monotonic clock."""

    received_at_s: float
    given_at_s: float  # when its answer was known
    deadline_at_s: float | None  # None: it never got as far
    asked_s: float | None  # of its observation, by the session's clock
    observation: Observation | None  # None: refused before it was one
    executed: int | None  # control steps since the request before, as the robot says
    refusal: str  # "" if it was not refused
    chunk: ActionChunk | None = None  # with its preview; None without a refusal: only remembered (`observe_only`)
    observed_s: float | None = None  # of the observation that the chunk was computed from
    stale: bool = False
    late: bool = False
    reason: str = ""  # of a stale answer
    history_repeated: bool = False
    queue_ms: float = 0.0
    infer_ms: float = 0.0
    batch: int = 0
    weights: str = ""
    sent_at_s: float | None = None  # None: the answer never left, or another protocol sent it


@dataclass
class SavedSession:
    """What a file holds so far."""

    header: SessionHeader
    requests: list[SavedRequest] = field(default_factory=list)
    executed_s: list[float] = field(default_factory=list)  # by the session's clock, [n]
    executed: list[np.ndarray] = field(default_factory=list)  # n times float32 [A], as the robot reported them
    lost: list[tuple[int, int]] = field(default_factory=list)  # (requests before it, records that were dropped)
    end: str | None = None  # why the episode was over; None: it runs, or the server was killed
    is_damaged: bool = False  # bytes follow that are no records
