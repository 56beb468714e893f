"""Everything that a policy does for the first time, done before the first robot asks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from embodied.protocols import Policy
from embodied.serving.batching import StepCosts
from embodied.session import Session, act_together
from embodied.types import Json, Observation, TaskSpec

STEPS = 4  # of each batch size, the first of them of fresh sessions


def warm_up(policy: Policy, sizes: Sequence[int], observation: Observation, threads: int) -> StepCosts:
    """Step fresh and running sessions in batches of each of these sizes, and measure what that takes.

    Args:
        observation: of the policy's spec; its time does not matter.
        threads: of torch, as when robots are served: a program that an engine makes here keeps as many.

    Raises:
        UserError: the policy cannot act.
    """
    costs = StepCosts(sizes)
    with _torch_threads(threads):
        _measure(policy, observation, costs)
    return costs


def _measure(policy: Policy, observation: Observation, costs: StepCosts) -> None:
    for noted in (StepCosts(costs.sizes), costs):  # the first round compiles, and is no measure
        for size in costs.sizes:
            sessions = [Session(policy) for _ in range(size)]
            for session in sessions:
                session.reset(0)
            for step in range(STEPS):
                began_s = time.perf_counter()
                _step_all(policy, sessions, observation, step)
                noted.note(step == 0, size, time.perf_counter() - began_s)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """In this thread of Python: each has a number of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _step_all(policy: Policy, sessions: Sequence[Session], observation: Observation, step: int) -> None:
    prepared = []
    for session in sessions:
        session.forget_history()
        time_s = step * policy.action_steps * policy.spec.dt_s
        prepared.append(session.prepare(Observation(observation.state, observation.images, time_s=time_s)))
    act_together(policy, prepared)


def made_observation(spec: TaskSpec, statistics: Mapping[str, Json]) -> Observation:
    """One that fits the spec: the training data's mean where it is known, and grey images."""
    state = {}
    for vector in spec.state:
        mean = statistics.get(f"state/{vector.name}", {}).get("mean")
        state[vector.name] = np.asarray(mean if mean is not None else np.zeros(vector.size), np.float32)
    images = {camera.name: np.full((camera.height, camera.width, 3), 127, np.uint8) for camera in spec.cameras}
    return Observation(state, images)
