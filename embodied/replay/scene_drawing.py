"""A task's geometry and its bodies' motion, logged to Rerun. No simulator and no renderer is needed.

Letters: T time, V vertices, F faces.
"""

from __future__ import annotations

import numpy as np
import rerun as rr

from embodied.replay.mesh_coding import weld
from embodied.types import Geom, Scene

WORLD = "world"
SURROUNDINGS = "surroundings"  # under a body: floor and walls, which the 3-D view leaves out
_LARGE_M = 1.0  # half size from which a piece of still geometry counts as surroundings
_STILL_M = 1e-6


def body_paths(scene: Scene) -> list[str]:
    """The entity of each body; unnamed and repeated names are told apart by their index."""
    names = [
        name if name and scene.bodies.count(name) == 1 else f"{name or 'body'}_{index}"
        for index, name in enumerate(scene.bodies)
    ]
    return [rr.new_entity_path([WORLD, "bodies", name]) for name in names]


def log_scene(recording: rr.RecordingStream, scene: Scene, body_poses: np.ndarray) -> None:
    """Log every geom once, under its body. `body_poses` (float32 [T bodies 7]) tells which bodies stand still."""
    recording.log(WORLD, rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    paths = body_paths(scene)
    for number, geom in enumerate(scene.geoms):
        parts = [paths[geom.body].removeprefix("/")]
        if is_surroundings(geom, body_poses):
            parts.append(SURROUNDINGS)
        entity = "/".join(parts) + rr.new_entity_path([f"{number}_{geom.name}" if geom.name else str(number)])
        pose = rr.Transform3D(
            translation=geom.position, quaternion=rr.Quaternion(xyzw=_xyzw(np.asarray(geom.quaternion)))
        )
        recording.log(entity.removeprefix("/"), pose, _shape(geom), static=True)


def log_poses(recording: rr.RecordingStream, scene: Scene, body_poses: np.ndarray, times: list[rr.TimeColumn]) -> None:
    """Log the pose of each body that has geometry, one row a control step. `body_poses` is float32 [T bodies 7]."""
    drawn = {geom.body for geom in scene.geoms}
    for body, path in enumerate(body_paths(scene)):
        if body in drawn:
            poses_T7 = body_poses[:, body]
            columns = rr.Transform3D.columns(translation=poses_T7[:, :3], quaternion=_xyzw(poses_T7[:, 3:]))
            recording.send_columns(path, indexes=times, columns=columns)


def is_surroundings(geom: Geom, body_poses: np.ndarray) -> bool:
    """Whether the geom is floor or wall: a plane, or something large on a body that never moves."""
    if geom.kind == "plane":
        return True
    still = np.ptp(body_poses[:, geom.body, :3], axis=0).max(initial=0.0) < _STILL_M
    return geom.kind != "mesh" and max(geom.size) >= _LARGE_M and bool(still)


def _xyzw(quaternion_wxyz: np.ndarray) -> np.ndarray:
    return np.roll(quaternion_wxyz, -1, axis=-1)


def _shape(geom: Geom) -> rr.AsComponents:
    """The geom in Rerun's terms, around the origin of its own frame."""
    color = np.asarray(geom.rgba, np.float32)
    solid = rr.components.FillMode.Solid
    x, y, z = geom.size
    if geom.kind == "mesh" and geom.vertices is not None and geom.faces is not None:
        vertices, faces = weld(geom.vertices, geom.faces)
        normals = _vertex_normals(vertices, faces)
        return rr.Mesh3D(vertex_positions=vertices, triangle_indices=faces, vertex_normals=normals, albedo_factor=color)
    if geom.kind == "box":
        return rr.Boxes3D(half_sizes=[[x, y, z]], colors=[color], fill_mode=solid)
    if geom.kind == "sphere":
        return rr.Ellipsoids3D(half_sizes=[[x, x, x]], colors=[color], fill_mode=solid)
    if geom.kind == "ellipsoid":
        return rr.Ellipsoids3D(half_sizes=[[x, y, z]], colors=[color], fill_mode=solid)
    if geom.kind == "cylinder":
        return rr.Cylinders3D(lengths=[2 * y], radii=[x], colors=[color], fill_mode=solid)
    if geom.kind == "capsule":
        # Rerun's capsule stands on its origin, MuJoCo's is centred on it.
        return rr.Capsules3D(lengths=[2 * y], radii=[x], translations=[[0, 0, -y]], colors=[color], fill_mode=solid)
    # A plane's size of 0 means without end.
    return rr.Boxes3D(half_sizes=[[x or 10.0, y or 10.0, 1e-4]], colors=[color], fill_mode=solid)


def _vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The mean normal of the faces around each vertex, weighted by their area: float32 [V 3]."""
    a, b, c = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))
    face_normals_F3 = np.cross(b - a, c - a)
    normals_V3 = np.zeros((len(vertices), 3))
    for corner in range(3):
        for axis in range(3):
            normals_V3[:, axis] += np.bincount(faces[:, corner], face_normals_F3[:, axis], len(vertices))
    return (normals_V3 / np.maximum(np.linalg.norm(normals_V3, axis=1, keepdims=True), 1e-12)).astype(np.float32)
