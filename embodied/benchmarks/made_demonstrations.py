"""Demonstrations to measure readers with: made from their seeds, and copies of what a store holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from embodied.datasets.episode_store import EpisodeStore
from embodied.protocols import DemonstrationStore
from embodied.types import ActionSpec, CameraSpec, Episode, StateSpec, TaskSpec

TASK, CONTROL_HZ = "made/shapes", 10.0
SHAPES, COLOURS = 3, ((220, 60, 50), (60, 160, 70), (50, 80, 200))
EDGE = 0.02  # of a shape, in shares of the image: soft, as a camera shows it


def made_spec(cameras: int, camera_size: int, steps: int) -> TaskSpec:
    """Shapes that move in the plane: their places are the state, the target of the first one is the action."""
    action = ActionSpec(("x", "y"), ("m", "m"), (0.0, 0.0), (1.0, 1.0), (False, False), "absolute", "none")
    state = StateSpec("shapes", tuple(f"{axis}{shape}" for shape in range(SHAPES) for axis in "xy"), "m")
    views = tuple(CameraSpec(f"camera{index}", camera_size, camera_size) for index in range(cameras))
    return TaskSpec(TASK, (state,), views, action, CONTROL_HZ, steps)


def made_episode(spec: TaskSpec, seed: int) -> Episode:
    """The episode of a seed, as long as the spec's horizon. Its images are smooth and move slowly, so that they
    compress about as a robot's do."""
    random, steps = np.random.default_rng(seed), spec.horizon
    time_s = np.arange(steps + 1) / spec.control_hz
    speeds, phases = random.uniform(0.2, 1.0, (2, SHAPES)), random.uniform(0, 2 * np.pi, (2, SHAPES))
    places = 0.5 + 0.35 * np.sin(time_s[:, None, None] * speeds.T + phases.T)  # [T+1 shapes 2]
    action = places[1:, 0].astype(np.float32)
    return Episode(
        task=spec.task,
        seed=seed,
        state={"shapes": places[:-1].reshape(steps, -1).astype(np.float32)},
        images={camera.name: _images(places[:-1], camera, turn) for turn, camera in enumerate(spec.cameras)},
        action=action,
        executed=action,
        reward=np.zeros(steps, np.float32),
        success=np.ones(steps, bool),
        time_s=time_s[:-1],
        physics=np.zeros((steps, 0)),
    )


def _images(places: np.ndarray, camera: CameraSpec, turn: int) -> np.ndarray:
    """Discs on a table in a light that falls from one side, uint8 [T h w 3]; every camera sees them from another."""
    rows, columns = np.mgrid[: camera.height, : camera.width] / np.array([camera.height, camera.width])[:, None, None]
    table = (170 + 50 * (columns if turn % 2 else rows))[..., None] * np.array([1.0, 0.95, 0.85])
    images = np.broadcast_to(table, (len(places), *table.shape)).copy()
    for shape, colour in enumerate(COLOURS):
        x, y = np.roll(places[:, shape], turn, axis=-1).T[..., None, None]
        inside = 0.08 + 0.03 * shape - np.hypot(columns - x, rows - y)  # [T h w]
        cover = np.clip(0.5 + inside / EDGE, 0, 1)[..., None]
        images += cover * (np.array(colour) - images)
    return images.astype(np.uint8)


def make_store(path: Path, spec: TaskSpec, episodes: int, report: Callable[[], None]) -> None:
    """A store of made episodes; one that is not finished is gone on with.

    Args:
        report: called after each episode.
    """
    with EpisodeStore.create(path, spec, expected_episodes=episodes, provenance={"made": "shapes"}) as store:
        for seed in range(episodes):
            if seed >= len(store):
                store.commit(made_episode(spec, seed))
            report()


def copy_without_images(store: DemonstrationStore, path: Path, report: Callable[[], None]) -> None:
    """All episodes of a store, without its cameras, in a store of their own.

    Raises:
        UserError: damaged data.
    """
    spec = dataclasses.replace(store.spec, cameras=())
    count, provenance = len(store), {"copied": str(store.path)}
    with EpisodeStore.create(path, spec, expected_episodes=count, provenance=provenance) as copy:
        for index in range(count):
            if index >= len(copy):
                copy.commit(dataclasses.replace(store.episode(index), images={}))
            report()
