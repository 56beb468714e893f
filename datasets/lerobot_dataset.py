"""LeRobotDataset, read: v3.0 and v2.1, with images in parquet or in video. Both layouts: `lerobot_metadata`.

observation.state, observation.<name>    state vectors "state", "<name>"
observation.images.<camera>              images of "<camera>"
action, next.reward, next.success        action, reward, success
timestamp                                time_s
meta/embodied.json                       this program's record

An episode is read at a time, and of each file a batch of rows or a frame.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from embodied.datasets.foreign_episodes import (
    COPY_REMEDY,
    RECORD,
    Column,
    Facts,
    Stated,
    by_shape,
    checked_record,
)
from embodied.datasets.foreign_import import import_episodes
from embodied.datasets.lerobot_hub import dataset_name
from embodied.datasets.lerobot_metadata import BOOKKEEPING, INFO, Feature, read_metadata
from embodied.datasets.parquet_columns import ColumnReader, as_numbers
from embodied.datasets.video_frames import VideoReader, decoded_image
from embodied.errors import UserError
from embodied.types import Json, TaskSpec

FORMAT = "lerobot"
RECORD_FILE = f"meta/{RECORD}.json"
# State vectors of this program lie side by side in one feature: "observation.state/<name>" is such a part.
STATE = "observation.state"
PARTS = f"{STATE}/"
DONE = "next.done"
_PACKAGES = ("pyarrow", "pandas", "datasets", "av")
_HOLDS = {"action": "action", "next.reward": "reward", "next.success": "success", "timestamp": "time_s"}
_BATCH_BYTES = 2**20  # decoded, of a column
_BATCH_ROWS = 4096


def is_lerobot(path: Path) -> bool:
    """Whether a LeRobotDataset may be at `path`, as far as names tell."""
    return (path / INFO).is_file()


def require_lerobot() -> None:
    """Raises:
    UserError: what LeRobot reads and writes its datasets with is not installed.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            expected="the packages with which LeRobot keeps datasets",
            found=f"no {', no '.join(missing)}",
            remedy="pip install 'embodied-policies[lerobot]'",
        )


def import_lerobot(path: str | Path, store_path: str | Path, stated: Stated | None = None) -> list[str]:
    """Make an episode store of a LeRobotDataset.

    Returns:
        what was left out, rounded or made up, in words.

    Raises:
        UserError: see `import_episodes`; a version that is not known; files that are missing, cut off, or contradict
            each other; LeRobot's packages are not installed.
    """
    require_lerobot()
    with closing(LeRobotFolder(Path(path))) as data:
        return import_episodes(data, store_path, stated or Stated())


