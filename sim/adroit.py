"""The four tasks of the Adroit hand: gymnasium-robotics' environments with named state vectors and addressed starts.

A. Rajeswaran et al., "Learning Complex Dexterous Manipulation with Deep Reinforcement Learning and Demonstrations"
(arXiv:1709.10087), as `AdroitHand{Door,Hammer,Pen,Relocate}-v1` of gymnasium-robotics 1.4.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from embodied.errors import UserError
from embodied.sim.mujoco_scene import MujocoScene
from embodied.sim.mujoco_task import MujocoTask
from embodied.sim.opengl import MjData, MjModel, mujoco, without_opengl
from embodied.sim.simulated_task import check_start
from embodied.types import ActionSpec, Geom, Observation, Scene, StateSpec, Step, TaskSpec

TOOL = "palm"  # the body that the actions move
_AXES = ("x", "y", "z")
# The joints of a loose object, along its own axes at rest, not the world's.
_SLIDES = ("OBJTx", "OBJTy", "OBJTz")
_HINGES = ("OBJRx", "OBJRy", "OBJRz")


@functools.cache
def import_gymnasium() -> Any:
    """Gymnasium with gymnasium-robotics' environments registered, without the notes that the import prints.

    Raises:
        UserError: gymnasium-robotics is not installed.
    """
    silence = io.StringIO()
    with without_opengl(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        import gymnasium

        try:
            import gymnasium_robotics
        except ModuleNotFoundError as error:
            raise UserError(
                expected="gymnasium-robotics, which brings the Adroit tasks",
                found=str(error),
                remedy="pip install 'embodied-policies[tasks]'",
            ) from error
        gymnasium.register_envs(gymnasium_robotics)
    return gymnasium


class AdroitTask(MujocoTask):
    """One Adroit environment as a `Task`.

    The state vectors, side by side, are the environment's own observation, element by element, so that networks made
    for it fit. It is read as the environment gives it: joint positions after the step, but positions of bodies and
    sites from the beginning of the last physics substep, 2 ms before. Actions are target positions of the joints,
    absolute, scaled to -1 .. 1. Reward and success are the environment's own.
    """

    name: ClassVar[str]  # the catalogue's
    environment: ClassVar[str]  # gymnasium-robotics'
    instruction: ClassVar[str]
    _poses_lag = False

    def __init__(self, *, horizon: int = 200) -> None:
        """
        Args:
            horizon: control steps of one episode.

        Raises:
            UserError: a horizon below 1, or gymnasium-robotics is missing.
        """
        if horizon < 1:
            raise UserError(expected="task.horizon of at least 1", found=str(horizon), remedy="set task.horizon higher")
        # -1: the horizon is the task's, not a wrapper's.
        made = import_gymnasium().make(self.environment, max_episode_steps=-1, disable_env_checker=True)
        self._env: Any = made.unwrapped
        self.spec = TaskSpec(
            task=self.name,
            state=self.state_specs(),
            cameras=(),
            action=_action_spec(self.model),
            control_hz=round(1.0 / self._env.dt, 6),
            horizon=int(horizon),
        )

        ends = np.cumsum([state.size for state in self.spec.state]).tolist()
        self._places = {
            state.name: slice(end - state.size, end) for state, end in zip(self.spec.state, ends, strict=True)
        }

    @abstractmethod
    def state_specs(self) -> tuple[StateSpec, ...]:
        """The environment's observation, cut into named vectors, in its order."""

    @property
    def model(self) -> MjModel:
        """The compiled model; a reset moves the bodies that differ from start to start."""
        return self._env.model

    @property
    def data(self) -> MjData:
        """The live simulation. Its poses belong to the physics state, where the environment's lag a substep behind."""
        if self._poses_lag:
            mujoco.mj_kinematics(self.model, self._env.data)
            self._poses_lag = False
        return self._env.data

    def reset(self, start_id: int) -> Observation:
        """Go to the addressed start: the environment's own, seeded with the id. The same id, the same observations.

        Raises:
            UserError: the id is negative or too large for a seed (2**32).
        """
        check_start(start_id)
        vector, _ = self._env.reset(seed=int(start_id))
        self._begin_episode()
        return self._observe(vector)

    def step(self, action: np.ndarray) -> Step:
        """Execute one action, float32 [A]; values outside the spec's bounds are clipped.

        Raises:
            UserError: the action has another shape, or is not finite; no reset yet; the horizon is passed.
        """
        command = self._command(action)
        vector, reward, _, _, info = self._env.step(command)
        self._poses_lag = True
        success = bool(info["success"])
        self._advance(success)
        return self._outcome(self._observe(vector), float(reward), success)

    def eef_position(self) -> np.ndarray:
        """Of the palm, in the world's frame, float64 [3], m."""
        return np.array(self.data.body(TOOL).xpos)

    def make_drawing(self) -> MujocoScene:
        """The tool is the palm."""
        return MujocoScene(self.model, tool_body=TOOL)

    def close(self) -> None:
        self._env.close()

    def hand_joints(self) -> StateSpec:
        """Angles of the driven hinges of arm and hand, from the arm to the thumb's tip."""
        return StateSpec("hand_joints", _driven_joints(self.model, mujoco.mjtJoint.mjJNT_HINGE), "rad")

    def _observe(self, vector: np.ndarray) -> Observation:
        values = np.array(vector, dtype=np.float32)
        self._observation = Observation(
            state={name: values[place] for name, place in self._places.items()},
            instruction=self.instruction,
            time_s=self._time_s,
        )
        return self._observation


