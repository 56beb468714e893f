"""A LeRobotDataset v3.0 written by LeRobot itself, so that what it reads, and trains on, is its own.

observation.state           float32, all state vectors side by side
observation.images.<name>   PNG in parquet, or a video of each camera
action, next.reward, next.success, next.done
executed, time_s, physics   this program's: no name that LeRobot takes for an input of a policy
meta/embodied.json          this program's record, which LeRobot does not read
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from embodied.datasets.episode_layout import episode_arrays
from embodied.datasets.foreign_episodes import Column, details_of, exported_columns, made_whole, record_of
from embodied.datasets.lerobot_dataset import DONE, FORMAT, PARTS, RECORD_FILE, STATE, require_lerobot
from embodied.errors import UserError
from embodied.protocols import DemonstrationStore
from embodied.types import Episode, Json

SMALLEST_VIDEO = 32  # pixels a side; LeRobot's encoder (SVT-AV1) ends the whole process below it
ON_TIME_S = 1e-4  # LeRobot's own tolerance
_NAMES = {
    **{"state": PARTS, "image": "observation.images.", "action": "action", "executed": "executed"},
    **{"reward": "next.reward", "success": "next.success", "time_s": "time_s", "physics": "physics"},
}
LOST = [
    f"units, bounds, seeds, variants and provenance: kept in {RECORD_FILE}, which LeRobot does not read",
    "checksums, and attempts that were dropped",
]
VIDEO_LOST = "images to the last bit: they are compressed (AV1, LeRobot's own setting)"


def export_lerobot(store: DemonstrationStore, path: str | Path) -> list[str]:
    """Write a store's episodes with cameras as lossless images. Holds one episode.

    A store that was imported from a LeRobotDataset gets its features back, in their names, types and shapes.

    Returns:
        what the format cannot hold, in words.

    Raises:
        UserError: something is at `path`, the store is empty, its data are damaged, its control rate is no whole
            number, or LeRobot's packages are not installed.
    """
    return _export(store, Path(path), "image")


def export_lerobot_video(store: DemonstrationStore, path: str | Path) -> list[str]:
    """The same with cameras as video, as LeRobot itself records them; the images are not the same to the last bit.

    Raises:
        UserError: as `export_lerobot`, or images too small for the encoder.
    """
    for camera in store.spec.cameras:
        if min(camera.height, camera.width) < SMALLEST_VIDEO:
            raise UserError(
                expected=f"images of at least {SMALLEST_VIDEO}x{SMALLEST_VIDEO} for a video",
                found=f"{camera.height}x{camera.width} of camera '{camera.name}'",
                remedy="write images rather than video (to=lerobot)",
            )
    require_lerobot()
    import av.logging

    # Of encoder and muxer errors alone, where each would describe what it does for every video.
    os.environ.setdefault("SVT_LOG", "1")
    av.logging.set_libav_level(av.logging.ERROR)
    with scheduling_kept():
        lost = _export(store, Path(path), "video")
    return [*lost, *([VIDEO_LOST] if store.spec.cameras else [])]


@contextmanager
def scheduling_kept() -> Iterator[None]:
    """SVT-AV1 makes the thread that opens its encoder a real-time one for good, as root, and so all that it starts."""
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def _export(store: DemonstrationStore, path: Path, images: Literal["image", "video"]) -> list[str]:
    require_lerobot()
    from lerobot.datasets import LeRobotDataset
    from lerobot.utils.utils import SuppressProgressBars

    columns = list(_kept(store, exported_columns(store, FORMAT, _NAMES)))
    features = _features(store, columns, images)
    source = store.provenance.get("source", {})
    with made_whole(path) as building:
        dataset = LeRobotDataset.create(
            f"local/{path.name}",
            fps=_frames_a_second(store),
            features=features,
            root=building,
            robot_type=source.get("robot_type"),
            use_videos=images == "video",
            video_backend="pyav",
        )
        details = []
        try:
            with SuppressProgressBars():
                for index in range(len(store)):
                    episode = store.episode(index)
                    _write(dataset, episode, columns, features)
                    details.append(details_of(episode))
        finally:
            dataset.finalize()  # after an error, too: LeRobot would finish its files later, when the folder is gone
        shutil.rmtree(building / "images", ignore_errors=True)  # where LeRobot had them before they were packed
        record = {**record_of(store, columns), "episodes": details}
        (building / RECORD_FILE).write_text(json.dumps(record))
    made_up = source.get("made_up")
    return LOST + ([f"{', '.join(made_up)}: not written, nobody recorded them"] if made_up else [])


def _frames_a_second(store: DemonstrationStore) -> int:
    control_hz = store.spec.control_hz
    if not control_hz.is_integer():
        raise UserError(
            expected="a whole number of control steps a second, which is all that LeRobot's fps can be",
            found=f"{control_hz:g} Hz in {store.path}",
            remedy="convert to another format (replay_buffer or robomimic)",
        )
    return int(control_hz)


def _kept(store: DemonstrationStore, columns: Sequence[Column]) -> Iterator[Column]:
    """LeRobot writes timestamps itself; where they are not the store's, those become a feature of their own."""
    for column in columns:
        if column.key != "timestamp":
            yield column
        elif not _is_on_time(store):
            yield dataclasses.replace(column, key="time_s", dtype=np.dtype(np.float64))


