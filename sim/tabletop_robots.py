"""The tabletop world's arms: robosuite's packaged models with joint servos, lean geometry and the Panda's hand."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embodied.errors import UserError
from embodied.sim.mesh_simplification import simplified
from embodied.sim.opengl import MjModel, mujoco

VISUAL_GROUP, COLLISION_GROUP = 1, 3  # of geoms: for the eye, for contacts
# What touches what: the gripper objects and whatever stands still, objects each other too; the arm's links nothing.
STATIC_TYPE, OBJECT_TYPE, GRIPPER_TYPE = 1, 2, 4
FINGERS = ("leftfinger", "rightfinger")
FINGER_JOINTS = ("finger_joint1", "finger_joint2")
GRIP_SITE = "grip_site"
HAND = "right_gripper"
WRIST_CAMERA = "wrist"
FINGER_TRAVEL_M = 0.04
CLOSED_BEYOND_M = (
    0.01  # so far past each other closed fingers aim, so that thin things are pressed as hard as thick ones
)
_HAND_FILE = "grippers/panda_gripper.xml"
# Edge of the grid that meshes are thinned on, m: about as wide as what a pixel of a small camera shows of them.
_ARM_CELL_M, _HAND_CELL_M = 0.01, 0.003


@dataclass(frozen=True)
class Robot:
    """One arm of robosuite's, and the servos that hold its joints: one value a joint, from the base on."""

    name: str
    file: str  # among robosuite's assets
    joints: tuple[str, ...]
    home: tuple[float, ...]  # rad; the gripper points down, its fingers close along y
    stiffness: tuple[float, ...]  # of the servos, N m/rad
    damping: tuple[float, ...]  # of the servos, N m s/rad
    torque: tuple[float, ...]  # at most, N m
    speed: tuple[float, ...]  # at most, rad/s


ROBOTS = {
    "Panda": Robot(
        name="Panda",
        file="robots/panda/robot.xml",
        joints=tuple(f"joint{number}" for number in range(1, 8)),
        home=(0.0, -0.4994, 0.0, -2.7477, 0.0, 2.2483, 0.7854),
        stiffness=(4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0),  # MuJoCo Menagerie's
        damping=(225.0, 225.0, 175.0, 175.0, 60.0, 60.0, 60.0),
        torque=(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),  # Franka's data sheet, as the speeds
        speed=(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
    ),
    "UR5e": Robot(
        name="UR5e",
        file="robots/ur5e/robot.xml",
        joints=(
            "shoulder_pan_joint",
            "shoulder_lift_joint",
            "elbow_joint",
            "wrist_1_joint",
            "wrist_2_joint",
            "wrist_3_joint",
        ),
        home=(-0.3814, -1.9205, 2.1713, -1.8216, -1.5708, -1.9522),
        stiffness=(4500.0, 4500.0, 4500.0, 800.0, 800.0, 800.0),
        damping=(225.0, 225.0, 225.0, 30.0, 30.0, 30.0),
        torque=(150.0, 150.0, 150.0, 28.0, 28.0, 28.0),  # robosuite's, from the maker
        speed=(3.14, 3.14, 3.14, 3.14, 3.14, 3.14),
    ),
}


@functools.cache
def assets_folder() -> Path:
    """robosuite's models, meshes and textures; found without importing it.

    Raises:
        UserError: robosuite is not installed.
    """
    found = importlib.util.find_spec("robosuite")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            expected="robosuite, whose robots and objects the tabletop world is made of",
            found="no such package",
            remedy="pip install 'robosuite>=1.5.1,<1.5.2'",
        )
    return Path(found.submodule_search_locations[0]) / "models" / "assets"


