"""Latency of one session at batch 1: warmed up, the device synchronised, parts apart."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from embodied.errors import UserError
from embodied.protocols import TimedPolicy
from embodied.session import Session
from embodied.types import Json, Observation

WARM_UP = 30  # observations
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

    The parts and the bare network call are timed in the same loop, between the observations, so that whatever slows
    the machine slows all of them alike.

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
    if len(stream) <= policy.action_steps:
        raise UserError(
            expected=f"a horizon above the {policy.action_steps} actions of a chunk, to time an observation after the "
            "first",
            found=f"an episode of {len(stream)} steps",
            remedy="raise task.horizon or lower policy.action_steps",
        )
    device = policy.device
    session = Session(policy)
    with _quiet(threads):
        first_ms = []
        for seed in range(FIRST_OBSERVATIONS):
            session.reset(seed)
            first_ms.append(_elapsed_ms(lambda: session.act(stream[0]), device))
        samples: list[tuple[float, float, float]] = []
        episode = 0
        while len(samples) < WARM_UP + observations:
            session.reset(episode)
            episode += 1
            for t, observation in enumerate(stream):
                session.observe(observation)
                if t % policy.action_steps:
                    continue
                act_ms = _elapsed_ms(lambda o=observation: session.act(o), device)
                if t == 0:
                    continue
                parts = policy.timed_parts([observation] * policy.history)
                encode_ms = _elapsed_ms(parts["encode"], device)
                network_ms = _elapsed_ms(parts["network_call"], device)
                samples.append((act_ms, encode_ms, network_ms))
    act_ms, encode_ms, network_ms = np.array(samples[WARM_UP : WARM_UP + observations]).T
    calls = policy.calls_per_observation
    return {
        "observation_ms": latency_summary(act_ms),
        "encode_ms": latency_summary(encode_ms),
        "denoise_ms": latency_summary(np.maximum(act_ms - encode_ms, 0.0)),
        "action_ms": latency_summary(act_ms / (steps_between_chunks or policy.action_steps)),
        "network_call_ms": latency_summary(network_ms),
        "first_observation_ms": float(np.median(first_ms[1:])),
        "overhead_ratio": float(np.median(act_ms) / (calls * np.median(network_ms))),
        "threads": threads,
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
