"""What `meta/` of a LeRobotDataset says, checked: the features, the files of each episode, the instructions.

    v3.0  meta/info.json, meta/tasks.parquet, meta/episodes/chunk-000/file-000.parquet
          data/chunk-000/file-000.parquet, videos/<key>/chunk-000/file-000.mp4: many episodes a file
    v2.1  meta/info.json, meta/tasks.jsonl, meta/episodes.jsonl
          data/chunk-000/episode_000000.parquet, videos/chunk-000/<key>/episode_000000.mp4: one episode a file

v2.0 differs from v2.1 in statistics alone, which nothing here reads. Paths that a file names itself are not followed:
only those of these layouts are.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embodied.datasets.foreign_episodes import COPY_REMEDY
from embodied.datasets.parquet_columns import opened, read_table
from embodied.errors import UserError
from embodied.types import Json

INFO = "meta/info.json"
EPISODES = "meta/episodes"
BOOKKEEPING = ("frame_index", "episode_index", "index", "task_index")  # a row's place; the time is a fact of its own
KILLED = "a recording that was killed before LeRobot's finalize() leaves this: record it again, or copy it again"
_VERSIONS = ("v3.0", "v2.1", "v2.0")
_KEY = re.compile(r"\w[\w .-]*")  # part of a path where it names a video
_NUMBERS = {"bool", "float16", "float32", "float64"}
_NUMBERS |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_PATHS = {
    "v3": {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    },
    "v2": {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    },
}


@dataclass(frozen=True)
class Feature:
    """One feature of a frame."""

    key: str  # "observation.state", "action", ...
    dtype: str  # numpy's name, "image", "video", or another that holds no numbers
    row_shape: tuple[int, ...]  # of images: [h w 3]
    elements: tuple[str, ...]  # a name an element of a vector; () where the file gives none
    is_depth: bool

    @property
    def holds_images(self) -> bool:
        return self.dtype in ("image", "video") and not self.is_depth

    @property
    def holds_numbers(self) -> bool:
        return self.dtype in _NUMBERS

    def __str__(self) -> str:
        kind = f"depth {self.dtype}" if self.is_depth else self.dtype
        return f"{self.key} ({kind} {['T', *self.row_shape]})".replace("'", "")


@dataclass(frozen=True)
class EpisodeFiles:
    """Where one episode lies."""

    length: int
    data: Path
    first_row: int  # in that file
    videos: dict[str, tuple[Path, float]]  # by feature: the file, and where in it the episode begins, in s
    instructions: tuple[str, ...]  # as the list of episodes has them; frames have the last word


@dataclass(frozen=True)
class LeRobotMetadata:
    """What is known of a dataset before a frame of it is read."""

    version: str
    control_hz: float
    robot_type: str | None
    features: dict[str, Feature]
    episodes: tuple[EpisodeFiles, ...]
    instructions: dict[int, str]  # by task_index


def read_metadata(path: Path) -> LeRobotMetadata:
    """The metadata of the dataset in a folder.

    Raises:
        UserError: a version that is not known, facts that are missing or contradict each other, or a file that is
            missing or cut off. Nothing is ever asked of the hub.
    """
    info = _read_info(path)
    version = info["codebase_version"]
    features = {key: _feature(path, key, value) for key, value in info["features"].items()}
    read = _episodes_v3 if version == "v3.0" else _episodes_v2
    episodes = tuple(read(path, info, [key for key, feature in features.items() if feature.dtype == "video"]))
    _check_totals(path, info, episodes)
    _check_files(path, episodes)
    return LeRobotMetadata(
        version=version,
        control_hz=float(info["fps"]),
        robot_type=info.get("robot_type") if isinstance(info.get("robot_type"), str) else None,
        features=features,
        episodes=episodes,
        instructions=_instructions_v3(path) if version == "v3.0" else _instructions_v2(path),
    )


def _bad(path: Path, expected: str, found: str, remedy: str = COPY_REMEDY) -> UserError:
    return UserError(expected=f"{expected} in {path}", found=found, remedy=remedy)


def _read_info(path: Path) -> Json:
    file = path / INFO
    try:
        info = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise _bad(file, "a JSON object", str(error)) from error
    if not isinstance(info, dict):
        raise _bad(file, "a JSON object", "something else")
    version = info.get("codebase_version")
    if version not in _VERSIONS:
        raise _bad(
            file,
            f"a codebase_version that is known ({', '.join(_VERSIONS)})",
            f"{version!r}",
            "convert the dataset to v3.0 with LeRobot's own scripts first",
        )
    fps = info.get("fps")
    if fps is None or not _is_number(fps) or not fps > 0:
        raise _bad(file, "frames a second, a number above 0, as fps", f"{fps!r}", "correct it there")
    if not isinstance(info.get("features"), dict) or not info["features"]:
        raise _bad(file, "features by name", "none")
    for name, known in _PATHS[version[:2]].items():
        given = info.get(name, known)
        if given not in (known, None):
            raise _bad(file, f"{name} '{known}'", f"'{given}'", "name the files as LeRobot does, and correct it there")
    return info


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _feature(path: Path, key: str, value: Any) -> Feature:
    if not _KEY.fullmatch(key):
        raise _bad(path / INFO, "features named by letters, digits, '.', '-' and spaces", f"{key!r}", "rename it")
    value = value if isinstance(value, dict) else {}
    dtype, shape = value.get("dtype"), value.get("shape")
    is_shape = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    if not isinstance(dtype, str) or not is_shape:
        raise _bad(
            path / INFO, f"a dtype and a shape of feature '{key}'", f"dtype {dtype!r}, shape {shape!r}", "correct them"
        )
    assert isinstance(shape, list)
    names = value.get("names")
    if dtype in ("image", "video") and len(shape) == 3 and _first_is_channels(names):
        shape = [*shape[1:], shape[0]]
    about = {**(value.get("video_info") or {}), **(value.get("info") or {})}
    return Feature(
        key=key,
        dtype=dtype,
        row_shape=tuple(shape),
        elements=_elements(names, math.prod(shape)) if dtype in _NUMBERS else (),
        is_depth=bool(about.get("is_depth_map") or about.get("video.is_depth_map")),
    )


def _first_is_channels(names: Any) -> bool:
    return isinstance(names, list) and bool(names) and names[0] in ("channel", "channels")


def _elements(names: Any, size: int) -> tuple[str, ...]:
    """The names of a vector's elements, in whichever of its forms a file gives them; () where it does not."""
    if isinstance(names, dict) and len(names) == 1 and isinstance(next(iter(names.values())), list):
        names = next(iter(names.values()))  # {"motors": ["shoulder", ...]}
    elif isinstance(names, dict) and sorted(names.values(), key=str) == sorted(range(len(names)), key=str):
        names = sorted(names, key=names.__getitem__)  # {"x": 0, "y": 1}
    is_one_each = isinstance(names, list) and len(names) == size and all(isinstance(name, str) for name in names)
    return tuple(names) if is_one_each and len(set(names)) == size else ()