class DoorTask(AdroitTask):
    """Turn the latch and pull the door open. Success: its hinge is at 1.35 rad or more. The door's place differs."""

    name: ClassVar[str] = "adroit/door"
    environment: ClassVar[str] = "AdroitHandDoor-v1"
    instruction: ClassVar[str] = "open the door"

    def state_specs(self) -> tuple[StateSpec, ...]:
        return (
            self.hand_joints(),
            StateSpec("latch", ("angle",), "rad"),
            StateSpec("door", ("angle",), "rad"),
            StateSpec("palm_position", _AXES, "m"),
            StateSpec("handle_position", _AXES, "m"),
            StateSpec("handle_to_palm", _AXES, "m"),
            StateSpec("door_open", ("open",), "1 past 1 rad, -1 before"),
        )


class HammerTask(AdroitTask):
    """Take the hammer and drive the nail in. Success: it is less than 1 cm from its goal. The board's height differs.

    The environment clips velocities and the nail's force to -1 .. 1.
    """

    name: ClassVar[str] = "adroit/hammer"
    environment: ClassVar[str] = "AdroitHandHammer-v1"
    instruction: ClassVar[str] = "drive the nail into the board"

    def state_specs(self) -> tuple[StateSpec, ...]:
        return (
            self.hand_joints(),
            StateSpec("nail_insertion", ("depth",), "m"),
            StateSpec("hammer_velocity", _SLIDES, "m/s, clipped to 1"),
            StateSpec("hammer_angular_velocity", _HINGES, "rad/s, clipped to 1"),
            StateSpec("palm_position", _AXES, "m"),
            StateSpec("hammer_position", _AXES, "m"),
            StateSpec("hammer_rotation", _AXES, "rad, intrinsic x y z"),
            StateSpec("nail_position", _AXES, "m"),
            StateSpec("nail_force", ("force",), "N, clipped to 1"),
        )


class PenTask(AdroitTask):
    """Turn a pen in the hand to a given direction.

    Success: its centre is less than 7.5 cm from the target's and the cosine between the two directions above 0.95.
    The target's direction differs; the arm does not move.
    """

    name: ClassVar[str] = "adroit/pen"
    environment: ClassVar[str] = "AdroitHandPen-v1"
    instruction: ClassVar[str] = "turn the pen to the target's direction"

    def state_specs(self) -> tuple[StateSpec, ...]:
        return (
            self.hand_joints(),
            StateSpec("pen_position", _AXES, "m"),
            StateSpec("pen_velocity", _SLIDES, "m/s"),
            StateSpec("pen_angular_velocity", _HINGES, "rad/s"),
            StateSpec("pen_direction", _AXES, "unit vector"),
            StateSpec("target_direction", _AXES, "unit vector"),
            StateSpec("target_to_pen", _AXES, "m"),
            StateSpec("direction_difference", _AXES, "difference of unit vectors, pen minus target"),
        )


class RelocateTask(AdroitTask):
    """Carry a ball to a place in the air. Success: it is less than 10 cm from there. Both places differ."""

    name: ClassVar[str] = "adroit/relocate"
    environment: ClassVar[str] = "AdroitHandRelocate-v1"
    instruction: ClassVar[str] = "carry the ball to the target"

    def state_specs(self) -> tuple[StateSpec, ...]:
        return (
            StateSpec("arm_position", _driven_joints(self.model, mujoco.mjtJoint.mjJNT_SLIDE), "m"),
            self.hand_joints(),
            StateSpec("ball_to_palm", _AXES, "m"),
            StateSpec("target_to_palm", _AXES, "m"),
            StateSpec("target_to_ball", _AXES, "m"),
        )

    def scene(self) -> Scene:
        """As for the other tasks, with the target, which the model has only as a site."""
        scene, site = super().scene(), self.model.site("target")
        radius = float(site.size[0])
        target = Geom(
            body=scene.bodies.index("world"),
            name="target",
            kind="sphere",
            size=(radius, radius, radius),
            position=tuple(map(float, site.pos)),
            quaternion=(1.0, 0.0, 0.0, 0.0),
            rgba=tuple(map(float, site.rgba)),
        )
        return dataclasses.replace(scene, geoms=(*scene.geoms, target))


def _driven_joints(model: MjModel, kind: Any) -> tuple[str, ...]:
    """Names of the joints of one kind that an actuator moves, in the actuators' order, which is the joints'."""
    joints = [model.joint(int(joint_id)) for joint_id in model.actuator_trnid[:, 0]]
    return tuple(joint.name for joint in joints if joint.type[0] == kind)


def _action_spec(model: MjModel) -> ActionSpec:
    """A target for every driven joint; -1 and 1 are the ends of its actuator's range."""
    joints = [model.joint(int(joint_id)) for joint_id in model.actuator_trnid[:, 0]]
    low, high = model.actuator_ctrlrange.T
    return ActionSpec(
        elements=tuple(joint.name for joint in joints),
        units=tuple(
            f"{half:g} {_joint_unit(joint)} from {middle:g} {_joint_unit(joint)}"
            for joint, half, middle in zip(joints, (high - low) / 2, (high + low) / 2, strict=True)
        ),
        low=(-1.0,) * len(joints),
        high=(1.0,) * len(joints),
        binary=(False,) * len(joints),
        representation="absolute",
        rotation="none",
    )


def _joint_unit(joint: Any) -> str:
    return "m" if joint.type[0] == mujoco.mjtJoint.mjJNT_SLIDE else "rad"
