"""What lies and stands on the tabletop world's table: items that move freely, and a cabinet with three drawers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.sim.lathe import turned
from embodied.sim.opengl import mujoco
from embodied.sim.tabletop_robots import (
    COLLISION_GROUP,
    GRIPPER_TYPE,
    OBJECT_TYPE,
    STATIC_TYPE,
    VISUAL_GROUP,
    assets_folder,
)

Vector = tuple[float, float, float]
Rgba = tuple[float, float, float, float]
_TEXTURE_PIXELS = 256  # both sides
_SHAPES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "ellipsoid": mujoco.mjtGeom.mjGEOM_ELLIPSOID,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
}


@dataclass(frozen=True)
class Mesh:
    """A mesh of robosuite's objects, with its picture; or one turned on a lathe from a profile."""

    file: str | None = None  # among robosuite's object meshes
    scale: Vector = (1.0, 1.0, 1.0)
    profile: tuple[tuple[float, float], ...] = ()  # radius and height, m, from the bottom's middle on
    texture: str | None = None  # among robosuite's
    repeat: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Piece:
    """Geometry fixed to an item."""

    kind: Literal["box", "cylinder", "ellipsoid", "capsule", "mesh"]
    size: tuple[float, ...] = ()  # MuJoCo's half sizes, m
    position: Vector = (0.0, 0.0, 0.0)  # in the item's frame, m
    euler: Vector = (0.0, 0.0, 0.0)  # about x, y, z, rad
    rgba: Rgba = (1.0, 1.0, 1.0, 1.0)
    solid: bool = True  # whether it touches others
    shown: bool = True
    mesh: Mesh | None = None

    @property
    def volume(self) -> float:
        """In m3."""
        a, b, c = (*self.size, 0.0, 0.0)[:3]
        return {"box": 8 * a * b * c, "ellipsoid": 4 / 3 * np.pi * a * b * c}.get(self.kind, 2 * np.pi * a * a * b)


@dataclass(frozen=True)
class Item:
    """Something that moves freely; its frame is at the middle of its bounding box."""

    name: str  # the body's
    words: str  # in instructions
    half: Vector  # of the bounding box, m
    mass: float  # kg
    pieces: tuple[Piece, ...]
    round: Literal["x", "z"] | None = None  # the axis that it is round about
    friction: Vector = (1.0, 0.02, 0.002)  # sliding, torsional (m), rolling (m)

    @property
    def radius(self) -> float:
        """Half the diagonal of its bounding box seen from above as it stands, m."""
        return float(np.hypot(self.half[0], self.half[1]))


def _box(*size: float, at: Vector = (0.0, 0.0, 0.0), rgba: Rgba = (1.0, 1.0, 1.0, 1.0)) -> Piece:
    return Piece("box", size, at, rgba=rgba)


def _unseen(kind: Literal["box", "cylinder", "ellipsoid"], *size: float) -> Piece:
    return Piece(kind, size, shown=False)


def _shown(mesh: Mesh, at: Vector = (0.0, 0.0, 0.0), rgba: Rgba = (1.0, 1.0, 1.0, 1.0)) -> Piece:
    return Piece("mesh", position=at, rgba=rgba, solid=False, mesh=mesh)


def _ornament(
    kind: Literal["ellipsoid", "capsule", "cylinder"], *size: float, at: Vector, rgba: Rgba, euler: Vector = (0, 0, 0)
) -> Piece:
    return Piece(kind, size, at, euler, rgba, solid=False)


def _cube(name: str, words: str, rgba: Rgba) -> Item:
    return Item(name, words, (0.02, 0.02, 0.02), 0.06, (_box(0.02, 0.02, 0.02, rgba=rgba),))


_ORANGE, _GREEN, _PURPLE, _STEEL = (
    (0.95, 0.45, 0.1, 1),
    (0.2, 0.5, 0.15, 1),
    (0.35, 0.12, 0.4, 1),
    (0.75, 0.76, 0.78, 1),
)
_WICKER = (0.85, 0.7, 0.3, 1)
_PLATE = (
    (0.0, 0.0),
    (0.045, 0.0),
    (0.05, 0.002),
    (0.078, 0.012),
    (0.08, 0.014),
    (0.076, 0.014),
    (0.05, 0.006),
    (0.0, 0.005),
)

