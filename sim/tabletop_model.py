"""The tabletop world as frozen descriptions, and the MuJoCo model that they compile to.

The world's frame is the robot's base frame; the table's top is at z = 0. What is seen (`Look`) and what moves
(`Dynamics`) are kept apart: a look never changes physics.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from embodied.errors import UserError
from embodied.sim.opengl import MjModel, mujoco
from embodied.sim.tabletop_cabinet import add_cabinet
from embodied.sim.tabletop_objects import Item, Piece, Vector, add_item, add_material, add_ornament, add_piece
from embodied.sim.tabletop_robots import FINGER_JOINTS, ROBOTS, STATIC_TYPE, Robot, add_robot

TIMESTEP_S = 0.005
MOST_DELAY_STEPS = 4
MEMORY_SIZE = 32  # numbers that a task may keep of an episode
_TABLE_MIDDLE, _TABLE_HALF = (0.42, 0.0), (0.68, 0.75)
_FLOOR_Z = -0.75


@dataclass(frozen=True)
class Dynamics:
    """What one robot's physics may have otherwise than another's. Neutral values are the model's own.

    Stiffness and damping of the servos are shares of the robot's own: one for all joints, or one a joint.
    """

    stiffness: tuple[float, ...] = (1.0,)
    damping: tuple[float, ...] = (1.0,)
    joint_damping: float = 1.0  # of the arm's bearings, as a share of the model's
    friction: float = 1.0  # of every contact, likewise
    delay_steps: int = 0  # control steps from a command to the servos

    def __post_init__(self) -> None:
        if not 0 <= self.delay_steps <= MOST_DELAY_STEPS:
            raise UserError(
                expected=f"dynamics.delay_steps from 0 to {MOST_DELAY_STEPS}",
                found=str(self.delay_steps),
                remedy="choose one in that range",
            )
        for name in ("stiffness", "damping", "joint_damping", "friction"):
            if np.min(getattr(self, name)) <= 0:
                raise UserError(
                    expected=f"dynamics.{name} above 0", found=str(getattr(self, name)), remedy="1 is the model's own"
                )


@dataclass(frozen=True)
class Light:
    """One lamp far away, and what comes from everywhere."""

    ambient: float = 0.45
    diffuse: float = 0.55
    direction: Vector = (0.3, -0.25, -1.0)  # of its rays
    colour: Vector = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Camera:
    """A camera by where it is and what it looks at, in the world's frame, m."""

    name: str
    position: Vector
    target: Vector
    fovy_deg: float = 45.0


@dataclass(frozen=True)
class Ornament:
    """Something that merely lies about: it stands still, and touches nothing."""

    item: Item
    x: float  # m
    y: float
    yaw: float = 0.0  # rad


OVERVIEW = Camera("overview", (-0.22, 0.72, 0.72), (0.52, -0.06, 0.08), 42.0)
FRONT = Camera("front", (1.45, 0.0, 0.62), (0.42, 0.0, 0.08), 42.0)


@dataclass(frozen=True)
class Look:
    """All that cameras see and no body feels. Textures are robosuite's."""

    table: str = "light-wood.png"
    wall: str = "white-plaster.png"
    floor: str = "light-gray-floor-tile.png"
    cabinet: str = "gray-woodgrain.png"
    light: Light = Light()
    ornaments: tuple[Ornament, ...] = ()
    robot_tint: Vector | None = None  # red, green, blue that the robot's colours are multiplied with
    cameras: tuple[Camera, ...] = (OVERVIEW, FRONT)


@dataclass(frozen=True)
class TabletopWorld:
    """One scene: a robot on a table, what lies there, how it looks and how it moves."""

    robot: str = "Panda"  # of `ROBOTS`
    items: tuple[Item, ...] = ()
    cabinet: bool = False
    look: Look = Look()
    dynamics: Dynamics = field(default_factory=Dynamics)

    def build(self) -> MjModel:
        """The compiled model: a copy of its own, so that dynamics can be changed in place."""
        model = copy.copy(_compiled(replace(self, dynamics=Dynamics())))
        self.apply(self.dynamics, model)
        return model

    def apply(self, dynamics: Dynamics, model: MjModel) -> None:
        """Give a model that was built from this world other dynamics (the delay is the controller's business).

        Raises:
            UserError: servo values for another number of joints than the robot has.
        """
        robot, neutral = ROBOTS[self.robot], _compiled(replace(self, dynamics=Dynamics()))
        arm = np.array([model.actuator(joint).id for joint in robot.joints])
        stiffness = _each_joint("stiffness", dynamics.stiffness, robot) * np.array(robot.stiffness)
        damping = _each_joint("damping", dynamics.damping, robot) * np.array(robot.damping)
        model.actuator_gainprm[arm, 0] = stiffness
        model.actuator_biasprm[arm, 1], model.actuator_biasprm[arm, 2] = -stiffness, -damping
        bearings = np.array([model.joint(joint).dofadr[0] for joint in robot.joints])
        model.dof_damping[bearings] = dynamics.joint_damping * neutral.dof_damping[bearings]
        model.geom_friction[:] = dynamics.friction * neutral.geom_friction


