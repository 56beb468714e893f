"""Episodes and stores that tests make, small and different in every array."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np

from embodied.datasets import episode_layout
from embodied.datasets.episode_store import EpisodeStore
from embodied.types import ActionSpec, CameraSpec, Episode, StateSpec, TaskSpec

STORE_FORMATS = {"zarr": EpisodeStore}
LAYOUT = ("CHUNK_BYTES", "CHUNK_ROWS", "SHARD_BYTES", "IMAGE_SHARD_BYTES")  # what tests change of it
_KEEPERS: list[tempfile.TemporaryDirectory] = []  # of stores to copy, which go when the process ends

SPEC = TaskSpec(
    task="robosuite/lift",
    state=(StateSpec("position", ("x", "y", "z"), "m"), StateSpec("gripper", ("opening",), "m")),
    cameras=(CameraSpec("front", height=12, width=16),),
    action=ActionSpec(
        elements=("dx", "dy"),
        units=("m", "m"),
        low=(-1.0, -1.0),
        high=(1.0, float("inf")),
        binary=(False, False),
        representation="delta",
        rotation="none",
    ),
    control_hz=20.0,
    horizon=100,
)


def make_episode(seed: int, steps: int | None = None, spec: TaskSpec = SPEC, physics_size: int = 5) -> Episode:
    """Random values, a different length for each seed, success from the middle on for even seeds."""
    random = np.random.default_rng(seed)
    steps = 3 + seed % 7 if steps is None else steps

    def floats(*shape: int) -> np.ndarray:
        return random.normal(size=(steps, *shape)).astype(np.float32)

    return Episode(
        task=spec.task,
        seed=seed,
        state={state.name: floats(state.size) for state in spec.state},
        images={c.name: random.integers(0, 256, (steps, c.height, c.width, 3), np.uint8) for c in spec.cameras},
        action=floats(spec.action.size),
        executed=floats(spec.action.size),
        reward=floats(),
        success=np.arange(steps) >= (steps // 2 if seed % 2 == 0 else steps),
        time_s=np.arange(steps) / spec.control_hz,
        physics=random.normal(size=(steps, physics_size)),
        instruction="lift the cube",
        variant="base",
        provenance={"noise": 0.1, "seed": seed},
    )


def assert_same_episode(one: Episode, other: Episode) -> None:
    first, second = episode_layout.episode_arrays(one), episode_layout.episode_arrays(other)
    assert first.keys() == second.keys()
    for key in first:
        assert first[key].dtype == second[key].dtype, key
        np.testing.assert_array_equal(first[key], second[key], err_msg=key, strict=True)
    for name in ("task", "seed", "instruction", "variant", "provenance"):
        assert getattr(one, name) == getattr(other, name)


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "writer.lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def fill_store(store_class, path: Path, count: int, expected: int | None = None, folder: Path | None = None) -> Path:
    """Make a closed store of `count` episodes with seeds 0, 1, ... at `folder` (or else `path`); returns where."""
    layout = tuple(getattr(episode_layout, name) for name in LAYOUT)
    return shutil.copytree(_filled(store_class, count, expected or max(count, 1), layout), folder or path)


@functools.cache
def _filled(store_class, count: int, expected: int, layout: tuple[int, ...]) -> Path:
    """Such a store, written once for every layout of its files that tests set, to be copied."""
    keeper = tempfile.TemporaryDirectory(prefix="embodied-made-")
    _KEEPERS.append(keeper)
    folder = Path(keeper.name) / "made.zarr"
    with store_class.create(folder, SPEC, expected_episodes=expected, provenance={}) as store:
        for seed in range(count):
            store.commit(make_episode(seed))
    return folder
