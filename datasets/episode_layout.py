"""What a store keeps of an episode: which arrays, of which type and shape, in which order.

Every store format shares this: the keys, the checks before a commit, and the checksum, none of which knows Zarr.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from embodied.errors import UserError
from embodied.types import Episode, TaskSpec

CHUNK_BYTES = 64 * 1024  # what a reader decompresses at least: a few images, or some thousand small rows
CHUNK_ROWS = 1024  # at most; a narrow array gains nothing from longer chunks
SHARD_BYTES = 512 * 1024  # what a commit rewrites at most of a low-dimensional array
IMAGE_SHARD_BYTES = 16 * 1024 * 1024  # images: fewer, larger files


@dataclass(frozen=True)
class ArrayLayout:
    """One array of a store; its leading axis is time, all episodes one after another."""

    key: str  # "state/<name>", "image/<camera>", "action", ...
    dtype: np.dtype  # little-endian
    row_shape: tuple[int, ...]  # of one control step

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.row_shape, dtype=np.int64))

    @property
    def chunk_rows(self) -> int:
        """Rows that are compressed together."""
        return min(CHUNK_ROWS, _power_of_two_below(CHUNK_BYTES // max(self.row_bytes, 1)))

    @property
    def shard_rows(self) -> int:
        """Rows of one file, a multiple of the chunk."""
        limit = IMAGE_SHARD_BYTES if self.key.startswith("image/") else SHARD_BYTES
        return self.chunk_rows * _power_of_two_below(limit // max(self.row_bytes * self.chunk_rows, 1))


def _power_of_two_below(count: int) -> int:
    return 1 << (max(count, 1).bit_length() - 1)


def array_layouts(spec: TaskSpec, physics_size: int) -> dict[str, ArrayLayout]:
    """Every array of a store of this task, by key, in the order in which checksums run over them."""
    float32, float64 = np.dtype("<f4"), np.dtype("<f8")
    actions = (spec.action.size,)
    layouts = [
        *(ArrayLayout(f"state/{state.name}", float32, (state.size,)) for state in spec.state),
        *(
            ArrayLayout(f"image/{camera.name}", np.dtype("u1"), (camera.height, camera.width, 3))
            for camera in spec.cameras
        ),
        ArrayLayout("action", float32, actions),
        ArrayLayout("executed", float32, actions),
        ArrayLayout("reward", float32, ()),
        ArrayLayout("success", np.dtype("?"), ()),
        ArrayLayout("time_s", float64, ()),
        ArrayLayout("physics", float64, (physics_size,)),
    ]
    return {layout.key: layout for layout in layouts}


def episode_arrays(episode: Episode) -> dict[str, np.ndarray]:
    """The arrays of an episode by their keys in a store."""
    return {
        **{f"state/{name}": values for name, values in episode.state.items()},
        **{f"image/{name}": values for name, values in episode.images.items()},
        **{key: getattr(episode, key) for key in ("action", "executed", "reward", "success", "time_s", "physics")},
    }


def named(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays below `prefix`, for example "state/", by the rest of their keys."""
    return {key.removeprefix(prefix): values for key, values in arrays.items() if key.startswith(prefix)}


def episode_from_arrays(arrays: dict[str, np.ndarray], **about: Any) -> Episode:
    """The inverse of `episode_arrays`; `about` are the episode's other fields."""
    fields = {key: arrays[key] for key in ("action", "executed", "reward", "success", "time_s", "physics")}
    return Episode(state=named(arrays, "state/"), images=named(arrays, "image/"), **fields, **about)


def checksum(arrays: dict[str, np.ndarray], layouts: dict[str, ArrayLayout]) -> str:
    """sha256 over every array's key and shape and its little-endian bytes, in the layouts' order."""
    digest = hashlib.sha256()
    for key, layout in layouts.items():
        values = np.ascontiguousarray(arrays[key], dtype=layout.dtype)
        digest.update(checksum_head(layout, values.shape))
        digest.update(values.data if values.size else b"")
    return digest.hexdigest()


def checksum_head(layout: ArrayLayout, shape: tuple[int, ...]) -> bytes:
    """What a checksum takes in before the bytes of an array of an episode."""
    return f"{layout.key}{shape}{layout.dtype.str}".encode()


def checksums(arrays: dict[str, np.ndarray], layouts: dict[str, ArrayLayout]) -> dict[str, str]:
    """The checksum of each array by itself, which tells the damaged one from the others."""
    return {key: checksum(arrays, {key: layout}) for key, layout in layouts.items()}


def check_episode(episode: Episode, spec: TaskSpec, physics_size: int | None) -> None:
    """Refuse an episode that does not fit the task's spec.

    Args:
        physics_size: values of a physics state in this store; None before the first episode, which decides it.

    Raises:
        UserError: another task, no steps, a missing or surplus array, a wrong shape or type, a value not finite.
    """
    remedy = f"record the episode with the task that the store is for ({spec.task})"
    if episode.task != spec.task:
        raise UserError(expected=f"an episode of task {spec.task}", found=f"one of task {episode.task}", remedy=remedy)
    if episode.length == 0:
        raise UserError(
            expected=f"an episode of at least 1 step for seed {episode.seed}",
            found="0 steps",
            remedy="drop the attempt, with the reason, instead of committing it",
        )
    arrays = episode_arrays(episode)
    if physics_size is None:
        physics_size = episode.physics.shape[1] if episode.physics.ndim == 2 else 0
    layouts = array_layouts(spec, physics_size)
    if arrays.keys() != layouts.keys():
        missing, surplus = sorted(layouts.keys() - arrays.keys()), sorted(arrays.keys() - layouts.keys())
        raise UserError(
            expected=f"the arrays that the spec of {spec.task} names",
            found=f"missing: {', '.join(missing) or 'none'}; surplus: {', '.join(surplus) or 'none'}",
            remedy=remedy,
        )
    for key, layout in layouts.items():
        _check_array(arrays[key], layout, episode, remedy)


def _check_array(values: np.ndarray, layout: ArrayLayout, episode: Episode, remedy: str) -> None:
    where = f"in the episode of seed {episode.seed}"
    shape = (episode.length, *layout.row_shape)
    if values.shape != shape or values.dtype != layout.dtype:
        raise UserError(
            expected=f"'{layout.key}' as {layout.dtype.name} {list(shape)} {where}",
            found=f"{values.dtype.name} {list(values.shape)}",
            remedy=remedy,
        )
    if layout.dtype.kind == "f" and not np.isfinite(values).all():
        step, *element = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise UserError(
            expected=f"finite values of '{layout.key}' {where}",
            found=f"{values[(step, *element)]} at step {step}" + (f", element {element[0]}" if element else ""),
            remedy="drop the attempt: the simulation diverged or its expert failed",
        )
