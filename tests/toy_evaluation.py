"""Evaluations of the toy task. Without torch, which the processes that import this file would load for nothing."""

from __future__ import annotations

import functools

import numpy as np
from toy_specs import ReachTask, toy_spec

from embodied.evaluation.runner import EvaluationPlan
from embodied.process_pool import ProcessPool
from embodied.types import ActionChunk


class ExpertPolicy:
    """The expert behind the policy protocol, so that outcomes are known. It reads the goal from the observation."""

    history, action_steps, inference_delay, label = 1, 4, 0, "expert"

    def __init__(self, spec=None):
        self.spec = spec or toy_spec()

    def initial_state(self, seed):
        return seed

    def step(self, histories, states, executed):
        chunks = []
        for history in histories:
            state = history[-1].state
            point, actions = state["point"].astype(float), []
            for _ in range(self.action_steps):
                towards = np.clip((state["goal"] - point) / 0.1, -1, 1)
                actions.append([*towards, 1.0])
                point = point + 0.1 * towards
            chunks.append(ActionChunk(np.array(actions, np.float32), history[-1].time_s, self.spec.dt_s, 1))
        return chunks, list(states)


class LazyPolicy(ExpertPolicy):
    """Acts on even starts only, by the goal's sign: some episodes fail."""

    def step(self, histories, states, executed):
        chunks, states = super().step(histories, states, executed)
        if histories[0][-1].state["goal"][0] < 0:
            for chunk in chunks:
                chunk.actions[:] = 0
        return chunks, states


class VariedTask(ReachTask):
    """Its one variant is a start beside the goal."""

    def __init__(self, variant="base"):
        super().__init__()
        self.variant = variant

    def reset(self, start_id):
        super().reset(start_id)
        if self.variant == "near":
            self.point = self.goal + 0.02
        return self._observe()


def outcome(task, rollout):
    return str(rollout.episode.success_ever)


def note(folder, address, text):
    name = f"{address.variant}-{address.start}.txt"
    (folder / name).write_text(text)
    return name


def one_policy(make_policy, task):
    return make_policy()


def seed_of(start):
    return 10 * start


def plan(folder, make_task=VariedTask, make_policy=ExpertPolicy, starts=range(6), recordings=2, **rest):
    make = functools.partial(one_policy, make_policy)
    return EvaluationPlan(
        make_task, make, outcome, functools.partial(note, folder), seed_of, starts, recordings, **rest
    )


def processes(workers):
    return functools.partial(ProcessPool, workers=workers)


BOTH = {"variants": ("base", "near"), "axes": ("base", "place")}


def silent(rows):
    pass