def _episodes_v3(path: Path, info: Json, video_keys: list[str]) -> Iterator[EpisodeFiles]:
    files = sorted((path / EPISODES).glob("chunk-*/file-*.parquet"))
    if not files:
        raise _bad(path, f"the list of episodes, {EPISODES}/chunk-*/file-*.parquet", "none", KILLED)
    places = ["data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"]
    starts = [f"videos/{key}/{name}" for key in video_keys for name in ("chunk_index", "file_index", "from_timestamp")]
    required = ["episode_index", "length", *places, *starts]
    rows = [row for file in files for row in read_table(file, required, optional=["tasks"]).to_pylist()]
    rows.sort(key=lambda row: row["episode_index"])
    _check_numbering(path / EPISODES, [row["episode_index"] for row in rows])
    for row in rows:
        _check_row(path / EPISODES, row, required)
    first_rows = _first_rows(rows)
    for row in rows:
        data = path / _PATHS["v3"]["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        videos = {
            key: (
                path
                / _PATHS["v3"]["video_path"].format(
                    video_key=key,
                    chunk_index=row[f"videos/{key}/chunk_index"],
                    file_index=row[f"videos/{key}/file_index"],
                ),
                float(row[f"videos/{key}/from_timestamp"]),
            )
            for key in video_keys
        }
        yield EpisodeFiles(row["length"], data, first_rows[row["episode_index"]], videos, _words(row.get("tasks")))


def _check_row(where: Path, row: Json, required: list[str]) -> None:
    episode = row["episode_index"]
    for name in required:
        value = row[name]
        is_fit = _is_number(value) if name.endswith("timestamp") else type(value) is int
        if not is_fit or value < 0:
            raise _bad(where, f"a number of 0 or more as {name} of episode {episode}", f"{value!r}")
    length = row["dataset_to_index"] - row["dataset_from_index"]
    if length != row["length"] or not length:
        raise _bad(
            where,
            f"rows of episode {episode} as many as its length, and at least one",
            f"rows {row['dataset_from_index']} to {row['dataset_to_index']}, length {row['length']}",
        )


