"""What a MuJoCo model looks like, and where its bodies are: geometry and poses, without a renderer."""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np

from embodied.errors import UserError
from embodied.sim.opengl import MjData, MjModel, mujoco
from embodied.types import Geom, Scene

Kind = Literal["plane", "sphere", "capsule", "ellipsoid", "cylinder", "box", "mesh"]

_KINDS: dict[int, Kind] = {
    mujoco.mjtGeom.mjGEOM_PLANE: "plane",
    mujoco.mjtGeom.mjGEOM_SPHERE: "sphere",
    mujoco.mjtGeom.mjGEOM_CAPSULE: "capsule",
    mujoco.mjtGeom.mjGEOM_ELLIPSOID: "ellipsoid",
    mujoco.mjtGeom.mjGEOM_CYLINDER: "cylinder",
    mujoco.mjtGeom.mjGEOM_BOX: "box",
    mujoco.mjtGeom.mjGEOM_MESH: "mesh",
    mujoco.mjtGeom.mjGEOM_SDF: "mesh",  # MuJoCo draws these as their mesh, too
}
_SHOWN_GROUPS = (0, 1, 2)  # what MuJoCo's own viewer shows unless told otherwise
_DEFAULT_RGBA = (0.5, 0.5, 0.5, 1.0)  # a geom of this colour takes its material's
# Positions, and what is moved from outside: all that the bodies' poses follow from. Velocities make the state complete.
_STATE = (
    mujoco.mjtState.mjSTATE_QPOS
    | mujoco.mjtState.mjSTATE_QVEL
    | mujoco.mjtState.mjSTATE_MOCAP_POS
    | mujoco.mjtState.mjSTATE_MOCAP_QUAT
)


class MujocoScene:
    """The drawable side of one compiled model: its scene, and its bodies' poses for recorded physics states."""

    def __init__(
        self, model: MjModel, *, tool_body: str | None = None, visual_group: int | None = None, state: Any = _STATE
    ) -> None:
        """
        Args:
            model: any compiled model.
            tool_body: the body that the actions move; None: the first of those drawn.
            visual_group: the geom group made for the eye; None, or a group without geoms: what MuJoCo shows by default.
            state: the parts of `mjtState` that physics states hold; positions and mocap poses at least.

        Raises:
            UserError: no body is called `tool_body`.
        """
        self._model, self._state = model, state
        self._geom_ids = _drawn_geoms(model, visual_group)
        self._tool_id = _body_id(model, tool_body) if tool_body is not None else None
        drawn = {int(model.geom_bodyid[geom_id]) for geom_id in self._geom_ids}
        self._body_ids = np.array(sorted(drawn if self._tool_id is None else drawn | {self._tool_id}), dtype=np.int64)

    @functools.cached_property
    def scene(self) -> Scene:
        """Bodies and geometry; made when first asked for, because averaging textures takes a while."""
        model = self._model
        index = {int(body_id): place for place, body_id in enumerate(self._body_ids)}
        return Scene(
            bodies=tuple(_name(model, mujoco.mjtObj.mjOBJ_BODY, body_id) for body_id in self._body_ids),
            geoms=tuple(_geom(model, geom_id, index[int(model.geom_bodyid[geom_id])]) for geom_id in self._geom_ids),
            tool=index[self._tool_id] if self._tool_id is not None else 0,
        )

    def physics_state(self, data: MjData) -> np.ndarray:
        """The state of `data`, float64 [n]: positions, velocities and mocap poses unless told otherwise."""
        state = np.empty(mujoco.mj_stateSize(self._model, self._state), dtype=np.float64)
        mujoco.mj_getState(self._model, data, state, self._state)
        return state

    def body_poses(self, physics_states: np.ndarray) -> np.ndarray:
        """Poses of the scene's bodies for physics states [T n]: float32 [T bodies 7], x y z (m) then w x y z.

        Raises:
            UserError: the states have another size than this model's.
        """
        states = np.asarray(physics_states, dtype=np.float64)
        size = mujoco.mj_stateSize(self._model, self._state)
        if states.ndim != 2 or states.shape[1] != size:
            raise UserError(
                expected=f"physics states of shape [T {size}] for this model",
                found=f"shape {list(states.shape)}",
                remedy="reset the task to the episode's own start before asking for its poses",
            )
        scratch = mujoco.MjData(self._model)  # never the live one
        poses = np.empty((len(states), len(self._body_ids), 7), dtype=np.float32)
        for pose, state in zip(poses, states, strict=True):
            mujoco.mj_setState(self._model, scratch, state, self._state)
            mujoco.mj_kinematics(self._model, scratch)
            pose[:, :3] = scratch.xpos[self._body_ids]
            pose[:, 3:] = scratch.xquat[self._body_ids]
        return poses


