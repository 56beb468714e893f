"""What every tabletop task shares: arm, cameras, instructions, variants, addressed starts and exact restoring."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.catalog import nearest
from embodied.errors import UserError
from embodied.sim import tabletop_variants
from embodied.sim.camera_renderer import CameraRenderer, camera_specs, checked_cameras
from embodied.sim.mujoco_scene import MujocoScene
from embodied.sim.mujoco_task import MujocoTask
from embodied.sim.opengl import MjData, MjModel, mujoco
from embodied.sim.simulated_task import check_start, require_positive
from embodied.sim.tabletop_control import POSITION_SCALE_M, ROTATION_SCALE_RAD
from embodied.sim.tabletop_instructions import Instructions, check_choice
from embodied.sim.tabletop_model import TIMESTEP_S, Dynamics, TabletopWorld
from embodied.sim.tabletop_objects import Item
from embodied.sim.tabletop_robots import FINGER_JOINTS, ROBOTS, VISUAL_GROUP, WRIST_CAMERA
from embodied.sim.tabletop_simulation import STATE, TabletopSimulation
from embodied.types import ActionGroup, ActionSpec, Observation, StateSpec, Step, TaskSpec

POSITION = ("x", "y", "z")
QUATERNION = ("x", "y", "z", "w")
_XYZW = [1, 2, 3, 0]  # from MuJoCo's order
_DOWN_XYZW = np.array([1.0, 1.0, 0.0, 0.0]) / np.sqrt(2.0)  # a gripper that points down, closing along y


class TabletopTask(MujocoTask):
    """One task of the tabletop world; a family adds its things, where they start, and what counts as success.

    What a task must remember of an episode are numbers in the simulation's own state (`memory_names`), so that
    `restore(physics_state())` brings back everything.
    """

    name: ClassVar[str]  # the catalogue's
    instructions: ClassVar[Instructions]
    stage_names: ClassVar[tuple[str, ...]]  # of the funnel, in its order; the last one before success
    memory_names: ClassVar[tuple[str, ...]] = ()
    cabinet: ClassVar[bool] = False

    def __init__(
        self,
        *,
        robot: str = "Panda",
        control_hz: float = 20,
        horizon: int = 160,
        cameras: Sequence[str] = (),
        camera_size: int = 96,
        instructions: str = "canonical",
        variant: str = "base",
        dynamics: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            robot: one of `ROBOTS`.
            control_hz: actions a second.
            horizon: control steps of one episode.
            cameras: names of cameras to render; needs OpenGL, unless empty.
            camera_size: pixels, both sides.
            instructions: "canonical", "training" or "held_out": the sentences that starts choose from.
            variant: id of one of this task's variants (`tabletop_variants`).
            dynamics: fields of `Dynamics` that differ from the variant's.

        Raises:
            UserError: an unknown robot, camera, variant, kind of sentences or field of the dynamics, a control rate
                that is no whole number of physics steps, a horizon or camera size below 1, or cameras without a
                working OpenGL back end.
        """
        require_positive("task.horizon", horizon)
        require_positive("task.camera_size", camera_size)
        check_choice(instructions)
        if robot not in ROBOTS:
            raise UserError(expected="a robot for task.robot", found=f"'{robot}'", remedy=nearest(robot, ROBOTS))
        self.robot, self.variant, self._choice = robot, variant, instructions
        self._world = tabletop_variants.variant(self.name, variant).of(TabletopWorld(robot=robot, cabinet=self.cabinet))
        self._world = dataclasses.replace(self._world, dynamics=_changed(self._world.dynamics, dynamics or {}))
        self._substeps = _substeps(control_hz)
        names = ("success_ever", *self.stage_names, *self.memory_names)
        self._memory_places = {name: place for place, name in enumerate(names)}
        self._simulations: dict[tuple[Item, ...], TabletopSimulation] = {}
        self._sim: TabletopSimulation | None = None
        self._start_id = 0
        known = (*(camera.name for camera in self._world.look.cameras), WRIST_CAMERA)
        self.spec = TaskSpec(
            task=self.name,
            state=(*_arm_specs(), *self.object_specs()),
            cameras=camera_specs(checked_cameras(cameras, known, self.name), camera_size, visual_group=VISUAL_GROUP),
            action=_ACTION,
            control_hz=float(control_hz),
            horizon=int(horizon),
        )
        self._renderer = CameraRenderer(self.spec.cameras, visual_group=VISUAL_GROUP) if self.spec.cameras else None

    @abstractmethod
    def object_specs(self) -> tuple[StateSpec, ...]:
        """State vectors of the task's things, after those of the arm."""

    @abstractmethod
    def read_objects(self) -> dict[str, np.ndarray]:
        """The present value of every vector in `object_specs`, float64 [d]."""

    @abstractmethod
    def begin(self, start_id: int) -> tuple[Item, ...]:
        """Decide what the start is like. Returns the items of its scene."""

    @abstractmethod
    def place(self) -> None:
        """Put everything where the start has it."""

    @abstractmethod
    def judge(self) -> tuple[dict[str, bool], bool]:
        """After a step: which stages hold now, and whether the task is solved now. Updates the memory."""

    @abstractmethod
    def words(self) -> dict[str, str]:
        """What the instruction's fields stand for at the present start."""

    def remember_start(self) -> None:
        """Keep what `judge` needs to know of the settled start in the memory."""

    @property
    def sim(self) -> TabletopSimulation:
        """The live world of the present episode.

        Raises:
            UserError: no reset yet.
        """
        if self._sim is None:
            raise UserError(expected="reset before a simulation", found="no reset", remedy="call task.reset(start_id)")
        return self._sim

    @property
    def model(self) -> MjModel:
        return self.sim.model

    @property
    def data(self) -> MjData:
        return self.sim.data

    def reset(self, start_id: int) -> Observation:
        """Go to the addressed start. The same id gives bit-equal observations, whatever came before.

        Raises:
            UserError: the id is negative or too large for a seed (2**32).
        """
        check_start(start_id)
        self._start_id = start_id
        self._sim = self._simulation(self.begin(start_id))
        self._sim.reset()
        self.place()
        self._sim.settle()
        self.remember_start()
        self._begin_episode()
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        """Execute one action, float32 [7]; values outside the spec's bounds are clipped.

        Raises:
            UserError: the action has another shape, or is not finite; no reset yet; the horizon is passed.
        """
        command = self._command(action)
        self.sim.step(command)
        stages, success = self.judge()
        self._advance(success)
        reached = self._remember(stages)
        return self._outcome(self._observe(), float(success), success, stages=reached)

    def restore(self, state: np.ndarray) -> Observation:
        """Go to a physics state of the present start: from there on everything happens again bit for bit.

        Args:
            state: what `physics_state` gave, at any step of an episode from this start.

        Raises:
            UserError: no reset yet, or a state of another size.
        """
        state = np.asarray(state, dtype=np.float64)
        expected = mujoco.mj_stateSize(self.model, STATE)
        if state.shape != (expected,):
            raise UserError(
                expected=f"a physics state of {expected} numbers",
                found=f"shape {list(state.shape)}",
                remedy="reset to the state's own start and variant first",
            )
        self.sim.restore(state)
        self._begin_episode()
        self._steps = round(self.data.time * self.spec.control_hz)
        self._success_ever = bool(self.memory("success_ever"))
        return self._observe()

    def set_dynamics(self, dynamics: Dynamics) -> None:
        """Change physics in place, from the next step on, in this episode and the next ones.

        Raises:
            UserError: servo values for another number of joints than the robot has.
        """
        self._world = dataclasses.replace(self._world, dynamics=dynamics)
        for simulation in self._simulations.values():
            simulation.set_dynamics(dynamics)

    @property
    def dynamics(self) -> Dynamics:
        return self._world.dynamics

    def memory(self, name: str) -> float:
        """One of the numbers kept of the present episode."""
        return float(self.sim.memory[self._memory_places[name]])

    def keep(self, name: str, value: float) -> None:
        """Put one of the numbers of `memory_names`."""
        self.sim.memory[self._memory_places[name]] = value

    def physics_state(self) -> np.ndarray:
        """All that the future depends on (MuJoCo's integration state), float64 [n]."""
        return self.sim.state()

    def make_drawing(self) -> MujocoScene:
        return MujocoScene(self.model, tool_body="eef", visual_group=VISUAL_GROUP, state=STATE)

    def eef_position(self) -> np.ndarray:
        """Of the point between the fingertips, float64 [3], m."""
        return self.sim.eef_position()

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()

    def _simulation(self, items: tuple[Item, ...]) -> TabletopSimulation:
        """One for each set of items, made when a start first asks for it."""
        if items not in self._simulations:
            world = dataclasses.replace(self._world, items=items)
            self._simulations[items] = TabletopSimulation(world, self._substeps)
        return self._simulations[items]

    def _remember(self, stages: dict[str, bool]) -> dict[str, bool]:
        """The stages reached so far, this step's included."""
        if self._success_ever:
            self.keep("success_ever", 1.0)
        for name in self.stage_names:
            if stages[name]:
                self.keep(name, 1.0)
        return {name: bool(self.memory(name)) for name in self.stage_names}

    def _observe(self) -> Observation:
        state = {**self._read_arm(), **self.read_objects()}
        self._observation = Observation(
            state={spec.name: np.asarray(state[spec.name], dtype=np.float32) for spec in self.spec.state},
            images=self._renderer.render(self.model, self.data) if self._renderer is not None else {},
            instruction=self.instructions.sentence(self._choice, self._start_id, self.words()),
            time_s=self._time_s,
        )
        return self._observation

    def _read_arm(self) -> dict[str, np.ndarray]:
        position, quaternion = self.sim.eef_position(), self.sim.eef_quaternion()
        commanded, commanded_quaternion = self.sim.commanded_pose()
        turn, inverse = np.empty(3), np.empty(4)
        mujoco.mju_negQuat(inverse, quaternion)
        mujoco.mju_mulQuat(inverse, commanded_quaternion, inverse)
        mujoco.mju_quat2Vel(turn, inverse, 1.0)
        xyzw = quaternion[_XYZW]
        return {
            "eef_position": position,
            # q and -q are one rotation: of the two, the one on the downward gripper's side.
            "eef_quaternion": xyzw if xyzw @ _DOWN_XYZW >= 0.0 else -xyzw,
            "gripper_qpos": self.sim.finger_positions(),
            "command_displacement": commanded - position,
            "command_turn": turn,
        }