def add_robot(spec: Any, robot: Robot, tint: tuple[float, float, float] | None) -> None:
    """Put the arm with the Panda's hand at the world's origin, with one position servo a joint and finger.

    Args:
        spec: the `MjSpec` to put it in.
        tint: red, green, blue that its colours are multiplied with; None: as robosuite paints it.
    """
    arm, hand = _bare(robot.file), _bare(_HAND_FILE)
    mount = arm.body("right_hand")
    mount.add_frame().attach_body(hand.worldbody.first_body(), "", "")
    spec.worldbody.add_frame().attach_body(arm.worldbody.first_body(), "", "")
    for file, cell in ((robot.file, _ARM_CELL_M), (_HAND_FILE, _HAND_CELL_M)):
        _add_look(spec, _shells(file, cell), tint)
    for body in spec.body("base").find_all("body"):
        body.gravcomp = 1.0
    _add_finger_geometry(spec)
    _add_servos(spec, robot)


def robot_only(robot: Robot) -> MjModel:
    """The arm and its hand alone, for kinematics."""
    spec = mujoco.MjSpec()
    arm, hand = _bare(robot.file), _bare(_HAND_FILE)
    arm.body("right_hand").add_frame().attach_body(hand.worldbody.first_body(), "", "")
    spec.worldbody.add_frame().attach_body(arm.worldbody.first_body(), "", "")
    return spec.compile()


def _bare(file: str) -> Any:
    """A part's bodies, joints and masses, without geometry, motors and sensors."""
    spec = mujoco.MjSpec.from_file(str(assets_folder() / file))
    for kind in ("geoms", "actuators", "sensors", "meshes", "materials"):
        for element in list(getattr(spec, kind)):
            spec.delete(element)
    for camera in list(spec.cameras):
        if camera.name == "eye_in_hand":
            camera.name = WRIST_CAMERA
        else:
            spec.delete(camera)
    for site in list(spec.sites):
        if site.name != GRIP_SITE:
            spec.delete(site)
    return spec


@dataclass(frozen=True)
class _Shell:
    """All that one link shows in one colour."""

    body: str
    rgba: tuple[float, ...]
    vertices: np.ndarray  # float64 [V 3], in the body's frame, m
    faces: np.ndarray  # int64 [F 3]


@functools.cache
def _shells(file: str, cell: float) -> tuple[_Shell, ...]:
    """A part's visual meshes, thinned and merged by link and colour: a seventh of robosuite's triangles."""
    spec = mujoco.MjSpec.from_file(str(assets_folder() / file))
    for geom in list(spec.geoms):
        if geom.group != VISUAL_GROUP:
            spec.delete(geom)
    for mesh in list(spec.meshes):
        if all(geom.meshname != mesh.name for geom in spec.geoms):
            spec.delete(mesh)
    model = spec.compile()
    parts: dict[tuple[str, tuple[float, ...]], list[tuple[np.ndarray, np.ndarray]]] = {}
    for geom in range(model.ngeom):
        if model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH:
            continue
        material = int(model.geom_matid[geom])
        rgba = model.mat_rgba[material] if material >= 0 else model.geom_rgba[geom]
        key = (model.body(model.geom_bodyid[geom]).name, tuple(float(value) for value in np.round(rgba, 2)))
        parts.setdefault(key, []).append(_mesh_in_body(model, geom))
    shells = []
    for (body, rgba), meshes in parts.items():
        first = np.cumsum([0, *(len(vertices) for vertices, _ in meshes)])
        vertices = np.concatenate([vertices for vertices, _ in meshes])
        faces = np.concatenate([faces + start for (_, faces), start in zip(meshes, first, strict=False)])
        vertices, faces = simplified(vertices, faces, cell)
        if len(vertices) >= 4:  # the least that MuJoCo takes; less is a mark smaller than a pixel
            shells.append(_Shell(body, rgba, vertices, faces))
    return tuple(shells)


def _mesh_in_body(model: MjModel, geom: int) -> tuple[np.ndarray, np.ndarray]:
    mesh, rotation = int(model.geom_dataid[geom]), np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
    vertex, face = int(model.mesh_vertadr[mesh]), int(model.mesh_faceadr[mesh])
    vertices = model.mesh_vert[vertex : vertex + model.mesh_vertnum[mesh]].astype(np.float64)
    faces = model.mesh_face[face : face + model.mesh_facenum[mesh]].astype(np.int64)
    return vertices @ rotation.reshape(3, 3).T + model.geom_pos[geom], faces


