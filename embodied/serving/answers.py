"""What a robot gets for an observation, and what must be known to align it in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embodied.types import ActionChunk, ActionSpec


@dataclass(frozen=True)
class Timings:
    """Of one request, by the server's monotonic clock."""

    received_s: float  # when the request was complete
    queue_ms: float  # from then until its inference began; of a stale answer until it was given
    infer_ms: float  # of the policy's step that the chunk came from
    batch: int  # sessions in that step


@dataclass(frozen=True)
class Answer:
    """A chunk for one request. Times of observations and chunks are of the session's own clock, in s.

    time         observed_s    start_s                asked_s
      |  fresh       = asked_s   | actions[0] ...
      |  stale       earlier     | actions[0] ...         | actions[k]: the first one that is of use
    """

    session: str
    episode: int  # of the session, counted from 1
    chunk: ActionChunk
    observed_s: float  # of the observation that the chunk was computed from
    asked_s: float  # of this request's observation
    stale: bool  # the chunk is an earlier one: this request's was not ready by its deadline
    late: bool  # the chunk is this request's own, and came after its deadline
    reason: str  # why it is stale: "deadline" or "superseded"; "" otherwise
    history_repeated: bool  # frames of the policy's history were missing, the newest observation stands for them
    policy: str  # which weights: the first digits of their hash
    timings: Timings


def first_valid(chunk: ActionChunk, asked_s: float) -> int:
    """The first of the chunk's actions that is not of the past at `asked_s`; its length if all are."""
    return min(len(chunk.actions), max(0, round((asked_s - chunk.start_s) / chunk.dt_s)))


def from_now_on(answer: Answer, spec: ActionSpec) -> tuple[np.ndarray, float, int]:
    """The actions that a robot without a clock can execute from the first one on: float32 [Ta A].

    Those of a stale chunk that are of the past are left out, and as many that hold still follow at the end: a client
    that executes a fixed number of actions finds as many as ever.

    Returns:
        The actions, when the first one begins (the session's clock, s), and how many of them the policy predicted.
    """
    chunk = answer.chunk
    first = first_valid(chunk, answer.asked_s)
    if first == 0:
        return chunk.actions, chunk.start_s, len(chunk.actions)
    valid = chunk.actions[first:]
    last = valid[-1] if len(valid) else chunk.actions[-1]
    held = np.repeat(holding(last, spec)[None], first, axis=0)
    return np.concatenate([valid, held]), chunk.start_s + first * chunk.dt_s, len(valid)


def holding(action: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """The action that keeps the robot where `action`, [A], brought it: the same target, or no further motion."""
    if spec.representation == "absolute":
        return action
    return np.where(np.asarray(spec.binary), action, np.float32(0)).astype(np.float32)