def _drawn_geoms(model: MjModel, visual_group: int | None) -> list[int]:
    """Ids of the geoms to draw: of a kind that `Geom` knows, not fully transparent, in the visual group."""
    drawable = [
        geom_id
        for geom_id in range(model.ngeom)
        if int(model.geom_type[geom_id]) in _KINDS and _flat_rgba(model, geom_id)[3] > 0
    ]
    in_group = [geom_id for geom_id in drawable if model.geom_group[geom_id] == visual_group]
    return in_group or [geom_id for geom_id in drawable if model.geom_group[geom_id] in _SHOWN_GROUPS]


def _geom(model: MjModel, geom_id: int, body: int) -> Geom:
    kind = _KINDS[int(model.geom_type[geom_id])]
    size = np.array(model.geom_size[geom_id], dtype=np.float64)
    vertices = faces = None
    if kind == "plane":
        size[:2] = np.where(size[:2] > 0, size[:2], model.stat.extent)  # 0 stands for an endless plane
    if kind == "mesh":
        vertices, faces = _mesh(model, int(model.geom_dataid[geom_id]))
    return Geom(
        body=body,
        name=_name(model, mujoco.mjtObj.mjOBJ_GEOM, geom_id),
        kind=kind,
        size=_floats(size),
        position=_floats(model.geom_pos[geom_id]),
        quaternion=_floats(model.geom_quat[geom_id]),
        rgba=_floats(_rgba(model, geom_id)),
        vertices=vertices,
        faces=faces,
    )


def _mesh(model: MjModel, mesh_id: int) -> tuple[np.ndarray, np.ndarray]:
    first_vertex, first_face = model.mesh_vertadr[mesh_id], model.mesh_faceadr[mesh_id]
    vertices = model.mesh_vert[first_vertex : first_vertex + model.mesh_vertnum[mesh_id]]
    faces = model.mesh_face[first_face : first_face + model.mesh_facenum[mesh_id]]
    return np.array(vertices, dtype=np.float32), np.array(faces, dtype=np.uint32)


def _flat_rgba(model: MjModel, geom_id: int) -> np.ndarray:
    """The geom's own colour or its material's, as MuJoCo decides."""
    rgba, material = model.geom_rgba[geom_id], int(model.geom_matid[geom_id])
    from_material = material >= 0 and np.allclose(rgba, _DEFAULT_RGBA)
    return np.array(model.mat_rgba[material] if from_material else rgba, dtype=np.float64)


def _rgba(model: MjModel, geom_id: int) -> np.ndarray:
    """The flat colour times the mean colour of the material's texture."""
    rgba, material = _flat_rgba(model, geom_id), int(model.geom_matid[geom_id])
    texture = int(model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB]) if material >= 0 else -1
    if texture >= 0:
        rgba[:3] *= _mean_colour(model, texture)
    return np.clip(rgba, 0.0, 1.0)


def _mean_colour(model: MjModel, texture: int) -> np.ndarray:
    """Mean red, green and blue of a texture, 0..1."""
    channels = int(model.tex_nchannel[texture])
    length = int(model.tex_height[texture]) * int(model.tex_width[texture]) * channels
    start = int(model.tex_adr[texture])
    mean = model.tex_data[start : start + length].reshape(-1, channels).mean(axis=0) / 255.0
    return mean[:3] if channels >= 3 else np.repeat(mean[:1], 3)


def _body_id(model: MjModel, name: str) -> int:
    body_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name)
    if body_id < 0:
        known = ", ".join(_name(model, mujoco.mjtObj.mjOBJ_BODY, other) for other in range(model.nbody))
        raise UserError(expected="the name of a body of the model", found=f"'{name}'", remedy=f"known: {known}")
    return body_id


def _name(model: MjModel, kind: Any, number: int) -> str:
    return mujoco.mj_id2name(model, kind, number) or f"{kind.name.removeprefix('mjOBJ_').lower()}_{number}"


def _floats(values: np.ndarray) -> Any:
    return tuple(float(value) for value in values)