CAN = Item(
    "can",
    "can",
    (0.025, 0.025, 0.04),
    0.15,
    (_unseen("cylinder", 0.025, 0.04), _shown(Mesh("can.msh", texture="soda.png", repeat=(5, 5)))),
    round="z",
)
LEMON = Item(
    "lemon",
    "lemon",
    (0.034, 0.02, 0.02),
    0.08,
    (
        _unseen("ellipsoid", 0.034, 0.02, 0.02),
        _shown(Mesh("lemon.msh", (1.5, 1, 1), texture="lemon.png", repeat=(60, 50))),
    ),
    round="x",
)
BREAD = Item(
    "bread",
    "bread",
    (0.024, 0.02, 0.024),
    0.05,
    (
        _unseen("box", 0.024, 0.02, 0.024),
        _shown(Mesh("bread.stl", (0.8, 0.8, 0.8), texture="bread.png", repeat=(15, 15))),
    ),
)
MILK = Item(
    "milk",
    "milk carton",
    (0.02, 0.02, 0.044),
    0.12,
    (
        _unseen("box", 0.02, 0.02, 0.044),
        _shown(Mesh("milk.msh", (0.9, 0.9, 0.55), texture="ceramic.png"), (0, 0, -0.0067), (0.7, 0.85, 1.0, 1)),
    ),
)
CEREAL = Item(
    "cereal",
    "cereal box",
    (0.035, 0.015, 0.041),
    0.1,
    (_unseen("box", 0.035, 0.015, 0.041), _shown(Mesh("cereal.msh", (0.7, 1, 0.55), texture="cereal.png"))),
)
BOTTLE = Item(
    "bottle",
    "bottle",
    (0.025, 0.025, 0.044),
    0.12,
    (
        _unseen("cylinder", 0.025, 0.044),
        _shown(Mesh("bottle.stl", (0.88, 0.83, 0.55)), (0, 0, -0.0083), (0.1, 0.35, 0.2, 1)),
    ),
    round="z",
)
SPOON = Item(
    "spoon",
    "spoon",
    (0.07, 0.012, 0.008),
    0.05,
    (
        _unseen("box", 0.07, 0.009, 0.008),
        _ornament("capsule", 0.006, 0.045, at=(-0.02, 0, 0), rgba=_STEEL, euler=(0, np.pi / 2, 0)),
        _ornament("ellipsoid", 0.026, 0.017, 0.007, at=(0.048, 0, 0), rgba=_STEEL),
    ),
)
CARROT = Item(
    "carrot",
    "carrot",
    (0.06, 0.014, 0.013),
    0.06,
    (
        _unseen("box", 0.06, 0.012, 0.013),
        Piece(
            "mesh",
            euler=(0, np.pi / 2, 0),
            rgba=_ORANGE,
            solid=False,
            mesh=Mesh(
                profile=((0.0, -0.055), (0.012, -0.053), (0.014, -0.045), (0.009, 0.02), (0.004, 0.058), (0.0, 0.06))
            ),
        ),
        _ornament("ellipsoid", 0.016, 0.01, 0.007, at=(-0.066, 0, 0), rgba=_GREEN),
    ),
)
EGGPLANT = Item(
    "eggplant",
    "eggplant",
    (0.045, 0.02, 0.02),
    0.08,
    (
        _unseen("ellipsoid", 0.045, 0.02, 0.02),
        _ornament("ellipsoid", 0.045, 0.02, 0.02, at=(0, 0, 0), rgba=_PURPLE),
        _ornament("ellipsoid", 0.012, 0.012, 0.012, at=(-0.038, 0, 0), rgba=_GREEN),
        _ornament("capsule", 0.003, 0.008, at=(-0.054, 0, 0), rgba=_GREEN, euler=(0, np.pi / 2, 0)),
    ),
    round="x",
)
GREEN_CUBE = _cube("green_cube", "green cube", (0.15, 0.6, 0.2, 1))
YELLOW_CUBE = _cube("yellow_cube", "yellow cube", (0.95, 0.8, 0.1, 1))
PLATE = Item(
    "plate",
    "plate",
    (0.08, 0.08, 0.007),
    0.4,
    (_unseen("cylinder", 0.07, 0.007), _shown(Mesh(profile=_PLATE), (0, 0, -0.007), (0.93, 0.93, 0.95, 1))),
    round="z",
)
CLOTH = Item("cloth", "cloth", (0.075, 0.065, 0.003), 0.15, (_box(0.075, 0.065, 0.003, rgba=(0.2, 0.4, 0.75, 1)),))
BASKET = Item(
    "basket",
    "basket",
    (0.106, 0.081, 0.034),
    0.5,
    (
        _box(0.1, 0.075, 0.004, at=(0, 0, -0.03), rgba=_WICKER),
        *(_box(0.003, 0.081, 0.034, at=(side * 0.103, 0, 0), rgba=_WICKER) for side in (1, -1)),
        *(_box(0.1, 0.003, 0.034, at=(0, side * 0.078, 0), rgba=_WICKER) for side in (1, -1)),
    ),
)


