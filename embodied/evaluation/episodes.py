"""One evaluation episode: a policy drives a task from an addressed start to the horizon."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from embodied.action_noise import bounded_noise
from embodied.catalog import CHUNK_EXECUTOR, make_executor
from embodied.episode_recorder import EpisodeRecorder
from embodied.errors import MisfitError, UserError
from embodied.executors.holding import hold
from embodied.protocols import Executor, Policy, Task
from embodied.session import Session
from embodied.types import ActionChunk, Episode, Json, Observation, Rollout

ACTION_NOISE_SEED = 1  # demonstrations have 0, so that no start meets the noise of its demonstration


def check_policy_fits(policy: Policy, task: Task) -> None:
    """
    Raises:
        UserError: the policy was trained for observations or actions that the task does not have.
    """
    differences = policy.spec.differences(task.spec)
    if differences:
        raise UserError(
            expected=f"a policy for task {task.spec.task}",
            found=f"one for {policy.spec.task} ({'; '.join(differences[:3])})",
            remedy="evaluate it on the task it was trained for, or name another checkpoint",
        )


def check_delay_fits(policy: Policy, delay_steps: int) -> None:
    """
    Raises:
        MisfitError: the policy plans for a delay, and no chunk would come in time for the one after it.
    """
    planned, most = policy.inference_delay, policy.action_steps
    if planned and max(planned, delay_steps) > most:
        raise MisfitError(
            expected=f"an inference_delay and delay_steps of at most {most}, the actions of a chunk, which has to be "
            "there when the next one is asked for",
            found=f"inference_delay {planned}, delay_steps {delay_steps}",
            remedy="lower them, or use a policy with more action_steps",
        )


def run_episode(
    task: Task,
    policy: Policy,
    start_id: int,
    policy_seed: int,
    *,
    variant: str = "base",
    delay_steps: int = 0,
    action_noise: float = 0.0,
    executor: Executor | None = None,
) -> Rollout:
    """Drive one episode to its horizon; a success does not end it.

    A policy that takes `delay_steps` control steps to think acts on what it saw before: the world goes on meanwhile,
    and a robot that has no actions left holds still. An episode's first chunk is there as it begins, since before it
    nothing moves. See `Robot` for what happens to chunks that come early or late.

    Args:
        start_id: of the task.
        policy_seed: of the policy's own noise.
        variant: of the task, as the episode records it.
        delay_steps: from an observation to the moment at which the actions computed from it are there.
        action_noise: standard deviation of noise on what is executed, as a share of half the action range, cut at twice
            that; a function of the start, so that every policy meets the same. The policy is not told.
        executor: of the chunks; None: `ChunkExecutor`.

    Raises:
        UserError: observations or actions that do not fit, or actions that are not finite; as the policy raises it.
        MisfitError: the policy does not go with the executor or the delay.
    """
    check_delay_fits(policy, delay_steps)
    spec = task.spec
    recorder = EpisodeRecorder(spec)
    robot = Robot(policy, executor or make_executor(CHUNK_EXECUTOR, policy), delay_steps)
    robot.reset(policy_seed)
    observation = task.reset(start_id)
    stages: Json = {}
    noise_TA = bounded_noise(spec.action, action_noise, 2 * action_noise, ACTION_NOISE_SEED, start_id, spec.horizon)
    for t in range(spec.horizon):
        action = robot.act(t, observation)
        physics = task.physics_state()
        executed = action
        if action_noise:
            executed = np.clip(action + noise_TA[t], spec.action.low, spec.action.high).astype(np.float32)
        step = task.step(executed)
        recorder.add(observation, physics, action, executed, step.reward, step.info["success"])
        observation, stages = step.observation, step.info.get("stages", {})
        if step.terminated:
            break
    episode = recorder.episode(start_id, {"policy": policy.label, "policy_seed": policy_seed})
    episode.variant = variant
    return dataclasses.replace(_rollout(episode, robot.chunks, policy.inference_delay), stages=stages)


@dataclass(frozen=True)
class HandedOutChunk:
    """A chunk, and when it was what."""

    chunk: ActionChunk
    step: int  # control step whose observation it was computed from; where the robot waited for it, at which it came
    ready_step: int  # at which it comes
    latency_ms: float  # that it took on this machine


class Robot:
    """What acts in an episode: a policy's session, an executor, and the chunk that the policy is thinking about.

    A chunk's time line begins with the observation it was computed from; its actions begin `inference_delay` d control
    steps later. With `delay_steps` below d it comes early and waits; above d the robot holds still for the difference,
    and the actions that are past when it comes are never executed. A policy without an `inference_delay` begins where
    the robot is: if the robot held still until the chunk came, the chunk's time line begins when it comes.
    """

    def __init__(self, policy: Policy, executor: Executor, delay_steps: int) -> None:
        """`executor` must be one for `policy`'s chunks."""
        self._policy = policy
        self._session = Session(policy)
        self._executor = executor
        self._delay_steps = delay_steps

    def reset(self, seed: int) -> None:
        self._session.reset(seed)
        self._executor.reset()
        self.chunks: list[HandedOutChunk] = []  # that the executor has taken
        self._coming: HandedOutChunk | None = None
        self._last = np.zeros(self._policy.spec.action.size, np.float32)

    def act(self, t: int, observation: Observation) -> np.ndarray:
        """The action of control step `t`, float32 [A].

        Raises:
            UserError: as `Session.act` and `Executor.take`.
        """
        now_s = observation.time_s
        self._session.observe(observation)
        self._take_if_there(t, now_s)
        if self._coming is None and self._executor.needs_chunk(now_s):
            self._coming = self._asked(t, observation)
            self._take_if_there(t, now_s)
        if self._executor.has_action(now_s):
            self._last = self._executor.next_action(now_s)
        else:
            self._last = hold(self._policy.spec.action, self._last)
        return self._last

    def _asked(self, t: int, observation: Observation) -> HandedOutChunk:
        begun_s = time.perf_counter()
        chunk = self._session.act(observation, self._executor.executed(observation.time_s))
        latency_ms = 1000 * (time.perf_counter() - begun_s)
        return HandedOutChunk(chunk, t, t + (self._delay_steps if self.chunks else 0), latency_ms)

    def _take_if_there(self, t: int, now_s: float) -> None:
        coming = self._coming
        if coming is None or t < coming.ready_step:
            return
        waited = t > coming.step and not self._executor.has_action(now_s)
        if waited and self._policy.inference_delay == 0:
            coming = dataclasses.replace(coming, chunk=dataclasses.replace(coming.chunk, start_s=now_s), step=t)
        self._executor.take(coming.chunk)
        self.chunks.append(coming)
        self._coming = None


