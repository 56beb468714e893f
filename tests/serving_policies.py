"""Policies for the tests of the server: one whose actions tell what it was asked, one that can be made to wait."""

from __future__ import annotations

import threading

import numpy as np
from toy_specs import toy_spec

from embodied.types import ActionChunk, Observation


class TellingPolicy:
    """Action j of a chunk is (time of the observation, steps of this session so far, executed); d is 0, Ta is 4."""

    inference_delay, action_steps, label = 0, 4, "telling"

    def __init__(self, history=1, spec=None):
        self.history, self.spec = history, spec or toy_spec()
        self.batches = []

    def initial_state(self, seed):
        return (seed, 0)

    def step(self, histories, states, executed):
        self.batches.append(len(histories))
        chunks = []
        for history, (_, count), ran in zip(histories, states, executed, strict=True):
            now_s = history[-1].time_s
            rows = np.tile(np.array([now_s, count, ran], np.float32), (4, 1))
            chunks.append(ActionChunk(rows, now_s, self.spec.dt_s, network_calls=1))
        return chunks, [(seed, count + 1) for seed, count in states]


class WaitingPolicy(TellingPolicy):
    """Computes only while `go` is set; `begun` tells that a step waits."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.go, self.begun = threading.Event(), threading.Event()
        self.go.set()

    def step(self, histories, states, executed):
        self.begun.set()
        assert self.go.wait(20)
        return super().step(histories, states, executed)


def toy_observation(value=0.0, time_s=0.0):
    return Observation({"point": np.full(2, value, np.float32), "goal": np.zeros(2, np.float32)}, time_s=time_s)