def _first_rows(rows: list[Json]) -> dict[int, int]:
    """Episode -> its first row within its file, where episodes lie in the order of the whole dataset's rows."""
    first_rows: dict[int, int] = {}
    ends: dict[tuple[int, int], int] = {}
    for row in sorted(rows, key=lambda row: row["dataset_from_index"]):
        file = (row["data/chunk_index"], row["data/file_index"])
        first_rows[row["episode_index"]] = ends.get(file, 0)
        ends[file] = first_rows[row["episode_index"]] + row["length"]
    return first_rows


def _episodes_v2(path: Path, info: Json, video_keys: list[str]) -> Iterator[EpisodeFiles]:
    file = path / "meta" / "episodes.jsonl"
    chunk_size = info.get("chunks_size", 1000)
    if type(chunk_size) is not int or chunk_size < 1:
        raise _bad(path / INFO, "episodes a folder, at least 1, as chunks_size", f"{chunk_size!r}", "correct it")
    rows = sorted(_json_lines(file, ("episode_index", "length")), key=lambda row: row["episode_index"])
    _check_numbering(file, [row["episode_index"] for row in rows])
    for row in rows:
        if row["length"] < 1:
            raise _bad(file, f"at least one step of episode {row['episode_index']}", f"length {row['length']}")
        place = {"episode_index": row["episode_index"], "episode_chunk": row["episode_index"] // chunk_size}
        data = path / _PATHS["v2"]["data_path"].format(**place)
        videos = {key: (path / _PATHS["v2"]["video_path"].format(video_key=key, **place), 0.0) for key in video_keys}
        yield EpisodeFiles(row["length"], data, 0, videos, _words(row.get("tasks")))


def _json_lines(file: Path, whole_numbers: tuple[str, ...]) -> list[Json]:
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise _bad(file, "a JSON object a line", str(error)) from error
    for row in rows:
        if not isinstance(row, dict) or any(type(row.get(name)) is not int for name in whole_numbers):
            raise _bad(file, f"whole numbers as {' and '.join(whole_numbers)} of each line", json.dumps(row)[:80])
    return rows


def _words(tasks: Any) -> tuple[str, ...]:
    return tuple(task for task in tasks if isinstance(task, str)) if isinstance(tasks, list) else ()


def _check_numbering(where: Path, numbers: list[Any]) -> None:
    if not numbers:
        raise _bad(where, "at least one episode", "none", "record some first")
    for expected, found in enumerate(numbers):
        if found != expected:
            raise _bad(where, f"episodes 0 to {len(numbers) - 1}, each once", f"{found} in the place of {expected}")


def _instructions_v3(path: Path) -> dict[int, str]:
    file = path / "meta" / "tasks.parquet"
    # pandas calls an index without a name so.
    table = read_table(file, ["task_index"], optional=["task", "__index_level_0__"])
    texts = [name for name in table.column_names if name != "task_index"]
    if not texts:
        raise _bad(file, "the instructions in a column 'task'", ", ".join(table.column_names))
    return _by_number(file, zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True))


def _instructions_v2(path: Path) -> dict[int, str]:
    file = path / "meta" / "tasks.jsonl"
    return _by_number(file, ((row["task_index"], row.get("task")) for row in _json_lines(file, ("task_index",))))


def _by_number(file: Path, pairs: Iterable[tuple[Any, Any]]) -> dict[int, str]:
    instructions: dict[int, str] = {}
    for number, text in pairs:
        if type(number) is not int or not isinstance(text, str) or number in instructions:
            raise _bad(file, "a number of its own and a text for each task", f"{number!r}: {text!r}")
        instructions[number] = text
    return instructions


def _check_totals(path: Path, info: Json, episodes: tuple[EpisodeFiles, ...]) -> None:
    found = {"total_episodes": len(episodes), "total_frames": sum(episode.length for episode in episodes)}
    for name, count in found.items():
        if name in info and info[name] != count:
            raise _bad(
                path,
                f"{info[name]!r} as {name}, which {INFO} says",
                f"{count} in the list of episodes",
                KILLED if name == "total_episodes" else COPY_REMEDY,
            )


def _check_files(path: Path, episodes: tuple[EpisodeFiles, ...]) -> None:
    """Every file is there, and those of rows are whole and as long as their episodes together."""
    rows: dict[Path, int] = {}
    for episode in episodes:
        rows[episode.data] = rows.get(episode.data, 0) + episode.length
    videos = {file: key for episode in episodes for key, (file, _) in episode.videos.items()}
    for file in itertools.chain(rows, videos):
        if not file.is_file():
            what = f"the video of {videos[file]}" if file in videos else "the rows of episodes"
            raise _bad(path, f"{what}, {file.relative_to(path)}", "no such file", "download or copy the whole dataset")
    for file, expected in rows.items():
        with opened(file) as data:
            if data.metadata.num_rows != expected:
                raise _bad(file, f"{expected} rows, as the list of episodes says", str(data.metadata.num_rows))