def add_item(spec: Any, item: Item) -> None:
    """A free body with the item's name."""
    body = spec.worldbody.add_body(name=item.name)
    body.add_freejoint(name=item.name)
    density = item.mass / sum(piece.volume for piece in item.pieces if piece.solid)
    for number, piece in enumerate(item.pieces):
        add_piece(spec, body, f"{item.name}_{number}", piece, item.friction, density)


def add_ornament(spec: Any, item: Item, name: str, position: Vector, yaw: float) -> None:
    """The item's look without its body: it stands still, and touches nothing."""
    body = spec.worldbody.add_body(name=name, pos=position, quat=[np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
    for number, piece in enumerate(item.pieces):
        if piece.shown:
            add_piece(spec, body, f"{name}_{number}", piece, solid=False)


def add_piece(
    spec: Any,
    body: Any,
    name: str,
    piece: Piece,
    friction: Vector = (1.0, 0.005, 0.0001),
    density: float = 0.0,
    *,
    solid: bool = True,
    static: bool = False,
) -> None:
    """One geom, and the mesh and material that it needs.

    Args:
        solid: False: it touches nothing, whatever the piece says.
        static: it belongs to something that no gripper carries away.
    """
    settings: dict[str, Any] = {"contype": 0, "conaffinity": 0}
    if piece.solid and solid:
        settings = {"contype": STATIC_TYPE} if static else {"contype": OBJECT_TYPE}
        settings["conaffinity"] = 0 if static else STATIC_TYPE | OBJECT_TYPE | GRIPPER_TYPE
        settings |= {"friction": friction, "condim": 3 if static else 6}
    if piece.mesh is not None:
        _add_mesh(spec, name, piece.mesh, piece.rgba)
        settings |= {"type": mujoco.mjtGeom.mjGEOM_MESH, "meshname": name, "material": name}
    else:
        settings |= {"type": _SHAPES[piece.kind], "size": [*piece.size, 0.0, 0.0][:3], "rgba": piece.rgba}
    body.add_geom(
        name=name,
        pos=piece.position,
        quat=np.roll(Rotation.from_euler("xyz", piece.euler).as_quat(), 1),
        group=VISUAL_GROUP if piece.shown else COLLISION_GROUP,
        density=density if piece.solid and solid else 0.0,
        **settings,
    )


def add_material(
    spec: Any,
    name: str,
    texture: str | None,
    rgba: Rgba = (1, 1, 1, 1),
    repeat: tuple[float, float] = (1, 1),
    **more: Any,
) -> None:
    """A material with one of robosuite's textures, laid on flat."""
    material = spec.add_material(name=name, rgba=rgba, texrepeat=repeat, specular=0.3, shininess=0.3, **more)
    if texture is not None:
        if not any(known.name == texture for known in spec.textures):
            pixels = _picture(texture)
            added = spec.add_texture(name=texture, type=mujoco.mjtTexture.mjTEXTURE_2D)
            added.height, added.width, added.nchannel = pixels.shape
            added.data = pixels.tobytes()
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = texture


@functools.cache
def _picture(texture: str) -> np.ndarray:
    """One of robosuite's textures, uint8 [256 256 3]: theirs are up to 4096 pixels wide, and slow every copy down."""
    from PIL import Image

    with Image.open(assets_folder() / "textures" / texture) as image:
        resized = image.convert("RGB").resize((_TEXTURE_PIXELS, _TEXTURE_PIXELS), Image.Resampling.LANCZOS)
    return np.asarray(resized)


def _add_mesh(spec: Any, name: str, mesh: Mesh, rgba: Rgba) -> None:
    settings: dict[str, Any] = {"name": name, "inertia": mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL}
    if mesh.file is not None:
        file = str(assets_folder() / "objects" / "meshes" / mesh.file)
        spec.add_mesh(file=file, scale=mesh.scale, **settings)
    else:
        vertices, faces = turned(np.array(mesh.profile))
        spec.add_mesh(uservert=vertices.ravel(), userface=faces.ravel(), **settings)
    add_material(spec, name, mesh.texture, rgba, mesh.repeat, texuniform=mesh.file is not None)