def pose_specs(name: str) -> tuple[StateSpec, StateSpec]:
    """Position and rotation of a body, as `read_pose` gives them."""
    return StateSpec(f"{name}_position", POSITION, "m"), StateSpec(f"{name}_quaternion", QUATERNION, "quaternion xyzw")


def read_pose(sim: TabletopSimulation, name: str, body: str) -> dict[str, np.ndarray]:
    return {f"{name}_position": sim.position(body), f"{name}_quaternion": sim.quaternion(body)[_XYZW]}


def upright(yaw: float) -> Rotation:
    """Turned about the vertical, rad."""
    return Rotation.from_euler("z", yaw)


def _arm_specs() -> tuple[StateSpec, ...]:
    return (
        StateSpec("eef_position", POSITION, "m"),
        StateSpec("eef_quaternion", QUATERNION, "quaternion xyzw"),
        StateSpec("gripper_qpos", FINGER_JOINTS, "m"),
        # Where the newest targets of the servos will put the end effector, from where it is.
        StateSpec("command_displacement", POSITION, "m"),
        StateSpec("command_turn", POSITION, "rad"),
    )


_POSITION_ELEMENTS, _ROTATION_ELEMENTS = POSITION, ("rotation_x", "rotation_y", "rotation_z")
_ACTION = ActionSpec(
    elements=(*_POSITION_ELEMENTS, *_ROTATION_ELEMENTS, "gripper"),
    units=(f"{POSITION_SCALE_M:g} m",) * 3 + (f"{ROTATION_SCALE_RAD:g} rad",) * 3 + ("1 closes, -1 opens",),
    low=(-1.0,) * 7,
    high=(1.0,) * 7,
    binary=(False,) * 6 + (True,),
    representation="delta",
    rotation="axis_angle",
    groups=(
        ActionGroup("tool_position", "position", _POSITION_ELEMENTS, scale=POSITION_SCALE_M),
        ActionGroup("tool_rotation", "rotation", _ROTATION_ELEMENTS, scale=ROTATION_SCALE_RAD),
    ),
)


def _changed(dynamics: Dynamics, changes: Mapping[str, Any]) -> Dynamics:
    """
    Raises:
        UserError: a field that dynamics do not have, or a value out of range.
    """
    known = [field.name for field in dataclasses.fields(Dynamics)]
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            raise UserError(expected="fields of task.dynamics", found=f"'{name}'", remedy=nearest(str(name), known))
        per_joint = name in ("stiffness", "damping")
        numbers = (value,) if isinstance(value, (int, float)) else value
        values[name] = tuple(float(number) for number in numbers) if per_joint else value
    return dataclasses.replace(dynamics, **values)


def _substeps(control_hz: float) -> int:
    """Physics steps of one control step."""
    substeps = 1.0 / (control_hz * TIMESTEP_S) if control_hz > 0 else 0.0
    if substeps < 1 or abs(substeps - round(substeps)) > 1e-6:
        raise UserError(
            expected=f"a task.control_hz that divides the physics rate of {1 / TIMESTEP_S:g} Hz",
            found=f"{control_hz:g}",
            remedy="use 20, or 5, 10, 25, 40, 50",
        )
    return round(substeps)
