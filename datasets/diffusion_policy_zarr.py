"""The human Push-T demonstrations in the format that Diffusion Policy published them in, read in place.

    X/.zgroup                a Zarr v2 group
    X/data/state             float [T 5]: agent x, agent y, block x, block y (px), block angle (rad)
    X/data/action            float [T 2]: the target that the agent was given, px
    X/data/img               float [T h w 3], 0 .. 255: the board from above; read only where a camera is asked for
    X/meta/episode_ends      integer [episodes]: the row after the last of each

Nothing is written. Other arrays, among them `keypoint` (nine points placed by hand), are left alone: what a task shows
is computed from the recorded state as the simulator computes it from its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from embodied import pusht_board
from embodied.catalog import nearest
from embodied.datasets.episode_layout import ArrayLayout, array_layouts, named
from embodied.datasets.streaming_statistics import StreamingStatistics
from embodied.datasets.zarr_v2_arrays import ZarrV2Array, check_length, episode_ends
from embodied.errors import UserError
from embodied.types import Episode, Json, Statistics, TaskSpec

FORMAT = "diffusion policy zarr"


@dataclass(frozen=True)
class DemonstrationRow:
    """Rows `start` to `end` (exclusive) of every array. The seed is the demonstration's place in the store."""

    seed: int
    start: int
    end: int


