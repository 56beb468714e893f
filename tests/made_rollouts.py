"""Rollouts whose poses, chunks and images are known, and what a Rerun recording holds, read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rerun.chunk import RrdReader

from embodied.replay.rollout_file import SavedRollout, save_rollout
from embodied.types import ActionSpec, Episode, Geom, Rollout, Scene, StateSpec, TaskSpec

SPEC = TaskSpec(
    task="test/replay",
    state=(StateSpec("tool", ("x", "y", "z"), "m"),),
    cameras=(),
    action=ActionSpec(
        elements=("x", "y", "z", "gripper"),
        units=("0.05 m", "5 cm", "50mm", "1 closes, -1 opens"),
        low=(-1.0,) * 4,
        high=(1.0,) * 4,
        binary=(False, False, False, True),
        representation="delta",
        rotation="none",
    ),
    control_hz=20.0,
    horizon=30,
)
STEPS, AHEAD, PREVIEWED = 30, 4, 6
TOOL = 2
STILL = (1.0, 0.0, 0.0, 0.0)


def make_geom(body: int, kind: str, **changes) -> Geom:
    fields = {"size": (0.1, 0.2, 0.3), "position": (0.1, 0.0, 0.7), "quaternion": STILL, "rgba": (0.1, 0.5, 0.9, 1.0)}
    return Geom(body=body, name=f"{kind} of {body}", kind=kind, **{**fields, **changes})


def make_scene() -> Scene:
    generator = np.random.default_rng(3)
    distinct = generator.normal(size=(40, 3)).astype(np.float32)
    distinct[5, 1] = -0.0
    vertices = distinct[generator.integers(0, 40, 90)]  # corners repeated, as model files do
    faces = generator.integers(0, 90, (70, 3)).astype(np.uint32)
    kinds = ("box", "sphere", "ellipsoid", "cylinder", "capsule")
    return Scene(
        bodies=("world", "arm link/1", "tool", ""),
        geoms=(
            make_geom(0, "plane", size=(3.0, 3.0, 0.1)),
            make_geom(0, "box", size=(0.01, 1.5, 1.5)),
            *(make_geom(3, kind) for kind in kinds),
            make_geom(1, "mesh", vertices=vertices, faces=faces),
            make_geom(TOOL, "mesh", vertices=vertices.copy(), faces=faces.copy()),
        ),
        tool=TOOL,
    )


def _poses(executed: np.ndarray) -> np.ndarray:
    """The tool moves exactly as commanded; another body turns; the rest stand still."""
    poses = np.tile(np.array([0, 0, 0, *STILL], np.float32), (len(executed), 4, 1))
    moved = np.cumsum(executed[:, :3] * 0.05, axis=0)
    poses[:, TOOL, :3] = np.array([0.3, -0.2, 0.9]) + np.concatenate([np.zeros((1, 3)), moved[:-1]])
    angle = np.linspace(0.0, 1.0, len(executed))
    poses[:, 1, 3:] = np.stack([np.cos(angle), 0 * angle, np.sin(angle), 0 * angle], axis=1)
    return poses


def make_saved_rollout(previewed: int = PREVIEWED, images: bool = False, seed: int = 100007) -> SavedRollout:
    generator = np.random.default_rng(seed)
    executed = generator.uniform(-1, 1, (STEPS, 4)).astype(np.float32)
    starts = np.arange(0, STEPS, AHEAD)
    padded = np.concatenate([executed, np.zeros((AHEAD, 4), np.float32)])
    chunks = len(starts)
    camera = {"front/left": generator.integers(0, 255, (STEPS, 24, 32, 3)).astype(np.uint8)} if images else {}
    episode = Episode(
        task=SPEC.task,
        seed=seed,
        state={"tool": generator.normal(size=(STEPS, 3)).astype(np.float32)},
        images=camera,
        action=(executed * 0.9).astype(np.float32),
        executed=executed,
        reward=np.linspace(0, 1, STEPS).astype(np.float32),
        success=np.arange(STEPS) >= 20,
        time_s=np.arange(STEPS) / 20,
        physics=generator.normal(size=(STEPS, 5)),
        instruction="lift the cube",
        provenance={"policy": "sdp", "nested": [1, {"k": None}]},
    )
    rollout = Rollout(
        episode=episode,
        chunk_steps=starts.astype(np.int64),
        chunk_actions=np.stack([padded[start : start + AHEAD] for start in starts]),
        preview_actions=generator.uniform(-1, 1, (chunks, previewed, 4)).astype(np.float32),
        preview_levels=generator.uniform(0, 1, (chunks, previewed)).astype(np.float32),
        latency_ms=generator.uniform(5, 9, chunks).astype(np.float32),
        network_calls=np.full(chunks, 2),
    )
    return SavedRollout(rollout, make_scene(), _poses(executed), SPEC)


def save_to(path: Path, saved: SavedRollout) -> Path:
    return save_rollout(path, saved.rollout, saved.scene, saved.body_poses, saved.spec)


def same(mine: object, other: object) -> bool:
    if isinstance(mine, np.ndarray):
        return mine.dtype == other.dtype and mine.shape == other.shape and mine.tobytes() == other.tobytes()
    if isinstance(mine, dict):
        return list(mine) == list(other) and all(same(mine[key], other[key]) for key in mine)
    return mine == other


class RecordingReader:
    """What a recording holds, read back."""

    def __init__(self, path: Path, control_hz: float = SPEC.control_hz) -> None:
        self.path, self.control_hz = path, control_hz
        self.chunks = RrdReader(path).stream().to_chunks()

    @property
    def entities(self) -> set[str]:
        return {chunk.entity_path for chunk in self.chunks}

    def rows(self, entity: str, column: str) -> tuple[list[int], list]:
        """(steps, values) of a column over time, in order of the steps."""
        found = []
        for chunk in self.chunks:
            batch = chunk.to_record_batch()
            if chunk.entity_path == entity and not chunk.is_static and column in batch.schema.names:
                assert set(chunk.timeline_names) == {"step", "time"}
                seconds = [time.total_seconds() for time in batch.column("time").to_pylist()]
                steps = batch.column("step").to_pylist()
                assert seconds == pytest.approx([step / self.control_hz for step in steps])
                found += zip(steps, batch.column(column).to_pylist(), strict=True)
        found.sort(key=lambda row: row[0])
        return [row[0] for row in found], [row[1] for row in found]

    def static(self, entity: str) -> dict:
        values = {}
        for chunk in self.chunks:
            if chunk.entity_path == entity and chunk.is_static:
                batch = chunk.to_record_batch()
                values |= {name: batch.column(name).to_pylist()[0] for name in batch.schema.names}
        return values

    def scalars(self, entity: str) -> tuple[list[int], list[float]]:
        steps, values = self.rows(entity, "Scalars:scalars")
        return steps, [value[0] for value in values]