def _rollout(episode: Episode, chunks: list[HandedOutChunk], inference_delay: int) -> Rollout:
    action_size = episode.action.shape[1]
    no_preview = np.zeros((0, action_size), np.float32), np.zeros(0, np.float32)
    previews = [
        no_preview if one.chunk.preview is None else (one.chunk.preview.actions, one.chunk.preview.levels)
        for one in chunks
    ]
    return Rollout(
        episode=episode,
        chunk_steps=np.array([one.step for one in chunks], np.int64),
        chunk_actions=np.stack(_from_observation(chunks, inference_delay)),
        preview_actions=np.stack([actions for actions, _ in previews]).astype(np.float32),
        preview_levels=np.stack([levels for _, levels in previews]).astype(np.float32),
        latency_ms=np.array([one.latency_ms for one in chunks], np.float32),
        network_calls=np.array([one.chunk.network_calls for one in chunks], np.int64),
    )


def _from_observation(chunks: list[HandedOutChunk], inference_delay: int) -> list[np.ndarray]:
    """Each chunk's [d + Ta A], from its observation on: led by the d actions that were settled before."""
    whole = [one.chunk.actions for one in chunks[:1]]
    for before, one in pairwise(chunks):
        passed = one.step - before.step
        whole.append(np.concatenate([whole[-1][passed : passed + inference_delay], one.chunk.actions]))
    return whole