def _is_on_time(store: DemonstrationStore) -> bool:
    starts = np.concatenate([[0], store.episode_ends[:-1]])
    steps = np.arange(store.total_steps) - np.repeat(starts, np.diff(store.episode_ends, prepend=0))
    return bool((np.abs(store.read("time_s") - steps / store.spec.control_hz) < ON_TIME_S).all())


def _features(store: DemonstrationStore, columns: Sequence[Column], images: Literal["image", "video"]) -> Json:
    """LeRobot's description of each feature."""
    features: Json = {}
    if any(column.key.startswith(PARTS) for column in columns):
        names = [f"{state.name}.{element}" for state in store.spec.state for element in state.elements]
        features[STATE] = {"dtype": "float32", "shape": (len(names),), "names": names}
    for column in columns:
        if column.key.startswith(PARTS):
            continue
        if str(column.holds).startswith("image/"):
            names = ["height", "width", "channels"]
            features[column.key] = {"dtype": images, "shape": column.row_shape, "names": names}
            continue
        shape = column.row_shape or (1,)
        features[column.key] = {"dtype": column.dtype.name, "shape": shape, "names": _elements(store, column)}
    features[DONE] = {"dtype": "bool", "shape": (1,), "names": None}
    return features


def _elements(store: DemonstrationStore, column: Column) -> list[str] | None:
    """Names of the values of a row."""
    if len(column.row_shape) != 1:
        return None
    kind, _, name = str(column.holds).partition("/")
    named = {f"state/{state.name}": state.elements for state in store.spec.state}
    found = store.spec.action.elements if kind in ("action", "executed") else named.get(f"{kind}/{name}", ())
    return list(found) if len(found) == column.size else None


def _write(dataset: Any, episode: Episode, columns: Sequence[Column], features: Json) -> None:
    arrays = episode_arrays(episode)
    parts = [arrays[str(column.holds)] for column in columns if column.key.startswith(PARTS)]
    rows: dict[str, np.ndarray] = {DONE: (np.arange(episode.length) == episode.length - 1)[:, None]}
    if parts:
        rows[STATE] = np.concatenate(parts, axis=1)
    for column in columns:
        if column.key in features and not str(column.holds).startswith("image/"):
            shape = features[column.key]["shape"]
            rows[column.key] = arrays[str(column.holds)].reshape(-1, *shape).astype(column.dtype)
    images = {column.key: arrays[str(column.holds)] for column in columns if str(column.holds).startswith("image/")}
    for step in range(episode.length):
        frame: Json = {key: values[step] for key, values in rows.items()}
        # Not as arrays: of an image of three rows LeRobot would take them for its colours.
        frame.update(
            {key: Image.fromarray(values[step].reshape(features[key]["shape"])) for key, values in images.items()}
        )
        dataset.add_frame({**frame, "task": episode.instruction})
    dataset.save_episode(parallel_encoding=False)
