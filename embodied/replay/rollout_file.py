"""One rollout in one file, with the geometry and poses that draw it without the simulator.

The file is a compressed `.npz` of plain arrays, among them `header`: JSON text as bytes. Reading it never unpickles.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embodied.errors import UserError
from embodied.replay.mesh_coding import decode_faces, encode_faces, from_byte_planes, to_byte_planes, weld
from embodied.types import Episode, Geom, Json, Rollout, Scene, TaskSpec

FORMAT = "embodied rollout"
VERSION = 1
LARGEST_BYTES = 2**31  # uncompressed, of all arrays together
LARGEST_HEADER_BYTES = 2**24
_GEOM_KINDS = ("plane", "sphere", "capsule", "ellipsoid", "cylinder", "box", "mesh")
_EPISODE_ARRAYS = {"action": 2, "executed": 2, "reward": 1, "success": 1, "time_s": 1, "physics": 2}
_CHUNK_ARRAYS = {
    "chunk_steps": 1,
    "chunk_actions": 3,
    "preview_actions": 3,
    "preview_levels": 2,
    "latency_ms": 1,
    "network_calls": 1,
}


@dataclass
class SavedRollout:
    """A rollout and what draws it."""

    rollout: Rollout
    scene: Scene
    body_poses: np.ndarray  # float32 [T bodies 7], x y z (m) then w x y z
    spec: TaskSpec


def save_rollout(path: str | Path, rollout: Rollout, scene: Scene, body_poses: np.ndarray, spec: TaskSpec) -> Path:
    """Write `path` (`.npz`) whole or not at all, replacing what was there.

    Meshes are stored once however many geoms share them, and without repeated or unused vertices; the triangles and
    every array come back bit-equal. `body_poses` is float32 [T bodies 7].

    Raises:
        UserError: the poses do not fit the episode and scene, the arrays exceed 2 GiB, or the file cannot be written.
    """
    path = Path(path)
    expected_shape = (rollout.episode.length, len(scene.bodies), 7)
    if body_poses.shape != expected_shape:
        raise UserError(
            expected=f"body poses of shape {expected_shape}: steps, bodies, pose",
            found=f"shape {body_poses.shape}",
            remedy="compute them from the episode's physics with the task that made it",
        )
    scene_json, mesh_arrays = _encode_scene(scene)
    arrays = {"body_poses": np.asarray(body_poses, np.float32), **mesh_arrays}
    for name in _EPISODE_ARRAYS:
        arrays[name] = getattr(rollout.episode, name)
    for name in _CHUNK_ARRAYS:
        arrays[name] = getattr(rollout, name)
    episode = rollout.episode
    for prefix, group in (("state", episode.state), ("image", episode.images)):
        arrays.update({f"{prefix}_{number}": group[key] for number, key in enumerate(group)})
    header = {
        "format": FORMAT,
        "version": VERSION,
        "spec": spec.to_json(),
        "stages": rollout.stages,
        "scene": scene_json,
        "task": episode.task,
        "seed": int(episode.seed),
        "instruction": episode.instruction,
        "variant": episode.variant,
        "provenance": episode.provenance,
        "state": list(episode.state),
        "images": list(episode.images),
    }
    size = sum(array.nbytes for array in arrays.values())
    if size > LARGEST_BYTES:
        raise UserError(
            expected=f"a rollout of at most {LARGEST_BYTES / 2**30:.0f} GiB",
            found=f"{size / 2**30:.1f} GiB",
            remedy="record shorter episodes, or fewer and smaller images",
        )
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    _write_atomically(path, arrays)
    return path


def load_rollout(path: str | Path) -> SavedRollout:
    """Read what `save_rollout` wrote. Never unpickles, and never allocates more than the file's own size bounds.

    Raises:
        UserError: no such file, not a rollout, truncated or damaged, or written by a newer version.
    """
    path = Path(path)
    with _reading(path):
        with zipfile.ZipFile(path) as archive:
            header = _read_header(archive, path)
            _check_sizes(archive)
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files if name != "header"}
        return _decode(header, arrays)


def read_start_id(path: str | Path) -> int:
    """The start id of a saved rollout, from its header alone.

    Raises:
        UserError: as `load_rollout`.
    """
    path = Path(path)
    with _reading(path), zipfile.ZipFile(path) as archive:
        return int(_read_header(archive, path)["seed"])


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a file that is not a sound rollout makes fail, as one UserError."""
    if not path.is_file():
        raise UserError(expected="a rollout file", found=f"nothing at {path}", remedy="name an existing .npz rollout")
    try:
        yield
    except (
        zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, IndexError, TypeError, ValueError,
        AttributeError, RuntimeError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        raise UserError(
            expected=f"a rollout that `{FORMAT}` version {VERSION} describes",
            found=f"{path}, which is another file, truncated or damaged ({error})",
            remedy="run the evaluation again to record it anew",
        ) from error


def _write_atomically(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            expected=f"to write {path}",
            found=str(error.strerror or error),
            remedy="make space there, or choose another place",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _read_header(archive: zipfile.ZipFile, path: Path) -> Json:
    info = archive.getinfo("header.npy")
    if info.file_size > LARGEST_HEADER_BYTES:
        raise ValueError(f"the header claims {info.file_size} bytes")
    _check_member(archive, info)
    with archive.open(info) as file:
        text = np.lib.format.read_array(file, allow_pickle=False)
    header = json.loads(text.astype(np.uint8).tobytes())
    if header["format"] != FORMAT:
        raise ValueError(f"its format is {header['format']!r}")
    if int(header["version"]) > VERSION:
        raise UserError(
            expected=f"a rollout of version {VERSION} or older",
            found=f"version {header['version']} in {path}",
            remedy="update this program to the version that wrote it",
        )
    return header


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Before anything is allocated: each array is as large as its member, and all together are bounded."""
    members = archive.infolist()
    total = sum(info.file_size for info in members)
    if total > LARGEST_BYTES + LARGEST_HEADER_BYTES:
        raise ValueError(f"its arrays claim {total} bytes")
    for info in members:
        _check_member(archive, info)


def _check_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    with archive.open(info) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{info.filename} is not a plain array")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError(f"{info.filename} is not a plain array")
        if math.prod(shape) * dtype.itemsize != info.file_size - file.tell():
            raise ValueError(f"{info.filename} has another size than its shape")


def _encode_scene(scene: Scene) -> tuple[Json, dict[str, np.ndarray]]:
    """The scene as JSON, and its distinct meshes side by side: their vertices and face codes as byte planes."""
    number_of: dict[tuple[bytes, bytes], int] = {}
    vertex_parts, code_parts, counts = [np.empty((0, 3), np.float32)], [np.empty(0, np.uint32)], []
    geoms = []
    for geom in scene.geoms:
        mesh = None
        if geom.vertices is not None and geom.faces is not None:
            vertices, faces = weld(geom.vertices, geom.faces)
            key = (vertices.tobytes(), faces.tobytes())
            mesh = number_of.setdefault(key, len(counts))
            if mesh == len(counts):
                counts.append([len(vertices), len(faces)])
                vertex_parts.append(vertices)
                code_parts.append(encode_faces(faces))
        geoms.append(
            {
                "body": int(geom.body),
                "name": geom.name,
                "kind": geom.kind,
                "size": [float(value) for value in geom.size],
                "position": [float(value) for value in geom.position],
                "quaternion": [float(value) for value in geom.quaternion],
                "rgba": [float(value) for value in geom.rgba],
                "mesh": mesh,
            }
        )
    scene_json = {
        "bodies": list(scene.bodies),
        "tool": int(scene.tool),
        "geoms": geoms,
        "meshes": counts,
        "targets": scene.targets,
    }
    return scene_json, {
        "mesh_vertices": to_byte_planes(np.concatenate(vertex_parts)),
        "mesh_faces": to_byte_planes(np.concatenate(code_parts)),
    }


def _decode_scene(scene: Json, arrays: dict[str, np.ndarray]) -> Scene:
    vertices = from_byte_planes(arrays["mesh_vertices"], np.float32).reshape(-1, 3)
    codes = from_byte_planes(arrays["mesh_faces"], np.uint32)
    meshes = []
    for vertex_count, face_count in scene["meshes"]:
        part, vertices = vertices[:vertex_count], vertices[vertex_count:]
        faces, codes = decode_faces(codes[: 3 * face_count]), codes[3 * face_count :]
        if len(part) != vertex_count or len(faces) != face_count or faces.max(initial=0) >= max(vertex_count, 1):
            raise ValueError("a mesh is incomplete")
        meshes.append((part, faces))
    bodies = tuple(str(name) for name in scene["bodies"])
    geoms = tuple(_decode_geom(geom, meshes, len(bodies)) for geom in scene["geoms"])
    if not 0 <= scene["tool"] < max(1, len(bodies)):  # a world without bodies has none
        raise ValueError("the tool is not one of the bodies")
    return Scene(bodies, geoms, int(scene["tool"]), _decode_targets(scene.get("targets")))


def _decode_targets(rows: list | None) -> tuple | None:
    """Absent from the files of earlier versions."""
    if rows is None:
        return None
    width = len(rows[0]) if rows else 0
    return tuple(_floats(row, width) for row in _of_length(rows, 3))


def _decode_geom(geom: Json, meshes: list[tuple[np.ndarray, np.ndarray]], bodies: int) -> Geom:
    if geom["kind"] not in _GEOM_KINDS or not 0 <= geom["body"] < bodies:
        raise ValueError("a geom is of no known kind or on no body")
    vertices, faces = (None, None) if geom["mesh"] is None else meshes[geom["mesh"]]
    return Geom(
        body=int(geom["body"]),
        name=str(geom["name"]),
        kind=geom["kind"],
        size=_floats(geom["size"], 3),
        position=_floats(geom["position"], 3),
        quaternion=_floats(geom["quaternion"], 4),
        rgba=_floats(geom["rgba"], 4),
        vertices=vertices,
        faces=faces,
    )


def _floats(values: list, count: int) -> tuple:
    return tuple(float(value) for value in _of_length(values, count))


def _of_length(values: list, count: int) -> list:
    if len(values) != count:
        raise ValueError(f"{len(values)} values where {count} belong")
    return values


def _decode(header: Json, arrays: dict[str, np.ndarray]) -> SavedRollout:
    spec = TaskSpec.from_json(header["spec"])
    scene = _decode_scene(header["scene"], arrays)
    episode = Episode(
        task=str(header["task"]),
        seed=int(header["seed"]),
        state={key: arrays[f"state_{number}"] for number, key in enumerate(header["state"])},
        images={key: arrays[f"image_{number}"] for number, key in enumerate(header["images"])},
        instruction=str(header["instruction"]),
        variant=str(header["variant"]),
        provenance=dict(header["provenance"]),
        **{name: arrays[name] for name in _EPISODE_ARRAYS},
    )
    stages = {str(name): bool(reached) for name, reached in header.get("stages", {}).items()}
    rollout = Rollout(episode=episode, stages=stages, **{name: arrays[name] for name in _CHUNK_ARRAYS})
    poses = arrays["body_poses"]
    _check_shapes(rollout, poses, scene, spec)
    return SavedRollout(rollout, scene, poses, spec)


def _check_shapes(rollout: Rollout, poses: np.ndarray, scene: Scene, spec: TaskSpec) -> None:
    episode, steps, chunks, size = rollout.episode, rollout.episode.length, len(rollout.chunk_steps), spec.action.size
    for name, dimensions in _EPISODE_ARRAYS.items():
        array = getattr(episode, name)
        if (
            array.ndim != dimensions
            or len(array) != steps
            or (name in ("action", "executed") and array.shape[1] != size)
        ):
            raise ValueError(f"'{name}' has shape {array.shape}")
    for key, array in {**episode.state, **episode.images}.items():
        if len(array) != steps or array.ndim != (4 if key in episode.images else 2):
            raise ValueError(f"'{key}' has shape {array.shape}")
    for name, dimensions in _CHUNK_ARRAYS.items():
        array = getattr(rollout, name)
        if array.ndim != dimensions or len(array) != chunks or (dimensions == 3 and array.shape[2] != size):
            raise ValueError(f"'{name}' has shape {array.shape}")
    if rollout.preview_levels.shape != rollout.preview_actions.shape[:2]:
        raise ValueError("the preview has other levels than actions")
    if chunks and not 0 <= rollout.chunk_steps.min() <= rollout.chunk_steps.max() < max(steps, 1):
        raise ValueError("a chunk was handed out outside the episode")
    if scene.targets is not None and len(scene.targets[0]) != size + 1:
        raise ValueError(f"the targets are of {len(scene.targets[0]) - 1} action elements")
    if poses.shape != (steps, len(scene.bodies), 7):
        raise ValueError(f"the body poses have shape {poses.shape}")