class DiffusionPolicyZarr:
    """Demonstrations as training and replay ask for them (`protocols.DemonstrationStore`); read-only.

    Reward and success were not recorded. They are computed from the recorded poses, where an episode is asked for; the
    last action of an episode, whose outcome nobody recorded, gets those of the state before it.
    """

    def __init__(self, path: Path, spec: TaskSpec) -> None:
        """
        Args:
            spec: of a Push-T task, with or without the camera.

        Raises:
            UserError: arrays that are missing, unsafe to decode, or do not fit each other.
        """
        self.path = path
        self.spec = spec
        self.provenance: Json = {"format": FORMAT}
        self.dropped: tuple = ()
        self._state = ZarrV2Array(path, "data/state", "f", (pusht_board.STATE_SIZE,))
        self._action = ZarrV2Array(path, "data/action", "f", (spec.action.size,))
        self._images = {
            camera.name: ZarrV2Array(path, "data/img", "fu", (camera.height, camera.width, 3))
            for camera in spec.cameras
        }
        self.episode_ends = episode_ends(path)  # int64 [episodes]
        for array in (self._state, self._action, *self._images.values()):
            check_length(array, self.total_steps)

    @classmethod
    def open(cls, path: str | Path, wanted: TaskSpec | None = None) -> DiffusionPolicyZarr:
        """
        Args:
            wanted: the spec of the Push-T task that the data are for; None for all that was recorded. Images come in
                the size in which they were recorded, and the horizon, which is none of the data's, is the task's.

        Raises:
            UserError: a task that is not Push-T, or as for the constructor.
        """
        path = Path(path)
        task = wanted.task if wanted is not None else "pusht/state"
        if task not in pusht_board.STATE_VECTORS:
            raise UserError(
                expected=f"one of the tasks {', '.join(pusht_board.STATE_VECTORS)} for the demonstrations at {path}",
                found=f"task {task}",
                remedy="train that task from a store of its own, or name task=pusht/keypoints",
            )
        cameras = [camera.name for camera in wanted.cameras] if wanted is not None else _recorded_cameras(path)
        horizon = wanted.horizon if wanted is not None else pusht_board.HORIZON
        size = _image_size(path) if cameras else 96
        return cls(path, pusht_board.task_spec(task, horizon=horizon, cameras=cameras, camera_size=size))

    @property
    def rows(self) -> tuple[DemonstrationRow, ...]:
        starts = [0, *self.episode_ends[:-1]]
        return tuple(
            DemonstrationRow(seed, int(start), int(end))
            for seed, (start, end) in enumerate(zip(starts, self.episode_ends, strict=True))
        )

    @property
    def expected_episodes(self) -> int:
        return len(self)

    @property
    def is_complete(self) -> bool:
        return True

    @property
    def total_steps(self) -> int:
        return int(self.episode_ends[-1])

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._layouts)

    def __len__(self) -> int:
        return len(self.episode_ends)

    def episode(self, index: int) -> Episode:
        """One demonstration, with its images if the spec has the camera.

        Raises:
            IndexError: no such episode.
            UserError: damaged data.
        """
        row = self.rows[index]
        arrays = {key: self._rows(key, row.start, row.end) for key in self._layouts}
        fields = {key: arrays[key] for key in ("action", "executed", "reward", "success", "time_s", "physics")}
        return Episode(
            task=self.spec.task,
            seed=row.seed,
            state=named(arrays, "state/"),
            images=named(arrays, "image/"),
            **fields,
            provenance={**self.provenance, "demonstrator": "human"},
        )

    def read(self, key: str) -> np.ndarray:
        """A whole array in memory: [total_steps ...]. Meant for state vectors and actions.

        Raises:
            UserError: an unknown key, or damaged data.
        """
        self._layout(key)
        return self._rows(key, 0, self.total_steps)

    def read_rows(self, key: str, start: int, end: int) -> np.ndarray:
        """Rows `start` to `end` (exclusive) of an array.

        Raises:
            UserError: an unknown key, or damaged data.
        """
        self._layout(key)
        return self._rows(key, start, end)

    def read_at(self, key: str, rows: np.ndarray) -> np.ndarray:
        """The rows of an array at these places (int64 [n], rising).

        Raises:
            UserError: an unknown key, or damaged data.
        """
        runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
        return np.concatenate([self.read_rows(key, int(run[0]), int(run[-1]) + 1) for run in runs])

    def statistics(self, keys: Iterable[str]) -> dict[str, Statistics]:
        """Minimum, maximum, mean and population deviation of each element; a camera's per colour channel.

        Raises:
            UserError: an unknown key, or damaged data.
        """
        results = {}
        for key in keys:
            layout = self._layout(key)
            stream = StreamingStatistics()
            for start in range(0, self.total_steps, layout.shard_rows):
                block = self._rows(key, start, min(start + layout.shard_rows, self.total_steps))
                stream.add(block.reshape(-1, *layout.row_shape[-1:] or (1,)))
            results[key] = stream.result()
        return results

    def content_hash(self) -> str:
        """sha256 over the task's name and what it shows of the data; chunks and compression do not enter.

        Reads all of that, the first time.
        """
        return self._content_hash

    @cached_property
    def _content_hash(self) -> str:
        digest = hashlib.sha256(json.dumps([self.spec.task, self.episode_ends.tolist()]).encode())
        for array in (self._state, self._action, *self._images.values()):
            for block in array.blocks():
                digest.update(np.ascontiguousarray(block, "<f4").data)
        return digest.hexdigest()

    @property
    def _layouts(self) -> dict[str, ArrayLayout]:
        return array_layouts(self.spec, pusht_board.STATE_SIZE)

    def _layout(self, key: str) -> ArrayLayout:
        if key not in self._layouts:
            remedy = nearest(key, self._layouts)
            raise UserError(expected=f"the name of an array of {self.path}", found=f"'{key}'", remedy=remedy)
        return self._layouts[key]

    def _rows(self, key: str, start: int, end: int) -> np.ndarray:
        """Rows of one array of the layout, in its type."""
        kind, _, name = key.partition("/")
        if kind == "state":
            return pusht_board.state_vectors(self.spec.task, self._state.read(start, end))[name]
        if kind == "image":
            return np.clip(np.rint(self._images[name].read(start, end)), 0, 255).astype(np.uint8)
        if kind in ("action", "executed"):
            return self._action.read(start, end).astype(np.float32)
        if kind == "physics":
            return self._state.read(start, end).astype(np.float64)
        if kind == "time_s":
            return self._steps_into_episode(start, end) * self.spec.dt_s
        covered = self._coverage_after(start, end)
        if kind == "success":
            return covered >= pusht_board.SUCCESS_COVERAGE
        return np.array([pusht_board.graded_reward(share) for share in covered], np.float32)

    def _steps_into_episode(self, start: int, end: int) -> np.ndarray:
        rows = np.arange(start, end)
        firsts = np.concatenate([[0], self.episode_ends[:-1]])
        return rows - firsts[np.searchsorted(self.episode_ends, rows, side="right")]

    def _coverage_after(self, start: int, end: int) -> np.ndarray:
        """Of the goal, after each row's action: float64 [end - start]."""
        states = self._state.read(start, min(end + 1, self.total_steps))
        covered = np.array([pusht_board.coverage(state[2:]) for state in states])
        rows = np.arange(start, end)
        is_last = np.isin(rows + 1, self.episode_ends)
        return covered[rows + ~is_last - start]


def _recorded_cameras(path: Path) -> list[str]:
    return [pusht_board.CAMERA] if (path / "data" / "img" / ".zarray").is_file() else []


def _image_size(path: Path) -> int:
    return ZarrV2Array(path, "data/img", "fu", (None, None, 3)).row_shape[0]
