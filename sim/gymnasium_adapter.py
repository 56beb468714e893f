"""Tasks as Gymnasium environments, and Gymnasium environments as tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from embodied.errors import UserError
from embodied.protocols import Task
from embodied.sim.global_random import GlobalRandomStream
from embodied.sim.mujoco_scene import MujocoScene
from embodied.sim.opengl import mujoco
from embodied.sim.simulated_task import SimulatedTask
from embodied.types import UNKNOWN_UNIT, ActionSpec, CameraSpec, Observation, Scene, StateSpec, Step, TaskSpec

# (observation, reward, info) of one step -> success after it
SuccessCheck = Callable[[Any, float, Mapping[str, Any]], bool]

_START_IDS = 2**32


def as_gymnasium(task: Task) -> gymnasium.Env:
    """The task as a Gymnasium environment.

    Observations are a flat Dict: every state vector (float32, unbounded, because a simulated pose has no honest
    bound) and every camera (uint8 [h w 3]) under its own name. `reset(seed=...)` goes to the start of that id;
    without a seed, the environment's own generator chooses one. `info` holds "start_id" after a reset, "success" and
    "success_ever" after a step. Episodes run to the task's horizon and are then truncated.
    """
    return _TaskEnvironment(task)


class _TaskEnvironment(gymnasium.Env):
    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(self, task: Task) -> None:
        self._task = task
        spec = task.spec
        low, high = (np.array(bound, dtype=np.float32) for bound in (spec.action.low, spec.action.high))
        self.action_space = spaces.Box(low, high, dtype=np.float32)
        boxes: dict[str, spaces.Space] = {
            state.name: spaces.Box(-np.inf, np.inf, (state.size,), np.float32) for state in spec.state
        }
        for camera in spec.cameras:
            boxes[camera.name] = spaces.Box(0, 255, (camera.height, camera.width, 3), np.uint8)
        self.observation_space = spaces.Dict(boxes)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        start_id = seed % _START_IDS if seed is not None else int(self.np_random.integers(_START_IDS))
        return _flat(self._task.reset(start_id)), {"start_id": start_id}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        step = self._task.step(action)
        return _flat(step.observation), step.reward, step.terminated, step.truncated, dict(step.info)

    def close(self) -> None:
        self._task.close()


def _flat(observation: Observation) -> dict[str, np.ndarray]:
    return {**observation.state, **observation.images}


def from_gymnasium(
    env: gymnasium.Env,
    *,
    task: str,
    control_hz: float,
    horizon: int,
    success: SuccessCheck | str | None,
    instruction: str = "",
) -> Task:
    """Any Gymnasium environment with a Box action space as a task.

    Args:
        env: observations are a Box, or a Dict of Boxes. A uint8 Box [h w 3] is a camera; every other Box a state
            vector (flattened), called as in the Dict, or "observation".
        task: the name that stores and checkpoints carry.
        control_hz: steps of the environment a second.
        horizon: steps of one episode.
        success: a key of `info`, or a function of (observation, reward, info) of a step.
        instruction: what the task asks for, in words.

    Raises:
        UserError: another kind of space, unbounded actions, no success signal, or an environment that truncates
            before the horizon.
    """
    return GymnasiumTask(env, task, control_hz, horizon, success, instruction)


class GymnasiumTask(SimulatedTask):
    """What `from_gymnasium` returns; its docstring explains the arguments."""

    def __init__(
        self,
        env: gymnasium.Env,
        task: str,
        control_hz: float,
        horizon: int,
        success: SuccessCheck | str | None,
        instruction: str,
    ) -> None:
        if success is None:
            raise UserError(
                expected=f"a success signal for {task}",
                found="none",
                remedy="name a key of the environment's info, or give a function of (observation, reward, info)",
            )
        _require_time(env, task, horizon)
        observations = _observation_boxes(env.observation_space, task)
        self.spec = TaskSpec(
            task=task,
            state=tuple(_state_spec(name, box) for name, box in observations.items() if not _is_image(box)),
            cameras=tuple(
                CameraSpec(name, box.shape[0], box.shape[1]) for name, box in observations.items() if _is_image(box)
            ),
            action=_action_spec(env.action_space, task),
            control_hz=float(control_hz),
            horizon=int(horizon),
        )
        self._env = env
        self._simulator: Any = env.unwrapped  # of MuJoCo, if it has a model and its data
        self._success = success
        self._instruction = instruction
        self._random = GlobalRandomStream()
        self._mujoco_scene: MujocoScene | None = None
        self._running = False

    @property
    def env(self) -> gymnasium.Env:
        """The environment itself, for an expert that reads its state."""
        return self._env

    def reset(self, start_id: int) -> Observation:
        self._random.seed(start_id % _START_IDS)
        with self._random:
            observation, _ = self._env.reset(seed=start_id)
        self._mujoco_scene = None
        self._begin_episode()
        self._running = True
        return self._observe(observation)

    def step(self, action: np.ndarray) -> Step:
        command = self.spec.action.clipped(action).astype(self._env.action_space.dtype)
        if not self._running:
            raise UserError(
                expected="reset before the first step and after an episode's end",
                found=f"step {(self._steps or 0) + 1} of a horizon of {self.spec.horizon}",
                remedy="call task.reset(start_id)",
            )
        with self._random:
            observation, reward, terminated, truncated, info = self._env.step(command)
        success = self._succeeded(observation, float(reward), info)
        self._advance(success)
        truncated = bool(truncated) or (self._steps or 0) >= self.spec.horizon
        self._running = not (terminated or truncated)
        return Step(
            observation=self._observe(observation),
            reward=float(reward),
            terminated=bool(terminated),
            truncated=truncated,
            info={"success": success, "success_ever": self._success_ever},
        )

    def physics_state(self) -> np.ndarray:
        """Of a MuJoCo environment; empty for any other, which cannot be drawn again."""
        scene = self._drawing()
        return scene.physics_state(self._simulator.data) if scene is not None else np.empty(0)

    def scene(self) -> Scene:
        """Of a MuJoCo environment; without bodies for any other."""
        scene = self._drawing()
        return scene.scene if scene is not None else Scene(bodies=(), geoms=(), tool=0)

    def body_poses(self, physics_states: np.ndarray) -> np.ndarray:
        scene = self._drawing()
        return scene.body_poses(physics_states) if scene is not None else np.empty((len(physics_states), 0, 7), "f4")

    def close(self) -> None:
        self._env.close()

    def _succeeded(self, observation: Any, reward: float, info: Mapping[str, Any]) -> bool:
        if callable(self._success):
            return bool(self._success(observation, reward, info))
        if self._success not in info:
            raise UserError(
                expected=f"the success signal '{self._success}' in the info of every step of {self.spec.task}",
                found="keys " + (", ".join(sorted(map(str, info))) or "(none)"),
                remedy="name another key, or give a function of (observation, reward, info)",
            )
        return bool(info[self._success])

    def _observe(self, observation: Any) -> Observation:
        parts = (
            observation
            if isinstance(self._env.observation_space, spaces.Dict)
            else {_only_name(self.spec): observation}
        )
        self._observation = Observation(
            state={spec.name: np.array(parts[spec.name], np.float32).reshape(-1) for spec in self.spec.state},
            images={camera.name: np.array(parts[camera.name], np.uint8) for camera in self.spec.cameras},
            instruction=self._instruction,
            time_s=self._time_s,
        )
        return self._observation

    def _drawing(self) -> MujocoScene | None:
        model = getattr(self._simulator, "model", None)
        if self._mujoco_scene is None and isinstance(model, mujoco.MjModel):
            self._mujoco_scene = MujocoScene(model)
        return self._mujoco_scene


def _only_name(spec: TaskSpec) -> str:
    return (*spec.state, *spec.cameras)[0].name


def _is_image(box: spaces.Box) -> bool:
    return box.dtype == np.uint8 and len(box.shape) == 3 and box.shape[2] == 3


def _observation_boxes(space: spaces.Space, task: str) -> dict[str, spaces.Box]:
    """Name -> Box, in the space's own order."""
    if isinstance(space, spaces.Box):
        return {"image" if _is_image(space) else "observation": space}
    parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {}
    boxes = {name: part for name, part in parts.items() if isinstance(part, spaces.Box)}
    others = {name: part for name, part in parts.items() if name not in boxes}
    if not boxes or others:
        raise UserError(
            expected=f"Box observations, or a Dict of Boxes, for {task}",
            found=str(others or space),
            remedy="wrap the environment, for example in gymnasium.wrappers.FlattenObservation",
        )
    return boxes


def _state_spec(name: str, box: spaces.Box) -> StateSpec:
    return StateSpec(name, tuple(f"{name}_{index}" for index in range(int(np.prod(box.shape)))), UNKNOWN_UNIT)


def _action_spec(space: spaces.Space, task: str) -> ActionSpec:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
        raise UserError(
            expected=f"a one-dimensional, bounded Box of actions for {task}",
            found=str(space),
            remedy="wrap the environment, for example in gymnasium.wrappers.RescaleAction",
        )
    size = space.shape[0]
    return ActionSpec(
        elements=tuple(f"action_{index}" for index in range(size)),
        units=(UNKNOWN_UNIT,) * size,
        low=tuple(map(float, space.low)),
        high=tuple(map(float, space.high)),
        binary=(False,) * size,
        representation="absolute",
        rotation="none",
    )


def _require_time(env: gymnasium.Env, task: str, horizon: int) -> None:
    limit = env.spec.max_episode_steps if env.spec is not None else None
    if horizon < 1 or (limit is not None and limit < horizon):
        raise UserError(
            expected=f"a horizon of {task} from 1 to the environment's own limit of {limit or 'no'} steps",
            found=str(horizon),
            remedy="choose another horizon, or make the environment with max_episode_steps=-1",
        )
