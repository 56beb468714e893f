"""LeRobotDatasets that tests make: with LeRobot's own writer, and of the older version, which it writes no longer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets import LeRobotDataset
from made_episodes import SPEC, make_episode

from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.lerobot_export import scheduling_kept
from embodied.types import CameraSpec, Json

FPS = 10
LENGTHS = (5, 8, 6)
SIZE = (48, 64)  # of an image, [h w]
MOTORS = ["shoulder", "elbow", "gripper"]
# As robosuite's tasks are seen: two cameras, of different sizes.
TWO_CAMERAS = dataclasses.replace(SPEC, cameras=(CameraSpec("front", 48, 40), CameraSpec("wrist", 36, 36)))


def two_camera_store(path: Path, episodes: int = 4) -> EpisodeStore:
    with EpisodeStore.create(path, TWO_CAMERAS, expected_episodes=episodes, provenance={"collected": "here"}) as store:
        for seed in range(episodes):
            store.commit(make_episode(seed, spec=TWO_CAMERAS))
    return EpisodeStore.open(path)


def picture(episode: int, step: int) -> np.ndarray:
    """Smooth, so that a video keeps it nearly, and different at each step: uint8 [h w 3]."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([rows * 2 + step * 9, columns + episode * 40, rows + columns], axis=-1).astype(np.uint8)


def values(episode: int, step: int) -> dict[str, np.ndarray]:
    """The numbers of a frame."""
    random = np.random.default_rng([episode, step])
    return {
        "observation.state": random.normal(size=3).astype(np.float32),
        "observation.environment_state": random.normal(size=2).astype(np.float32),
        "action": random.normal(size=3).astype(np.float32),
        "next.reward": np.array([step], np.float32),
        "next.success": np.array([step > 3]),
        "next.done": np.array([step == LENGTHS[episode] - 1]),
    }


def instruction(episode: int) -> str:
    return "push the block" if episode < 2 else "push it back"


def features(kind: str) -> Json:
    """LeRobot's, with cameras as "image" or "video"."""
    vector, flag = {"dtype": "float32", "names": None}, {"dtype": "bool", "shape": (1,), "names": None}
    return {
        "observation.state": {**vector, "shape": (3,), "names": {"motors": MOTORS}},
        "observation.environment_state": {**vector, "shape": (2,)},
        "action": {**vector, "shape": (3,), "names": MOTORS},
        "next.reward": {**vector, "shape": (1,)},
        "next.success": flag,
        "next.done": flag,
        "observation.images.top": {"dtype": kind, "shape": (*SIZE, 3), "names": ["height", "width", "channels"]},
    }


def write_v3(path: Path, kind: str = "image", file_mb: float | None = None) -> Path:
    """As a recording session of LeRobot's writes it; a file holds as many episodes as fit into `file_mb`."""
    dataset = LeRobotDataset.create(
        "local/recorded",
        fps=FPS,
        features=features(kind),
        root=path,
        robot_type="so100",
        use_videos=kind == "video",
        video_backend="pyav",
        data_files_size_in_mb=file_mb,
        video_files_size_in_mb=file_mb,
    )
    for episode, length in enumerate(LENGTHS):
        for step in range(length):
            frame = {**values(episode, step), "observation.images.top": picture(episode, step)}
            dataset.add_frame({**frame, "task": instruction(episode)})
        with scheduling_kept():
            dataset.save_episode(parallel_encoding=False)
    dataset.finalize()
    return path


def write_v21(path: Path, version: str = "v2.1") -> Path:
    """By nothing but the layout's description: a file an episode, lists of episodes and tasks as lines of JSON."""
    described = features("video")
    bookkeeping = {"timestamp": "float32", **dict.fromkeys(("frame_index", "episode_index", "index"), "int64")}
    bookkeeping["task_index"] = "int64"
    described |= {key: {"dtype": dtype, "shape": (1,), "names": None} for key, dtype in bookkeeping.items()}
    info = {
        **{"codebase_version": version, "fps": FPS, "robot_type": "so100", "chunks_size": 2, "features": described},
        **{"total_episodes": len(LENGTHS), "total_frames": sum(LENGTHS), "total_tasks": 2},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (path / "meta").mkdir(parents=True)
    (path / "meta" / "info.json").write_text(json.dumps(info))
    tasks = ["push the block", "push it back"]
    _write_lines(path / "meta" / "tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(tasks)])
    listed = [{"episode_index": e, "tasks": [instruction(e)], "length": length} for e, length in enumerate(LENGTHS)]
    _write_lines(path / "meta" / "episodes.jsonl", listed)
    first = 0
    for episode, length in enumerate(LENGTHS):
        rows = [values(episode, step) for step in range(length)]
        columns = {key: [row[key] if len(row[key]) > 1 else row[key][0] for row in rows] for key in rows[0]}
        columns |= {
            "timestamp": np.arange(length, dtype=np.float32) / np.float32(FPS),
            **{"frame_index": np.arange(length), "episode_index": np.full(length, episode)},
            **{"index": first + np.arange(length), "task_index": np.full(length, int(episode == 2))},
        }
        first += length
        file = path / "data" / f"chunk-{episode // 2:03d}" / f"episode_{episode:06d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({key: pa.array(list(column)) for key, column in columns.items()}), file)
        video = path / "videos" / f"chunk-{episode // 2:03d}" / "observation.images.top" / f"episode_{episode:06d}.mp4"
        _write_video(video, [picture(episode, step) for step in range(length)])
    return path


def _write_lines(file: Path, rows: list[Json]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _write_video(file: Path, images: list[np.ndarray]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def edit_info(path: Path, **changes: Any) -> None:
    file = path / "meta" / "info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_table(file: Path, **columns: Any) -> None:
    """Replace columns of a parquet file; None takes one away."""
    table = pq.read_table(file)
    for name, cells in columns.items():
        place = table.column_names.index(name)
        table = table.remove_column(place) if cells is None else table.set_column(place, name, pa.array(cells))
    pq.write_table(table, file)