def _each_joint(name: str, values: tuple[float, ...], robot: Robot) -> np.ndarray:
    if len(values) not in (1, len(robot.joints)):
        raise UserError(
            expected=f"dynamics.{name} of one value, or {len(robot.joints)}: one for each joint of {robot.name}",
            found=f"{len(values)} values",
            remedy="give as many",
        )
    return np.broadcast_to(np.array(values, dtype=np.float64), (len(robot.joints),))


@functools.cache
def _compiled(world: TabletopWorld) -> MjModel:
    """The model with neutral dynamics, once a process."""
    spec = mujoco.MjSpec()
    option = spec.option
    option.timestep, option.integrator = TIMESTEP_S, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.cone, option.impratio = mujoco.mjtCone.mjCONE_ELLIPTIC, 10.0  # held things do not creep
    option.iterations, option.tolerance = 20, 1e-6
    robot = ROBOTS[world.robot]
    spec.nuserdata = (MOST_DELAY_STEPS + 1) * (len(robot.joints) + len(FINGER_JOINTS)) + MEMORY_SIZE
    _add_surroundings(spec, world.look)
    add_robot(spec, robot, world.look.robot_tint)
    for item in world.items:
        add_item(spec, item)
    if world.cabinet:
        add_cabinet(spec, world.look.cabinet)
    for number, ornament in enumerate(world.look.ornaments):
        z = ornament.item.half[2]
        add_ornament(spec, ornament.item, f"ornament_{number}", (ornament.x, ornament.y, z), ornament.yaw)
    return spec.compile()


def _add_surroundings(spec: Any, look: Look) -> None:
    """The table (to bodies an endless plane), a room around it, light and cameras."""
    world = spec.worldbody
    add_material(spec, "table", look.table, repeat=(2, 2))
    add_material(spec, "wall", look.wall, repeat=(3, 3))
    add_material(spec, "floor", look.floor, repeat=(4, 4))
    plane = mujoco.mjtGeom.mjGEOM_PLANE
    world.add_geom(name="table", type=plane, size=[1, 1, 0.1], contype=STATIC_TYPE, conaffinity=0, group=3)
    x, y = _TABLE_MIDDLE
    half_x, half_y = _TABLE_HALF
    legs = [(x + sx * (half_x - 0.05), y + sy * (half_y - 0.05)) for sx in (1, -1) for sy in (1, -1)]
    quarter = np.pi / 2  # a box shows its texture unstretched on the sides that its z axis leaves through
    top = Piece("box", (half_x, half_y, 0.02), (x, y, -0.02))
    room = [
        (top, "table"),
        *((Piece("box", (0.03, 0.03, 0.36), (*leg, -0.39)), "table") for leg in legs),
        (Piece("box", (2.5, 2.5, 0.01), (0.4, 0.0, _FLOOR_Z)), "floor"),
        *((Piece("box", (1.6, 2.5, 0.01), (0.4 + sx * 2.0, 0.0, 0.8), (0.0, quarter, 0.0)), "wall") for sx in (1, -1)),
        *((Piece("box", (2.5, 1.6, 0.01), (0.4, sy * 2.0, 0.8), (quarter, 0.0, 0.0)), "wall") for sy in (1, -1)),
    ]
    for number, (piece, material) in enumerate(room):
        add_piece(spec, world, f"room_{number}", piece, solid=False)
        spec.geom(f"room_{number}").material = material
    light = look.light
    colour = np.array(light.colour)
    world.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[0.0, 0.0, 2.0],
        dir=light.direction,
        ambient=light.ambient * colour,
        diffuse=light.diffuse * colour,
        specular=0.3 * colour,
        castshadow=False,
    )
    spec.visual.headlight.active = 0
    for camera in look.cameras:
        world.add_camera(name=camera.name, pos=camera.position, quat=_looking(camera), fovy=camera.fovy_deg)


def _looking(camera: Camera) -> np.ndarray:
    """The quaternion w x y z of a camera (which looks along its -z, its x to the right) towards its target."""
    back = np.array(camera.position) - np.array(camera.target)
    right = np.cross([0.0, 0.0, 1.0], back)
    matrix = np.stack([right, np.cross(back, right), back], axis=1)
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, (matrix / np.linalg.norm(matrix, axis=0)).ravel())
    return quaternion
