"""Latency of one session at batch 1: warmed up, the device synchronised, parts apart."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from embodied.errors import UserError
from embodied.protocols import TimedPolicy
from embodied.session import Session
from embodied.types import Json, Observation

WARM_UP = 30  # observations
BLOCK = 10  # acts, then as many encodings and network calls; one before each of the three is not counted
RE_WARM_UP = 5  # observations, of a policy that others ran since
FIRST_OBSERVATIONS = 10  # resets, for the latency of an episode's first chunk


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _quiet(threads: int):
    """A given number of torch threads, and no garbage collection in the middle of a measurement."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        torch.set_num_threads(before)


def _elapsed_ms(work: Callable[[], object], device: torch.device) -> float:
    begun = time.perf_counter()
    work()
    synchronize(device)
    return 1000 * (time.perf_counter() - begun)


def measure_latency(
    policy: TimedPolicy,
    stream: list[Observation],
    observations: int,
    threads: int = 1,
    steps_between_chunks: int | None = None,
) -> Json:
    """Time `Session.act` over a recorded stream of observations, one every control step.

    Blocks of acts, of encodings and of bare network calls take turns, so that whatever slows the machine slows all of
    them alike, while none finds its weights driven out of the caches by another engine's copy of them.

    Args:
        stream: of one episode.
        observations: to time, after the warm-up.
        threads: of torch.
        steps_between_chunks: actions that a chunk pays for; None: those that it hands out.

    Returns:
        Summaries in ms: `observation_ms` (the whole act), `encode_ms`, `denoise_ms` (the rest of it), `action_ms` (per
        executed action), `network_call_ms`, `first_observation_ms`, and `overhead_ratio`: the whole act over the
        network calls it makes.

    Raises:
        UserError: a stream that is over before a second chunk is asked for.
    """
    timer = SessionTimer(policy, stream, steps_between_chunks)
    with _quiet(threads):
        timer.time_first_observations()
        timer.time(observations, warm_up=WARM_UP)
    return {**timer.summary(), "threads": threads}


def measure_in_turn(
    policies: Mapping[Any, TimedPolicy],
    stream: list[Observation],
    observations: int,
    rounds: int,
    threads: int = 1,
    steps_between_chunks: Mapping[Any, int] | None = None,
) -> dict[Any, Json]:
    """`measure_latency` of several policies of one task, round by round, so that what slows the machine slows all.

    Args:
        policies: by any key.
        observations: of each policy in each round, after a warm-up.
        steps_between_chunks: of each policy, actions that a chunk pays for; None: those that each hands out.

    Returns:
        by the same keys, summaries of all rounds together.

    Raises:
        UserError: a stream that is over before a second chunk is asked for.
    """
    steps = steps_between_chunks or {}
    timers = {key: SessionTimer(policy, stream, steps.get(key)) for key, policy in policies.items()}
    with _quiet(threads):
        for number in range(rounds):
            for timer in timers.values():
                timer.time_first_observations()
                timer.time(observations, warm_up=WARM_UP if number == 0 else RE_WARM_UP)
    return {key: {**timer.summary(), "threads": threads} for key, timer in timers.items()}


class SessionTimer:
    """Times the observations of one policy's sessions, in as many sittings as wanted."""

    def __init__(self, policy: TimedPolicy, stream: list[Observation], steps_between_chunks: int | None = None) -> None:
        """
        Raises:
            UserError: a stream that is over before a second chunk is asked for.
        """
        if len(stream) <= policy.action_steps:
            raise UserError(
                expected=f"a horizon above the {policy.action_steps} actions of a chunk, to time an observation after "
                "the first",
                found=f"an episode of {len(stream)} steps",
                remedy="raise task.horizon or lower policy.action_steps",
            )
        self._policy, self._stream = policy, stream
        self._steps_between_chunks = steps_between_chunks or policy.action_steps
        self._session = Session(policy)
        self._episodes = 0
        self._first_ms: list[float] = []
        self._samples: list[tuple[float, float, float]] = []

    def time_first_observations(self) -> None:
        """Of episodes that begin one after another; the first of them warms up."""
        for seed in range(FIRST_OBSERVATIONS):
            self._session.reset(seed)
            took_ms = _elapsed_ms(lambda: self._session.act(self._stream[0]), self._policy.device)
            if seed:
                self._first_ms.append(took_ms)

    def time(self, observations: int, warm_up: int) -> None:
        """So many observations that are no episode's first, and as many before them as `warm_up` says."""
        samples: list[tuple[float, float, float]] = []
        acts_ms: list[float] = []
        while len(samples) < warm_up + observations:
            self._session.reset(self._episodes)
            self._episodes += 1
            for t, observation in enumerate(self._stream):
                self._session.observe(observation)
                if t == 0:
                    self._session.act(observation)
                elif t % self._policy.action_steps == 0:
                    acts_ms.append(_elapsed_ms(lambda o=observation: self._session.act(o), self._policy.device))
                    if len(acts_ms) == 1 + BLOCK:
                        samples += zip(acts_ms[1:], *self._parts_ms(observation), strict=True)
                        acts_ms.clear()
        self._samples += samples[warm_up : warm_up + observations]

    def _parts_ms(self, observation: Observation) -> list[list[float]]:
        """A block of encodings, and one of bare network calls."""
        parts = self._policy.timed_parts([observation] * self._policy.history)
        device = self._policy.device
        return [[_elapsed_ms(parts[name], device) for _ in range(1 + BLOCK)][1:] for name in ("encode", "network_call")]

    def summary(self) -> Json:
        """As `measure_latency` returns it, without the threads."""
        act_ms, encode_ms, network_ms = np.array(self._samples).T
        calls = self._policy.calls_per_observation
        return {
            "observation_ms": latency_summary(act_ms),
            "encode_ms": latency_summary(encode_ms),
            "denoise_ms": latency_summary(np.maximum(act_ms - encode_ms, 0.0)),
            "action_ms": latency_summary(act_ms / self._steps_between_chunks),
            "network_call_ms": latency_summary(network_ms),
            "first_observation_ms": float(np.median(self._first_ms)),
            "overhead_ratio": float(np.median(act_ms) / (calls * np.median(network_ms))),
        }


def latency_summary(samples_ms: Sequence[float] | np.ndarray) -> dict[str, float | int]:
    """p50, p95, p99 (interpolated linearly), mean, all in ms, and n.

    Raises:
        UserError: no samples, or one that is negative or not finite.
    """
    samples = np.asarray(samples_ms, dtype=np.float64).ravel()
    if samples.size == 0 or not np.isfinite(samples).all() or samples.min() < 0:
        raise UserError(
            expected="at least one latency, each finite and not negative (ms)",
            found="none" if samples.size == 0 else f"values from {samples.min()} to {samples.max()}",
            remedy="time at least one observation with a monotonic clock",
        )
    p50, p95, p99 = np.percentile(samples, (50, 95, 99))
    return {
        "p50": float(p50),
        "p95": float(p95),
        "p99": float(p99),
        "mean": float(samples.mean()),
        "n": int(samples.size),
    }
