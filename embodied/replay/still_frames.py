"""A few pictures of a rollout without the simulator: what its camera recorded, or its geometry drawn from the poses.

Drawn are convex hulls, sorted by distance: enough to see where the robot, its tool and the objects are. Recordings
(recording.py) show the geometry as it is.

Letters: T time, V vertices, F faces.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.image import imsave

from embodied.replay.rollout_file import SavedRollout
from embodied.replay.scene_drawing import is_surroundings
from embodied.types import Geom

SIZE, DPI = (3.2, 2.4), 100  # inches and dots: 320 x 240
AZIMUTH_DEG, ELEVATION_DEG = 35.0, 28.0  # where the eye stands
MARGIN_M = 0.18  # around what moves
MOVING_M = 0.01
NEAR_M = 1.0  # of the tool's path: objects parked elsewhere do not count
LARGEST_EDGE_M = 0.05  # of a face: sorting by distance puts larger ones before what lies on them
DIRECTIONS = 100  # in which a mesh keeps its outermost vertex: enough for a thumbnail
LIGHT = np.array([0.35, -0.45, 0.82])
PATH_COLOR = "#d62728"


@dataclass(frozen=True)
class StillFrame:
    """One picture."""

    step: int  # control step of the episode, from 0
    png: bytes


def still_frames(saved: SavedRollout, count: int = 4) -> list[StillFrame]:
    """Pictures at evenly spaced steps, the first and the last included; none where there is nothing to draw."""
    episode = saved.rollout.episode
    steps = np.unique(np.linspace(0, episode.length - 1, count).round().astype(int))
    if episode.images:
        rows = next(iter(episode.images.values()))
        return [StillFrame(int(t), _encode(rows[t])) for t in steps]
    pieces = _pieces(saved)
    if not pieces:
        return []
    view = _View(saved, pieces)
    return [StillFrame(int(t), view.draw(saved.body_poses, int(t))) for t in steps]


@dataclass(frozen=True)
class _Piece:
    """The hull of one geom in its body's frame."""

    body: int
    vertices: np.ndarray  # [V 3]
    faces: np.ndarray  # [F 3]
    color: np.ndarray  # rgb


def _pieces(saved: SavedRollout) -> list[_Piece]:
    pieces, hulls = [], {}
    for geom in saved.scene.geoms:
        if is_surroundings(geom, saved.body_poses) or geom.rgba[3] < 0.05:
            continue
        shape = (geom.kind, geom.size) if geom.vertices is None else id(geom.vertices)
        if shape not in hulls:
            hulls[shape] = _divided(*_hull(_points(geom)))
        vertices, faces = hulls[shape]
        placed = vertices @ _rotation(np.asarray(geom.quaternion)).T + geom.position
        pieces.append(_Piece(geom.body, placed, faces, np.asarray(geom.rgba[:3])))
    return pieces