class LeRobotFolder:
    """A LeRobotDataset opened for reading (`ForeignEpisodes`)."""

    format = FORMAT

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metadata = read_metadata(path)
        self._record = self._read_record()
        self.lengths = tuple(episode.length for episode in self._metadata.episodes)
        self._slices: dict[str, slice] = {}  # of columns that are a part of a feature
        self.columns = tuple(self._own_columns() if self._record else self._foreign_columns())
        # One for each use of a feature: within an episode, each use reads it from the start on.
        self._rows: dict[str, ColumnReader] = {}
        self._videos: dict[str, VideoReader] = {}
        name, provenance = dataset_name(path)
        self.facts = Facts(
            task=f"imported/{name}".lower(),
            control_hz=self._metadata.control_hz,
            provenance={**provenance, "version": self._metadata.version, "robot_type": self._metadata.robot_type},
            record=self._record,
            left_out=() if self._record else tuple(self._left_out()),
        )

    def label(self, index: int) -> str:
        return f"episode {index}"

    def read(self, index: int, column: Column) -> np.ndarray:
        feature = self._metadata.features[column.key.partition("/")[0]]
        if feature.dtype == "video":
            return self._frames(index, feature)
        if feature.dtype == "image":
            return self._images(index, feature)
        values = self._numbers(index, feature.key, feature.row_shape, column.key)
        return values[:, self._slices[column.key]] if column.key in self._slices else values

    def details(self, index: int) -> Json:
        self._check_rows(index)
        if self._record:
            return self._record["episodes"][index]
        numbers = self._numbers(index, "task_index", ())
        instructions = [self._instruction(index, int(number)) for number in dict.fromkeys(numbers.tolist())]
        provenance: Json = {"episode_index": index}
        if len(instructions) > 1:
            provenance["instructions"] = instructions
        return {"instruction": instructions[0], "provenance": provenance}

    def close(self) -> None:
        """Let go of every file."""
        for reader in (*self._rows.values(), *self._videos.values()):
            reader.close()

    def _instruction(self, index: int, number: int) -> str:
        if number not in self._metadata.instructions:
            raise self._bad(
                f"a task_index of meta/tasks in {self.label(index)}",
                f"{number}; there are " + ", ".join(map(str, self._metadata.instructions)),
            )
        return self._metadata.instructions[number]

    def _check_rows(self, index: int) -> None:
        """The rows are the episode's own, in their order."""
        numbers = self._numbers(index, "episode_index", ())
        steps = self._numbers(index, "frame_index", ())
        if (numbers != index).any() or (steps != np.arange(len(steps))).any():
            step = int(np.argmax((numbers != index) | (steps != np.arange(len(steps)))))
            raise self._bad(
                f"the steps 0 to {len(steps) - 1} of {self.label(index)} in {self._metadata.episodes[index].data}",
                f"episode_index {numbers[step]} and frame_index {steps[step]} as step {step}",
            )

    def _numbers(self, index: int, key: str, row_shape: tuple[int, ...], reader: str | None = None) -> np.ndarray:
        """Numbers of one episode: [length, *row_shape]."""
        row_bytes = 8 * math.prod(row_shape)
        return self._cells(index, key, reader or key, row_bytes, lambda values: as_numbers(values, row_shape))

    def _frames(self, index: int, feature: Feature) -> np.ndarray:
        file, start_s = self._metadata.episodes[index].videos[feature.key]
        times_s = start_s + self._numbers(index, "timestamp", (), f"{feature.key} timestamp").astype(np.float64)
        if feature.key not in self._videos:
            self._videos[feature.key] = VideoReader(feature.row_shape, self._metadata.control_hz)
        return self._videos[feature.key].frames(file, times_s.tolist())

    def _images(self, index: int, feature: Feature) -> np.ndarray:
        import pyarrow as pa

        def decoded(values: pa.Array) -> np.ndarray:
            if not isinstance(values, pa.StructArray) or values.type.get_field_index("bytes") < 0:
                raise ValueError(f"values of type {values.type}")
            images = [decoded_image(content.as_py(), feature.row_shape) for content in values.field("bytes")]
            return np.stack(images)

        return self._cells(index, feature.key, feature.key, math.prod(feature.row_shape), decoded)

    def _cells(
        self, index: int, key: str, reader: str, row_bytes: int, decode: Callable[..., np.ndarray]
    ) -> np.ndarray:
        if reader not in self._rows:
            self._rows[reader] = ColumnReader(key, max(1, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes)))
        episode = self._metadata.episodes[index]
        stop = episode.first_row + episode.length
        parts = []
        for values in self._rows[reader].rows(episode.data, episode.first_row, stop):
            try:
                parts.append(decode(values))
            except ValueError as error:
                raise self._bad(
                    f"{self._described(key)} in {self.label(index)}", f"{error} (in {episode.data})"
                ) from error
        return np.concatenate(parts)

    def _described(self, key: str) -> str:
        return str(self._metadata.features.get(key, key))

    def _bad(self, expected: str, found: str, remedy: str = COPY_REMEDY) -> UserError:
        return UserError(expected=f"{expected} of {self.path}", found=found, remedy=remedy)

    def _read_record(self) -> Json | None:
        file = self.path / RECORD_FILE
        if not file.is_file():
            return None
        try:
            record = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise self._bad(f"this program's record, {RECORD_FILE}", str(error)) from error
        return checked_record(record, self.path, len(self._metadata.episodes))

    def _own_columns(self) -> list[Column]:
        """What this program wrote, each under the key that the record gives it."""
        assert self._record is not None
        spec = TaskSpec.from_json(self._record["spec"])
        sizes = {f"state/{state.name}": state.size for state in spec.state}
        columns, start = [], 0
        for key, holds in self._record["arrays"].items():
            feature = self._metadata.features.get(key.partition("/")[0])
            if feature is None:
                raise self._bad(f"a feature '{key.partition('/')[0]}', as its record says", "none")
            row_shape = feature.row_shape
            if key.startswith(PARTS):
                row_shape = (sizes.get(holds, 1),)
                self._slices[key] = slice(start, start + row_shape[0])
                start += row_shape[0]
            columns.append(Column(key, _dtype(feature), row_shape, holds))
        if start and self._metadata.features[STATE].row_shape != (start,):
            raise self._bad(
                f"{start} values of {STATE}, as its record says", str(list(self._metadata.features[STATE].row_shape))
            )
        return columns

    def _foreign_columns(self) -> list[Column]:
        return [
            Column(feature.key, _dtype(feature), feature.row_shape, _holds(feature), _elements(feature))
            for feature in self._metadata.features.values()
            if (feature.holds_images or feature.holds_numbers) and feature.key not in BOOKKEEPING
        ]

    def _left_out(self) -> list[str]:
        features = self._metadata.features.values()
        notes = [str(feature) for feature in features if not (feature.holds_images or feature.holds_numbers)]
        several = [i for i, episode in enumerate(self._metadata.episodes) if len(episode.instructions) > 1]
        if several:
            notes.append(
                f"instructions after the first in {len(several)} episodes (the first such is {self.label(several[0])}; "
                "kept in the episodes' provenance)"
            )
        return notes


def _dtype(feature: Feature) -> np.dtype:
    return np.dtype(np.uint8 if feature.holds_images else feature.dtype)


def _elements(feature: Feature) -> tuple[str, ...]:
    """A name for each value of a vector, numbers where the file gives none."""
    if not feature.holds_numbers:
        return ()
    name = feature.key.removeprefix("observation.")
    return feature.elements or tuple(f"{name}_{index}" for index in range(math.prod(feature.row_shape)))


def _holds(feature: Feature) -> str | None:
    if feature.key in _HOLDS:
        is_scalar = math.prod(feature.row_shape) == 1
        return _HOLDS[feature.key] if is_scalar or feature.key == "action" else None
    name = feature.key.removeprefix("observation.")
    if name == feature.key:
        return None
    holds = by_shape(name.removeprefix("images.") if feature.holds_images else name, feature.row_shape)
    return holds if holds is None or holds.startswith("image/") == feature.holds_images else None
