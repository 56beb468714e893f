"""Experts run in simulation into a store: addressed starts, bounded noise on what is executed, clean labels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import embodied
from embodied.action_noise import bounded_noise
from embodied.catalog import TASK_EXPERT, make_expert, make_task
from embodied.datasets.episode_inbox import EpisodeInbox
from embodied.datasets.episode_store import EpisodeStore
from embodied.episode_recorder import EpisodeRecorder
from embodied.errors import UserError
from embodied.hang_watchdog import HangWatchdog
from embodied.process_pool import pool_of
from embodied.protocols import Expert, Task
from embodied.ray_pool import RayPool
from embodied.types import Episode, TaskSpec

# Collection stops when so many attempts in a row failed: the expert does not fit the task as configured.
MOST_FAILURES_IN_A_ROW = 25
HANG_AFTER_S = 120.0  # longer than any first rendering
# Compressed state vectors and actions stay below this share of their raw size; images are assumed not to compress.
BYTES_A_VALUE = 4


@dataclass(frozen=True)
class CollectionSettings:
    """conf/collection, field by field."""

    episodes: int
    first_start: int
    noise: float  # standard deviation, as a share of half the action range
    noise_bound: float
    steps_after_success: int
    seed: int

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise UserError(expected="episodes of at least 1", found=str(self.episodes), remedy="raise it")
        if not 0 <= self.noise <= self.noise_bound or self.noise_bound > 2:
            raise UserError(
                expected="0 <= noise <= noise_bound <= 2, in shares of half the action range",
                found=f"noise {self.noise}, noise_bound {self.noise_bound}",
                remedy="change them",
            )


def collect_episode(
    task: Task,
    expert: Expert,
    start_id: int,
    settings: CollectionSettings,
    sign_of_life: Callable[[], None] = lambda: None,
) -> Episode:
    """One demonstration from an addressed start; `sign_of_life` is called before every step.

    The expert labels every state that its noisy execution reaches, so the labels show how to recover. The episode ends
    `steps_after_success` steps after its first success, or at the horizon, or where the task ends it.
    """
    spec = task.spec
    noise = bounded_noise(spec.action, settings.noise, settings.noise_bound, settings.seed, start_id, spec.horizon)
    observation = task.reset(start_id)
    memory = expert.infer_memory()
    recorder = EpisodeRecorder(spec)
    first_success = None
    for t in range(spec.horizon):
        sign_of_life()
        physics = task.physics_state()
        action, memory = expert.act(memory)
        executed = np.clip(action + noise[t], spec.action.low, spec.action.high).astype(np.float32)
        step = task.step(executed)
        recorder.add(observation, physics, action, executed, step.reward, step.info["success"])
        observation = step.observation
        if first_success is None and step.info["success"]:
            first_success = t
        held = first_success is not None and t - first_success >= settings.steps_after_success
        if held or step.terminated:
            break
    provenance = {"expert": type(expert).__name__, "noise": settings.noise, "noise_seed": settings.seed}
    episode = recorder.episode(start_id, {**provenance, "code_version": embodied.__version__})
    episode.variant = getattr(task, "variant", episode.variant)  # few tasks have any
    return episode


class _Recorder:
    """What a simulation process keeps: its task and expert. Called with a start, it makes that episode."""

    def __init__(
        self,
        task_config: dict[str, Any],
        expert_config: Mapping[str, Any],
        settings: CollectionSettings,
        hang_after_s: float,
    ) -> None:
        self._watchdog = HangWatchdog(hang_after_s)
        self.task = make_task(task_config)
        self._expert = make_expert(self.task, expert_config)
        self._settings = settings

    def __call__(self, start_id: int) -> Episode:
        with self._watchdog as watchdog:
            return collect_episode(self.task, self._expert, start_id, self._settings, watchdog.sign_of_life)


class _InboxRecorder:
    """The same beside the store: its episodes go to the store's inbox; one that is there was made before a crash."""

    def __init__(self, make_recorder: Callable[[], _Recorder], store: Path) -> None:
        self._recorder = make_recorder()
        self._inbox = EpisodeInbox(store, self._recorder.task.spec)

    def __call__(self, start_id: int) -> None:
        if self._inbox.take(start_id) is None:
            self._inbox.put(self._recorder(start_id))