def _hull(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces around the points; those of their bounding box where they lie in a plane."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        hull = ConvexHull(points)
    except QhullError:
        low, high = points.min(0) - 5e-4, points.max(0) + 5e-4
        corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
        points = low + corners * (high - low)
        hull = ConvexHull(points)
    return points, hull.simplices


def _divided(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same surface with every face divided in four until its edges are short."""
    small = []
    for _ in range(8):
        triangles_F33 = vertices[faces]
        edges = np.linalg.norm(triangles_F33 - np.roll(triangles_F33, 1, axis=1), axis=-1).max(1)
        small.append(triangles_F33[edges <= LARGEST_EDGE_M])
        a, b, c = (triangles_F33[edges > LARGEST_EDGE_M, corner] for corner in range(3))
        if not len(a):
            break
        ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
        large = [np.stack(corners, 1) for corners in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
        vertices = np.concatenate(large).reshape(-1, 3)
        faces = np.arange(len(vertices)).reshape(-1, 3)
    corners = np.concatenate(small).reshape(-1, 3)
    return corners, np.arange(len(corners)).reshape(-1, 3)


def _points(geom: Geom) -> np.ndarray:
    """Points whose hull is the geom, in its own frame."""
    x, y, z = geom.size
    corners = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], np.float64)
    if geom.kind == "mesh" and geom.vertices is not None:
        vertices = np.asarray(geom.vertices, np.float64)
        return vertices[np.unique(np.argmax(vertices @ _directions(DIRECTIONS).T, axis=0))]
    if geom.kind == "box":
        return corners * (x, y, z)
    if geom.kind == "cylinder":
        around = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        ring = np.stack([x * np.cos(around), x * np.sin(around), np.full(16, y)], axis=1)
        return np.concatenate([ring, ring * (1, 1, -1)])
    ball = _ball()
    if geom.kind == "capsule":
        return np.concatenate([ball * x + (0, 0, y), ball * x - (0, 0, y)])
    return ball * ((x, y, z) if geom.kind == "ellipsoid" else x)


def _ball() -> np.ndarray:
    """Points of the unit sphere."""
    around, up = np.meshgrid(np.linspace(0, 2 * np.pi, 12, endpoint=False), np.linspace(-np.pi / 2, np.pi / 2, 7))
    return np.stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)], axis=-1).reshape(-1, 3)


def _directions(count: int) -> np.ndarray:
    """Spread evenly over the unit sphere (Fibonacci's lattice): [count 3]."""
    up = 1 - (2 * np.arange(count) + 1) / count
    around = np.pi * (1 + 5**0.5) * np.arange(count)
    beside = np.sqrt(1 - up**2)
    return np.stack([beside * np.cos(around), beside * np.sin(around), up], axis=1)


class _View:
    """An eye far away, which looks at where things move."""

    def __init__(self, saved: SavedRollout, pieces: Sequence[_Piece]) -> None:
        self._pieces = pieces
        self._tool = saved.scene.tool
        positions_TB3 = saved.body_poses[..., :3]
        tool_T13 = positions_TB3[:, self._tool, None]
        near = np.linalg.norm(positions_TB3 - tool_T13, axis=-1).max(0) < NEAR_M
        moving = near & (np.ptp(positions_TB3, axis=0).max(-1) > MOVING_M)
        moving[self._tool] = True
        azimuth, elevation = np.radians(AZIMUTH_DEG), np.radians(ELEVATION_DEG)
        towards = np.array(
            [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
        )
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
        self._axes = np.stack([right, np.cross(towards, right), towards])  # right, up, towards the eye
        seen = positions_TB3[:, moving].reshape(-1, 3) @ self._axes.T
        low, high = seen.min(0)[:2] - MARGIN_M, seen.max(0)[:2] + MARGIN_M
        half = max((high - low) / np.array(SIZE)) / 2 * np.array(SIZE)
        self._low, self._high = (low + high) / 2 - half, (low + high) / 2 + half

    def draw(self, body_poses: np.ndarray, t: int) -> bytes:
        """A PNG of the scene at step t, with the tool's path up to it."""
        triangles_F33, colors_F3 = self._triangles(body_poses[t])
        seen_F33 = triangles_F33 @ self._axes.T
        inside = ((seen_F33[..., :2].max(1) > self._low) & (seen_F33[..., :2].min(1) < self._high)).all(1)
        order = np.flatnonzero(inside)[np.argsort(seen_F33[inside, :, 2].mean(1))]
        figure = Figure(figsize=SIZE, dpi=DPI)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        colors = colors_F3[order]
        faces = PolyCollection(seen_F33[order, :, :2], facecolors=colors, edgecolors=colors, lw=0.3)
        axes.add_collection(faces, autolim=False)
        path_T3 = body_poses[: t + 1, self._tool, :3] @ self._axes.T
        axes.plot(path_T3[:, 0], path_T3[:, 1], color=PATH_COLOR, linewidth=1.2, alpha=0.8)
        axes.plot(path_T3[-1:, 0], path_T3[-1:, 1], "o", color=PATH_COLOR, markersize=4)
        axes.set_xlim(self._low[0], self._high[0])
        axes.set_ylim(self._low[1], self._high[1])
        axes.set_axis_off()
        png = io.BytesIO()
        figure.savefig(png, format="png", facecolor="white", metadata={"Software": None})
        return png.getvalue()

    def _triangles(self, poses_B7: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All faces in the world, [F 3 3], and their shaded colours, [F 3]."""
        corners, colors = [], []
        for piece in self._pieces:
            pose = poses_B7[piece.body].astype(np.float64)
            world = piece.vertices @ _rotation(pose[3:]).T + pose[:3]
            triangles = world[piece.faces]
            normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
            outwards = np.sign(((triangles.mean(1) - world.mean(0)) * normals).sum(1, keepdims=True))
            normals = normals * outwards / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
            front = normals @ self._axes[2] > 0
            brightness = 0.55 + 0.45 * np.clip(normals[front] @ LIGHT, 0, 1)
            corners.append(triangles[front])
            colors.append(np.clip(brightness[:, None] * piece.color, 0, 1))
        return np.concatenate(corners), np.concatenate(colors)


def _rotation(quaternion_wxyz: np.ndarray) -> np.ndarray:
    """The rotation matrix of a quaternion, which need not have unit length."""
    w, x, y, z = quaternion_wxyz / max(float(np.linalg.norm(quaternion_wxyz)), 1e-12)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _encode(image: np.ndarray) -> bytes:
    png = io.BytesIO()
    imsave(png, np.ascontiguousarray(image), format="png", metadata={"Software": None})
    return png.getvalue()
