"""A policy whose actions tell the step that they are for; in numpy alone, so that processes with it start fast."""

from __future__ import annotations

import functools

import numpy as np
from toy_specs import ReachTask, toy_spec

from embodied.evaluation.runner import EvaluationPlan
from embodied.types import ActionChunk, Preview


class ClockPolicy:
    """What it wants done at control step s is a function of s, so that an action at a wrong time shows itself.

    It plans for a delay of `inference_delay` steps, and notes what it was asked: (step, executed).
    """

    history, action_steps, label = 1, 4, "clock"

    def __init__(self, inference_delay=0, beyond=0):
        self.spec = toy_spec()
        self.inference_delay, self.beyond, self.asked = inference_delay, beyond, []

    @staticmethod
    def wanted(steps):
        steps = np.asarray(steps)
        return np.stack([0.01 + steps / 100, -steps / 100, np.ones(len(steps))], axis=1).astype(np.float32)

    def initial_state(self, seed):
        return None

    def step(self, histories, states, executed):
        observed = round(histories[0][-1].time_s / self.spec.dt_s)
        self.asked.append((observed, executed[0]))
        first = states[0] is None
        begins = observed if first else observed + self.inference_delay
        count = self.action_steps + (self.inference_delay if first else 0)
        steps = np.arange(begins, begins + count + self.beyond)
        preview = Preview(self.wanted(steps[count:]), np.zeros(self.beyond, np.float32))
        chunk = ActionChunk(self.wanted(steps[:count]), begins * self.spec.dt_s, self.spec.dt_s, 1, preview)
        return [chunk], ["begun"]


def clock_policy(settings, task):
    return ClockPolicy(*settings)


def reach_task(variant):
    return ReachTask()


def draw_nothing(task, rollout):
    return None


def keep_nothing(address, drawn):
    return ""


def same_seed(start):
    return start


def clock_plan(inference_delay=0, beyond=0, **rest):
    """Six starts of a `ClockPolicy`, without recordings."""
    make_policy = functools.partial(clock_policy, (inference_delay, beyond))
    return EvaluationPlan(reach_task, make_policy, draw_nothing, keep_nothing, same_seed, range(6), 0, **rest)
