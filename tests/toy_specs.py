"""A small task, its expert and its data, in numpy alone: a point that must reach a goal."""

from __future__ import annotations

import dataclasses

import numpy as np

from embodied.collection import CollectionSettings, collect_episode
from embodied.types import (
    ActionGroup,
    ActionSpec,
    CameraSpec,
    Episode,
    Geom,
    Observation,
    Scene,
    StateSpec,
    Step,
    TaskSpec,
)

SPEED = 0.1  # m a step at full action


def toy_spec(horizon: int = 40) -> TaskSpec:
    return TaskSpec(
        task="toy/reach",
        state=(StateSpec("point", ("x", "y"), "m"), StateSpec("goal", ("x", "y"), "m")),
        cameras=(),
        action=ActionSpec(
            elements=("dx", "dy", "grip"),
            units=("0.1 m", "0.1 m", "closed"),
            low=(-1.0, -1.0, -1.0),
            high=(1.0, 1.0, 1.0),
            binary=(False, False, True),
            representation="delta",
            rotation="none",
        ),
        control_hz=10.0,
        horizon=horizon,
    )


def image_spec(*cameras: str, size: int = 24) -> TaskSpec:
    """The toy task seen by square cameras too; "front" and "wrist" unless named."""
    views = tuple(CameraSpec(name, size, size) for name in cameras or ("front", "wrist"))
    return dataclasses.replace(toy_spec(), task="toy/reach_images", cameras=views)


def absolute_spec() -> TaskSpec:
    """The same point, told where to be rather than how to move."""
    action = dataclasses.replace(
        toy_spec().action,
        elements=("x", "y", "grip"),
        units=("m", "m", "closed"),
        representation="absolute",
        groups=(ActionGroup("target", "position", ("x", "y"), reference="point"),),
    )
    return dataclasses.replace(toy_spec(), task="toy/reach_absolute", action=action)


def arm_spec() -> TaskSpec:
    """A hand's pose as absolute target, a gripper, and a knob; the groups' elements stand apart and out of order."""
    position, turn = ("x", "y", "z"), ("turn_x", "turn_y", "turn_z")
    return TaskSpec(
        task="toy/arm",
        state=(
            StateSpec("opening", ("width",), "m"),
            StateSpec("hand_quaternion", ("x", "y", "z", "w"), "quaternion xyzw"),
            StateSpec("hand_position", position, "m"),
        ),
        cameras=(),
        action=ActionSpec(
            elements=("gripper", "turn_y", "turn_z", "turn_x", "knob", *position),
            units=("closed", *("0.5 rad",) * 3, "turns", *("0.1 m",) * 3),
            low=(-10.0,) * 8,
            high=(10.0,) * 8,
            binary=(True, *(False,) * 7),
            representation="absolute",
            rotation="axis_angle",
            groups=(
                ActionGroup("position", "position", position, scale=0.1, reference="hand_position"),
                ActionGroup("rotation", "rotation", turn, scale=0.5, reference="hand_quaternion"),
            ),
        ),
        control_hz=10.0,
        horizon=40,
    )


class ReachTask:
    """Success: within 5 cm of the goal."""

    def __init__(self, horizon: int = 40) -> None:
        self.spec = toy_spec(horizon)

    def reset(self, start_id: int) -> Observation:
        generator = np.random.default_rng(start_id)
        self.point, self.goal = generator.uniform(-1, 1, 2), generator.uniform(-1, 1, 2)
        self.t, self.ever = 0, False
        return self._observe()

    def _observe(self) -> Observation:
        state = {"point": self.point.astype(np.float32), "goal": self.goal.astype(np.float32)}
        self._observation = Observation(state=state, instruction="reach the goal", time_s=self.t * self.spec.dt_s)
        return self._observation

    def observation(self) -> Observation:
        return self._observation

    def step(self, action: np.ndarray) -> Step:
        self.point = self.point + SPEED * np.clip(action[:2], -1, 1)
        self.t += 1
        distance = float(np.linalg.norm(self.point - self.goal))
        success = distance < 0.05
        self.ever = self.ever or success
        info = {"success": success, "success_ever": self.ever}
        return Step(self._observe(), -distance, False, self.t >= self.spec.horizon, info)

    def physics_state(self) -> np.ndarray:
        return np.concatenate([self.point, self.goal])

    def scene(self) -> Scene:
        red, identity = (1.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0)
        ball = Geom(0, "ball", "sphere", (0.05, 0.05, 0.05), (0.0, 0.0, 0.0), identity, red)
        return Scene(bodies=("point",), geoms=(ball,), tool=0)

    def body_poses(self, physics_states: np.ndarray) -> np.ndarray:
        poses = np.zeros((len(physics_states), 1, 7), np.float32)
        poses[:, 0, :2] = physics_states[:, :2]
        poses[:, 0, 3] = 1.0
        return poses

    def close(self) -> None:
        pass


class ReachExpert:
    def __init__(self, task: ReachTask) -> None:
        self._task = task

    def infer_memory(self) -> None:
        return None

    def act(self, memory: None) -> tuple[np.ndarray, None]:
        towards = np.clip((self._task.goal - self._task.point) / SPEED, -1, 1)
        return np.array([*towards, 1.0 if np.abs(towards).max() < 0.5 else -1.0], np.float32), None


def toy_settings(**changes) -> CollectionSettings:
    defaults = {"episodes": 8, "first_start": 0, "noise": 0.2, "noise_bound": 0.4, "steps_after_success": 5, "seed": 0}
    return CollectionSettings(**{**defaults, **changes})


def toy_episodes(count: int) -> list[Episode]:
    task = ReachTask()
    return [collect_episode(task, ReachExpert(task), start, toy_settings()) for start in range(count)]