# Makes the episodes of these starts, in their order: (make_recorder, the store that they are for, starts).
Engine = Callable[[Callable[[], _Recorder], EpisodeStore, Iterator[int]], Generator[tuple[int, Episode]]]


def on_processes(
    make_recorder: Callable[[], _Recorder], store: EpisodeStore, starts: Iterator[int], *, workers: int | None
) -> Generator[tuple[int, Episode]]:
    """An `Engine` of so many processes on this machine; None: one a core, 0: this one.

    What they finish survives their end.
    """
    inbox = EpisodeInbox(store.path, store.spec)
    with pool_of(functools.partial(_InboxRecorder, make_recorder, store.path), workers) as pool:
        for start_id, _ in pool.map(starts):
            episode = inbox.take(start_id)
            if episode is None:
                raise UserError(
                    expected=f"the episode of start {start_id} in {inbox.folder}, where a simulation process put it",
                    found="none, or a damaged file",
                    remedy="check the disk, and give the same command again: it continues",
                )
            yield start_id, episode


def on_ray(
    make_recorder: Callable[[], _Recorder],
    store: EpisodeStore,
    starts: Iterator[int],
    *,
    workers: int | None,
    address: str | None,
) -> Generator[tuple[int, Episode]]:
    """An `Engine` of a Ray cluster; the arguments are those of `RayPool`."""
    with RayPool(make_recorder, workers, address) as pool:
        yield from pool.map(starts)


def expected_bytes(spec: TaskSpec, episodes: int) -> int:
    """An upper bound of a store's size, to check the disk before a run."""
    values = 2 * spec.state_size + 2 * spec.action.size + 64
    pixels = sum(camera.height * camera.width * 3 for camera in spec.cameras)
    return episodes * spec.horizon * (BYTES_A_VALUE * values + pixels)


def collect(
    store: EpisodeStore,
    task_config: dict[str, Any],
    settings: CollectionSettings,
    engine: Engine,
    report: Callable[[EpisodeStore], None],
    expert_config: Mapping[str, Any] = TASK_EXPERT,
    hang_after_s: float = HANG_AFTER_S,
) -> None:
    """Fill the store up to `settings.episodes` successful demonstrations, going on where it stands.

    Starts are tried in order and committed in order, so the content depends neither on the engine and its number of
    processes, nor on when any of them, or this one, is killed. A demonstration that fails is dropped and counted. A
    process that makes no step for `hang_after_s` ends itself, and is replaced.

    Raises:
        UserError: the expert does not fit the task or fails again and again, simulation processes die again and again,
            the disk is full.
    """
    if not store.is_complete:
        make_recorder = functools.partial(_Recorder, task_config, expert_config, settings, hang_after_s)
        starts = itertools.count(settings.first_start + len(store.attempted_seeds))
        with closing(engine(make_recorder, store, starts)) as episodes:
            _commit(store, episodes, report)
    EpisodeInbox(store.path, store.spec).close()


def _commit(
    store: EpisodeStore, episodes: Iterator[tuple[int, Episode]], report: Callable[[EpisodeStore], None]
) -> None:
    """Move episodes to the store, as they come, until it is complete."""
    inbox = EpisodeInbox(store.path, store.spec)
    failures = 0
    for start_id, episode in episodes:
        if episode.success_ever:
            store.commit(episode)
            failures = 0
        else:
            store.drop(start_id, f"no success within {episode.length} steps")
            failures += 1
        inbox.discard(start_id)
        report(store)
        if store.is_complete:
            return
        if failures >= MOST_FAILURES_IN_A_ROW:
            raise UserError(
                expected=f"an expert that succeeds on task {store.spec.task}",
                found=f"{failures} failures in a row (the last from start {start_id})",
                remedy="lower collection noise, or check the task's settings",
            )
