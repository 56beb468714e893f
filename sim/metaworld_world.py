"""Meta-World's fifty tasks for one Sawyer arm.

Yu et al. 2019, "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning"; the package
`metaworld`, version 3.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from embodied.catalog import nearest
from embodied.errors import UserError
from embodied.sim.camera_renderer import CameraRenderer, camera_specs
from embodied.sim.global_random import GlobalRandomStream
from embodied.sim.mujoco_scene import MujocoScene
from embodied.sim.mujoco_task import MujocoTask
from embodied.sim.opengl import MjData, MjModel, mujoco, without_opengl
from embodied.sim.simulated_task import check_start
from embodied.types import ActionSpec, Geom, Observation, Scene, StateSpec, Step, TaskSpec

FAMILY = "metaworld"
_TOOL_BODY = "hand"
_POSITION = ("x", "y", "z")
_GOAL_RADIUS_M = 0.02  # in replays; Meta-World draws its goals as small balls, too
_OPENING_M = 0.1  # Meta-World divides the distance between the fingers by it and cuts the result at 1
# Environments that take an object's rotation from a matrix and give it as x y z w; the others give MuJoCo's w x y z.
SCALAR_LAST = frozenset(
    {
        "coffee-pull-v3",
        "coffee-push-v3",
        "door-close-v3",
        "door-open-v3",
        "lever-pull-v3",
        "peg-insert-side-v3",
        "pick-place-v3",
        "pick-place-wall-v3",
        "plate-slide-back-side-v3",
        "plate-slide-back-v3",
        "plate-slide-side-v3",
        "plate-slide-v3",
        "push-back-v3",
        "push-v3",
        "push-wall-v3",
        "reach-v3",
        "reach-wall-v3",
        "shelf-place-v3",
        "soccer-v3",
        "stick-pull-v3",
        "stick-push-v3",
        "sweep-into-v3",
    }
)


@functools.cache
def import_metaworld() -> Any:
    """The package, imported without OpenGL.

    Raises:
        UserError: it is not installed.
    """
    try:
        with without_opengl(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import metaworld
            import metaworld.policies
    except ImportError as error:
        raise UserError(
            expected="the package metaworld, for tasks metaworld/*",
            found=str(error),
            remedy="pip install 'embodied-policies[tasks]'",
        ) from error
    return metaworld


def environment_names() -> list[str]:
    """Every environment of the package, for example "reach-v3"."""
    return sorted(import_metaworld().ALL_V3_ENVIRONMENTS)


class MetaworldTask(MujocoTask):
    """One Meta-World environment as a `Task`, with the goal among its observations.

    Actions move the hand's target and drive the fingers. State vectors are the parts of Meta-World's observation
    (without the frame before and the padding), read after every pose is settled: the package's own observation after a
    reset shows some objects where they stood before. Success is the environment's `info["success"]`.
    """

    def __init__(
        self,
        *,
        environment: str,
        instruction: str = "",
        horizon: int = 200,
        cameras: Sequence[str] = (),
        camera_size: int = 96,
    ) -> None:
        """
        Args:
            environment: Meta-World's name, for example "reach-v3".
            instruction: what the task asks for, in words.
            horizon: control steps of one episode, at most the environment's own 500.
            cameras: names of cameras to render; needs OpenGL, unless empty.
            camera_size: pixels, both sides.

        Raises:
            UserError: an unknown environment or camera, a horizon or camera size out of range, cameras without a
                working OpenGL back end, or Meta-World is not installed.
        """
        self._env = _make_environment(environment)
        _require_between("task.horizon", horizon, 1, self._env.max_path_length)
        _require_between("task.camera_size", camera_size, 1, None)
        self.environment = environment
        self._instruction = instruction
        self._parts = self._state_parts()
        self.spec = TaskSpec(
            task=f"{FAMILY}/{environment}",
            state=tuple(self._parts),
            cameras=camera_specs(self._checked(cameras), camera_size),
            action=_action_spec(self._env),
            control_hz=1.0 / self._env.dt,
            horizon=int(horizon),
        )
        self._renderer = CameraRenderer(self.spec.cameras) if self.spec.cameras else None

    @property
    def model(self) -> MjModel:
        """The compiled model; resets move its bodies."""
        return self._env.model

    @property
    def data(self) -> MjData:
        """The live simulation."""
        return self._env.data

    def reset(self, start_id: int) -> Observation:
        """Go to the addressed start. The same id gives bit-equal observations, whatever came before.

        Raises:
            UserError: the id is negative or too large for a seed (2**32).
        """
        check_start(start_id)
        self._env.seed(start_id)
        self._env.reset()
        mujoco.mj_kinematics(self.model, self.data)  # some environments move a body last
        self._begin_episode()
        return self._observe(self.metaworld_observation())

    def step(self, action: np.ndarray) -> Step:
        """Execute one action, float32 [4]; values outside the spec's bounds are clipped.

        Raises:
            UserError: the action has another shape, or is not finite; no reset yet; the horizon is passed.
        """
        command = self._command(action).astype(np.float32)
        vector, reward, _, _, info = self._env.step(command)
        success = bool(info["success"])
        self._advance(success)
        return self._outcome(self._observe(vector), float(reward), success)

    def metaworld_observation(self) -> np.ndarray:
        """The present state as Meta-World's own observation, float64 [39].

        Hand and gripper (4), objects (14, padded with zeros), the same 18 again in place of the frame before, the goal
        (3). A new array at each call: some of Meta-World's policies write into it.
        """
        frame = self._env._get_curr_obs_combined_no_goal()
        return np.concatenate([frame, frame, self._env._get_pos_goal()])

    def scene(self) -> Scene:
        """The visual geometry, and the goal as a green ball; the tool is the hand."""
        scene = super().scene()
        goal = Geom(
            body=scene.bodies.index("world"),
            name="goal",
            kind="sphere",
            size=(_GOAL_RADIUS_M,) * 3,
            position=tuple(map(float, self._env._get_pos_goal())),
            quaternion=(1.0, 0.0, 0.0, 0.0),
            rgba=(0.0, 0.8, 0.0, 0.5),
        )
        return dataclasses.replace(scene, geoms=(*scene.geoms, goal))

    def make_drawing(self) -> MujocoScene:
        return MujocoScene(self.model, tool_body=_TOOL_BODY)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._env.close()

    def eef_position(self) -> np.ndarray:
        """Of the hand, in the world's frame, float64 [3], m."""
        return np.array(self.data.body(_TOOL_BODY).xpos)

    def _state_parts(self) -> dict[StateSpec, slice]:
        """Each state vector and its place in Meta-World's observation; quaternions left at zero are no vectors."""
        vector = self.metaworld_observation()
        count = len(self._env._get_pos_objects()) // 3
        parts = {
            StateSpec("eef_position", _POSITION, "m"): slice(0, 3),
            StateSpec("gripper_opening", ("opening",), f"{_OPENING_M:g} m"): slice(3, 4),
        }
        for number in range(count):
            name, first = "object" if count == 1 else f"object_{number + 1}", 4 + 7 * number
            parts[StateSpec(f"{name}_position", _POSITION, "m")] = slice(first, first + 3)
            if vector[first + 3 : first + 7].any():
                unit = "quaternion xyzw" if self.environment in SCALAR_LAST else "quaternion wxyz"
                elements = tuple(unit.rpartition(" ")[2])
                parts[StateSpec(f"{name}_quaternion", elements, unit)] = slice(first + 3, first + 7)
        return parts | {StateSpec("goal_position", _POSITION, "m"): slice(36, 39)}

    def _observe(self, vector: np.ndarray) -> Observation:
        """What Meta-World's observation, [39], says, by name."""
        self._observation = Observation(
            state={spec.name: vector[place].astype(np.float32) for spec, place in self._parts.items()},
            images=self._renderer.render(self.model, self.data) if self._renderer is not None else {},
            instruction=self._instruction,
            time_s=self._time_s,
        )
        return self._observation

    def _checked(self, cameras: Sequence[str]) -> tuple[str, ...]:
        known = [self.model.camera(place).name for place in range(self.model.ncam)]
        for place, camera in enumerate(cameras):
            if camera not in known:
                raise UserError(
                    expected=f"the name of a camera of {FAMILY}/{self.environment}",
                    found=f"'{camera}' in task.cameras",
                    remedy=nearest(camera, known),
                )
            if camera in list(cameras)[:place]:
                raise UserError(
                    expected="every camera once in task.cameras", found=f"'{camera}' twice", remedy="name it once"
                )
        return tuple(cameras)


def _make_environment(name: str) -> Any:
    """The environment that shows its goal and draws a new start from its own generator at every reset."""
    known = environment_names()
    if name not in known:
        raise UserError(expected="the name of a Meta-World environment", found=f"'{name}'", remedy=nearest(name, known))
    with GlobalRandomStream():  # the constructor's reset draws from numpy's global state
        env = import_metaworld().ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{name}-goal-observable"]()
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    return env


def _action_spec(env: Any) -> ActionSpec:
    return ActionSpec(
        elements=("x", "y", "z", "gripper"),
        units=(f"{env.action_scale:g} m",) * 3 + ("full effort: 1 closes, -1 opens",),
        low=tuple(map(float, env.action_space.low)),
        high=tuple(map(float, env.action_space.high)),
        binary=(False,) * 4,  # the experts grip with less than full effort
        representation="delta",
        rotation="none",
    )


def _require_between(key: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        bounds = f"{key} of at least {low}" if high is None else f"{key} from {low} to {high}"
        raise UserError(expected=bounds, found=str(value), remedy=f"set another {key}")
