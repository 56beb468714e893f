"""The tabletop world's cabinet: three drawers above each other, whose handles point to the robot."""

from __future__ import annotations

from typing import Any

from embodied.sim.opengl import mujoco
from embodied.sim.tabletop_objects import Piece, Rgba, Vector, add_material, add_piece

CABINET = "cabinet"
HEIGHTS = ("top", "middle", "bottom")  # of the drawers, as instructions call them
TRAVEL_M = 0.22  # how far a drawer opens
# Of the cabinet's frame: its origin is on the table below the middle of the closed fronts, its x points away from the
# robot.
HANDLE_X_M = -0.038
HANDLE_WIDTH_M = 0.024  # between the fingers
INSIDE_M = (0.1, 0.115, 0.03)  # half the room in a drawer: along x, y, z
INSIDE_X_M = 0.118  # middle of that room behind the drawer's front, drawer closed
_MIDDLE_Z_M = {"top": 0.34, "middle": 0.22, "bottom": 0.1}  # of the fronts
_HALF_WIDTH_M, _DEPTH_M, _HEIGHT_M, _WALL_M = 0.15, 0.27, 0.4, 0.008
_FRONT_M = (0.009, 0.14, 0.052)  # half sizes
_METAL: Rgba = (0.3, 0.3, 0.33, 1.0)


def drawer_body(height: str) -> str:
    """Name of the body and of the slide joint of a drawer."""
    return f"{height}_drawer"


def handle_position(height: str) -> Vector:
    """Of the middle of a drawer's handle in the cabinet's frame, drawer closed, m."""
    return (HANDLE_X_M, 0.0, _MIDDLE_Z_M[height])


def room_middle(height: str) -> Vector:
    """Of the middle of the room in a drawer, in the drawer's own frame, m."""
    return (INSIDE_X_M, 0.0, _MIDDLE_Z_M[height] - _FRONT_M[2] + 0.012 + INSIDE_M[2])


def add_cabinet(spec: Any, texture: str, friction_loss_n: float = 1.0, damping: float = 8.0) -> None:
    """A mocap body, so that a start says where it stands, with the drawers on slides.

    Args:
        spec: the `MjSpec` to put it in.
        texture: among robosuite's.
        friction_loss_n: of a slide, N.
        damping: of a slide, N s/m.
    """
    cabinet = spec.worldbody.add_body(name=CABINET, mocap=True)
    add_material(spec, "cabinet_wood", texture)
    add_material(spec, "cabinet_front", texture, (0.82, 0.82, 0.82, 1.0))
    for number, piece in enumerate(_carcass()):
        add_piece(spec, cabinet, f"{CABINET}_{number}", piece, static=True)
        spec.geom(f"{CABINET}_{number}").material = "cabinet_wood"
    for height in HEIGHTS:
        name = drawer_body(height)
        drawer = cabinet.add_body(name=name, mass=0.8, ipos=[0.1, 0.0, _MIDDLE_Z_M[height]], inertia=[0.01] * 3)
        drawer.explicitinertial = True
        drawer.add_joint(
            name=name,
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[-1.0, 0.0, 0.0],
            limited=True,
            range=[0.0, TRAVEL_M],
            damping=damping,
            frictionloss=friction_loss_n,
        )
        for number, piece in enumerate(_drawer(height)):
            add_piece(spec, drawer, f"{name}_{number}", piece, static=True)
        spec.geom(f"{name}_0").material = "cabinet_front"


def _carcass() -> list[Piece]:
    """The walls around the drawers."""
    middle_x, middle_z = 0.012 + _DEPTH_M / 2, _HEIGHT_M / 2
    half_depth = _DEPTH_M / 2
    sides = [
        Piece("box", (half_depth, _WALL_M, middle_z), (middle_x, side * (_HALF_WIDTH_M + _WALL_M), middle_z))
        for side in (1.0, -1.0)
    ]
    back = Piece("box", (_WALL_M, _HALF_WIDTH_M, middle_z), (0.012 + _DEPTH_M - _WALL_M, 0.0, middle_z))
    top = Piece("box", (half_depth, _HALF_WIDTH_M + 2 * _WALL_M, _WALL_M), (middle_x, 0.0, _HEIGHT_M + _WALL_M))
    plinth = Piece("box", (half_depth, _HALF_WIDTH_M, 0.022), (middle_x, 0.0, 0.022))
    return [*sides, back, top, plinth]


def _drawer(height: str) -> list[Piece]:
    """A front, a tray behind it, and a handle: a standing bar on two studs."""
    z = _MIDDLE_Z_M[height]
    tray_x, tray_y, tray_z = INSIDE_M
    floor_z = z - _FRONT_M[2] + 0.008
    wall_z = floor_z + 0.004 + tray_z
    tray: Rgba = (0.85, 0.8, 0.7, 1.0)
    handle_x = HANDLE_X_M
    return [
        Piece("box", _FRONT_M, (_FRONT_M[0], 0.0, z)),
        Piece("box", (tray_x, tray_y + 0.008, 0.004), (INSIDE_X_M, 0.0, floor_z), rgba=tray),
        *(
            Piece("box", (tray_x, 0.004, tray_z), (INSIDE_X_M, side * (tray_y + 0.004), wall_z), rgba=tray)
            for side in (1.0, -1.0)
        ),
        Piece("box", (0.004, tray_y + 0.008, tray_z), (INSIDE_X_M + tray_x + 0.004, 0.0, wall_z), rgba=tray),
        Piece("box", (0.01, HANDLE_WIDTH_M / 2, 0.022), (handle_x, 0.0, z), rgba=_METAL),
        *(
            Piece("box", (-handle_x / 2, 0.004, 0.004), (handle_x / 2, 0.0, z + side * 0.016), rgba=_METAL)
            for side in (1.0, -1.0)
        ),
    ]