def _add_look(spec: Any, shells: Sequence[_Shell], tint: tuple[float, float, float] | None) -> None:
    for number, shell in enumerate(shells):
        name = f"{shell.body}_shell{number}"
        spec.add_mesh(
            name=name,
            uservert=shell.vertices.ravel(),
            userface=shell.faces.ravel(),
            inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,  # of no consequence; the links state their own
        )
        colour = np.array(shell.rgba)
        if tint is not None:
            colour[:3] *= tint
        material = spec.add_material(name=name, rgba=colour, specular=0.4, shininess=0.4)
        spec.body(shell.body).add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_MESH,
            meshname=name,
            material=material.name,
            contype=0,
            conaffinity=0,
            mass=0.0,
            group=VISUAL_GROUP,
        )


def _add_finger_geometry(spec: Any) -> None:
    """Boxes for the hand and the fingers, with robosuite's rubber pads; the sizes are those of its meshes."""
    solid: dict[str, Any] = {
        "type": mujoco.mjtGeom.mjGEOM_BOX,
        "group": COLLISION_GROUP,
        "contype": GRIPPER_TYPE,
        "conaffinity": STATIC_TYPE,
        "mass": 0.0,
    }
    spec.body(HAND).add_geom(name="hand", pos=[0, 0, 0.02], size=[0.1, 0.0316, 0.046], **solid)
    for finger, side in zip(FINGERS, (1.0, -1.0), strict=True):
        body = spec.body(finger)
        body.add_geom(name=f"{finger}_upper", pos=[0, side * 0.0145, 0.0225], size=[0.0105, 0.0115, 0.0225], **solid)
        body.add_geom(
            name=f"{finger}_pad",
            pos=[0, side * 0.0045, 0.045],
            size=[0.0095, 0.0045, 0.009],
            # Rows of one elliptic cone share its limit: what rolls or pivots at a pad would slide, too. So pads decide
            # (priority), have no rolling friction, and hold against pivoting as a broad soft pad does.
            friction=[1.6, 0.1, 0.0005],
            condim=4,
            priority=1,
            solref=[0.01, 1.0],
            **solid,
        )


def _add_servos(spec: Any, robot: Robot) -> None:
    """Of the arm's joints and the fingers, which a rack couples: what they hold does not wander between them."""
    spec.add_equality(
        name="fingers",
        type=mujoco.mjtEq.mjEQ_JOINT,
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        name1=FINGER_JOINTS[1],
        name2=FINGER_JOINTS[0],
        data=[0.0, -1.0, *[0.0] * 9],
        solref=[0.01, 1.0],
    )
    for joint, stiffness, damping, torque in zip(
        robot.joints, robot.stiffness, robot.damping, robot.torque, strict=True
    ):
        actuator = spec.add_actuator(
            name=joint,
            target=joint,
            trntype=mujoco.mjtTrn.mjTRN_JOINT,
            ctrllimited=True,
            ctrlrange=spec.joint(joint).range,
            forcelimited=True,
            forcerange=[-torque, torque],
        )
        actuator.set_to_position(kp=stiffness, kv=damping)
    for joint, side in zip(FINGER_JOINTS, (1.0, -1.0), strict=True):
        actuator = spec.add_actuator(
            name=joint,
            target=joint,
            trntype=mujoco.mjtTrn.mjTRN_JOINT,
            ctrllimited=True,
            ctrlrange=sorted([-side * CLOSED_BEYOND_M, side * FINGER_TRAVEL_M]),
            forcelimited=True,
            forcerange=[-40.0, 40.0],  # Franka's data sheet has up to 70 N
        )
        actuator.set_to_position(kp=4000.0)
