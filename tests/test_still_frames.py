"""Pictures of a rollout: recorded ones as they are, others drawn from geometry and poses."""

from __future__ import annotations

import io
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from made_rollouts import STEPS, STILL, TOOL, make_geom, make_saved_rollout

from embodied.replay.rollout_file import SavedRollout
from embodied.replay.still_frames import still_frames
from embodied.types import Scene

RED = (0.9, 0.1, 0.1, 1.0)
GREEN = (0.1, 0.9, 0.1, 1.0)


def pixels(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png))[..., :3]


def where(image: np.ndarray, channel: int) -> np.ndarray:
    """Which pixels are mainly of one colour."""
    others = np.delete(image, channel, axis=-1).max(-1)
    return image[..., channel] > 2 * others


def scene_of(*geoms, poses: np.ndarray | None = None) -> SavedRollout:
    saved = make_saved_rollout()
    scene = Scene(("world", "block", "tool", "other"), geoms, tool=TOOL)
    return replace(saved, scene=scene, body_poses=saved.body_poses if poses is None else poses)


def standing() -> np.ndarray:
    return np.tile(np.array([0, 0, 0, *STILL], np.float32), (STEPS, 4, 1))


def test_recorded_images_are_shown_as_they_are():
    saved = make_saved_rollout(images=True)
    frames = still_frames(saved, 4)
    assert [frame.step for frame in frames] == [0, 10, 19, 29]
    recorded = saved.rollout.episode.images["front/left"]
    for frame in frames:
        assert np.array_equal((255 * pixels(frame.png)).round().astype(np.uint8), recorded[frame.step])


def test_every_kind_of_geometry_is_drawn():
    for kind in ("box", "sphere", "ellipsoid", "cylinder", "capsule"):
        geom = make_geom(1, kind, size=(0.05, 0.05, 0.05), position=(0, 0, 0), rgba=GREEN)
        frames = still_frames(scene_of(geom, poses=standing()), 2)
        assert len(frames) == 2 and pixels(frames[0].png).shape == (240, 320, 3)
        assert 0.02 < where(pixels(frames[0].png), 1).mean() < 0.4, kind
    mesh = make_saved_rollout().scene.geoms[-1]
    assert where(pixels(still_frames(scene_of(replace(mesh, body=1, rgba=GREEN)), 1)[0].png), 1).any()


def test_a_fine_mesh_keeps_its_outline():
    points = np.random.default_rng(0).normal(size=(5000, 3))
    points = (0.05 * points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    faces = np.arange(4998).reshape(-1, 3).astype(np.uint32)
    mesh = make_geom(1, "mesh", position=(0, 0, 0), rgba=GREEN, vertices=points, faces=faces)
    ball = make_geom(1, "sphere", size=(0.05, 0.05, 0.05), position=(0, 0, 0), rgba=GREEN)
    areas = [where(pixels(still_frames(scene_of(g, poses=standing()), 1)[0].png), 1).mean() for g in (mesh, ball)]
    assert areas[0] == pytest.approx(areas[1], rel=0.1)


def test_a_flat_mesh_is_drawn_too():
    corners = np.array([[0, 0, 0], [0.2, 0, 0], [0, 0.2, 0], [0.2, 0.2, 0]], np.float32)
    faces = np.array([[0, 1, 2], [1, 3, 2]], np.uint32)
    flat = make_geom(1, "mesh", position=(0, 0, 0), rgba=GREEN, vertices=corners, faces=faces)
    assert where(pixels(still_frames(scene_of(flat, poses=standing()), 1)[0].png), 1).mean() > 0.02


def test_what_is_nearer_to_the_eye_covers_what_lies_behind():
    """The eye looks from +x, +y and above: the small green block stands on the large one and is seen."""
    table = make_geom(0, "box", size=(0.4, 0.4, 0.02), position=(0, 0, -0.02), rgba=RED)
    block = make_geom(1, "box", size=(0.03, 0.03, 0.03), position=(0, 0, 0.03), rgba=GREEN)
    on_top = where(pixels(still_frames(scene_of(table, block, poses=standing()), 1)[0].png), 1).mean()
    alone = where(pixels(still_frames(scene_of(block, poses=standing()), 1)[0].png), 1).mean()
    assert on_top == pytest.approx(alone, rel=0.05)
    below = replace(block, position=(0, 0, -0.08))
    assert not where(pixels(still_frames(scene_of(table, below, poses=standing()), 1)[0].png), 1).any()


def test_a_body_is_drawn_where_its_pose_is():
    block = make_geom(1, "box", size=(0.03, 0.03, 0.03), position=(0, 0, 0), rgba=GREEN)
    poses = standing()
    poses[:, 1, 1] = np.linspace(-0.1, 0.1, STEPS)  # +y is right for an eye at +x
    poses[:, 1, 2] = np.linspace(0, 0.1, STEPS)
    first, last = (where(pixels(frame.png), 1) for frame in still_frames(scene_of(block, poses=poses), 2))
    (first_row, first_column), (last_row, last_column) = (np.argwhere(seen).mean(0) for seen in (first, last))
    assert last_column > first_column + 40 and last_row < first_row - 10


def test_an_object_parked_far_away_does_not_shrink_the_picture():
    block = make_geom(1, "box", size=(0.05, 0.05, 0.05), position=(0, 0, 0), rgba=GREEN)
    poses = standing()
    poses[:, 3, 0] = np.linspace(10, 11, STEPS)
    seen = [where(pixels(still_frames(scene_of(block, poses=p), 1)[0].png), 1).mean() for p in (poses, standing())]
    assert seen[0] == pytest.approx(seen[1], rel=0.01)


def test_nothing_to_draw_gives_no_pictures():
    plane = make_geom(0, "plane", size=(3.0, 3.0, 0.1))
    assert still_frames(scene_of(plane)) == [] == still_frames(scene_of())
    assert still_frames(scene_of(make_geom(1, "box", rgba=(1, 0, 0, 0)))) == []


def test_an_episode_shorter_than_the_pictures_gives_fewer():
    saved = make_saved_rollout(images=True)
    saved.rollout.episode.reward = saved.rollout.episode.reward[:2]
    for name in ("action", "executed", "success", "time_s", "physics"):
        setattr(saved.rollout.episode, name, getattr(saved.rollout.episode, name)[:2])
    assert [frame.step for frame in still_frames(saved, 4)] == [0, 1]
