"""One evaluation episode: a policy drives a task from an addressed start to the horizon."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from embodied.chunk_executor import ChunkExecutor
from embodied.episode_recorder import EpisodeRecorder
from embodied.errors import UserError
from embodied.protocols import Policy, Task
from embodied.session import Session
from embodied.types import ActionChunk, ActionSpec, Episode, Json, Rollout


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


def run_episode(
    task: Task, policy: Policy, start_id: int, policy_seed: int, *, variant: str = "base", delay_steps: int = 0
) -> Rollout:
    """Drive one episode to its horizon; a success does not end it.

    A policy that takes `delay_steps` control steps to think acts on what it saw before: the world goes on meanwhile,
    and the robot, which has no actions left, holds still. An episode's first chunk is there as it begins, since before
    it nothing moves.

    Args:
        start_id: of the task.
        policy_seed: of the policy's own noise.
        variant: of the task, as the episode records it.
        delay_steps: from an observation to the first of the actions that were computed from it.

    Raises:
        UserError: observations or actions that do not fit, or actions that are not finite; as the policy raises it.
    """
    spec = task.spec
    session, executor, recorder = Session(policy), ChunkExecutor(spec.action), EpisodeRecorder(spec)
    session.reset(policy_seed)
    observation = task.reset(start_id)
    chunks: list[tuple[int, ActionChunk, float]] = []
    thinking: tuple[int, ActionChunk, float] | None = None
    action = np.zeros(spec.action.size, np.float32)
    stages: Json = {}
    for t in range(spec.horizon):
        session.observe(observation)
        if executor.needs_chunk and thinking is None:
            begun_s = time.perf_counter()
            chunk = session.act(observation)
            thinking = (t + (delay_steps if chunks else 0), chunk, 1000 * (time.perf_counter() - begun_s))
        if thinking is not None and t >= thinking[0]:
            executor.take(thinking[1])
            chunks.append(thinking)
            thinking = None
        action = hold(spec.action, action) if executor.needs_chunk else executor.next_action()
        physics = task.physics_state()
        step = task.step(action)
        recorder.add(observation, physics, action, action, step.reward, step.info["success"])
        observation, stages = step.observation, step.info.get("stages", {})
        if step.terminated:
            break
    episode = recorder.episode(start_id, {"policy": policy.label, "policy_seed": policy_seed})
    episode.variant = variant
    return dataclasses.replace(_rollout(episode, chunks), stages=stages)


def hold(spec: ActionSpec, last: np.ndarray) -> np.ndarray:
    """The action that keeps the robot where it is, after `last`, float32 [A]: nothing to add, or the same target.

    What means something at its two ends alone, a gripper, stays as it was told last.
    """
    if spec.representation == "absolute":
        return last.copy()
    return np.where(spec.binary, last, 0.0).astype(np.float32)


def _rollout(episode: Episode, chunks: list[tuple[int, ActionChunk, float]]) -> Rollout:
    action_size = episode.action.shape[1]
    no_preview = np.zeros((0, action_size), np.float32), np.zeros(0, np.float32)
    previews = [
        no_preview if chunk.preview is None else (chunk.preview.actions, chunk.preview.levels) for _, chunk, _ in chunks
    ]
    return Rollout(
        episode=episode,
        chunk_steps=np.array([t for t, _, _ in chunks], np.int64),
        chunk_actions=np.stack([chunk.actions for _, chunk, _ in chunks]),
        preview_actions=np.stack([actions for actions, _ in previews]).astype(np.float32),
        preview_levels=np.stack([levels for _, levels in previews]).astype(np.float32),
        latency_ms=np.array([latency_ms for _, _, latency_ms in chunks], np.float32),
        network_calls=np.array([chunk.network_calls for _, chunk, _ in chunks], np.int64),
    )
