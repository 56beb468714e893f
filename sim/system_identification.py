"""System identification: which dynamics of the simulation move a robot as a logged one moved.

X. Li et al., "Evaluating Real-World Robot Manipulation Policies in Simulation", arXiv 2405.05941, section on system
identification: actions of logged episodes are replayed open loop, and the error of the end effector's pose along them
is made small. There it is done by simulated annealing; here by nonlinear least squares (`mujoco.minimize`) in the
logarithm of each scale, once for every control delay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.errors import UserError
from embodied.sim.tabletop_model import MOST_DELAY_STEPS, Dynamics
from embodied.sim.tabletop_world import TabletopTask

POSITION_M, ROTATION_RAD = 0.002, 0.01  # errors that weigh the same
RANGE = 4.0  # scales are looked for from 1 / RANGE to RANGE
# Holds a scale that the logs say nothing of at 1. Far below what any log that moves says.
PRIOR = 0.05
SCALES = ("stiffness", "damping", "joint_damping", "friction")
_EPSILON = 1e-3  # of the finite differences, in the logarithm: contacts make smaller ones noisy


@dataclass(frozen=True)
class LoggedEpisode:
    """What a robot was told and where it went, one row a control step."""

    start_id: int
    actions: np.ndarray  # float32 [T A]
    position: np.ndarray  # float64 [T 3] of the end effector after each action, m
    quaternion: np.ndarray  # float64 [T 4] likewise, x y z w

    def __post_init__(self) -> None:
        length = len(self.actions)
        if length < 1 or self.position.shape != (length, 3) or self.quaternion.shape != (length, 4):
            raise UserError(
                expected="a position [T 3] and a quaternion [T 4] after each of at least one action",
                found=f"{length} actions, positions {self.position.shape}, quaternions {self.quaternion.shape}",
                remedy="log the end effector's pose once after every action",
            )


@dataclass(frozen=True)
class TrackingError:
    """Mean over all steps of all episodes."""

    position_m: float
    rotation_rad: float


@dataclass(frozen=True)
class Identified:
    """Dynamics that fit, and how well the simulation follows the logs before and after."""

    dynamics: Dynamics
    before: TrackingError
    after: TrackingError
    replays: int  # of all episodes


def log_episode(task: TabletopTask, start_id: int, actions: np.ndarray) -> LoggedEpisode:
    """Replay actions [T A] open loop from a start, and log where the end effector goes."""
    task.reset(start_id)
    positions, quaternions = [], []
    for action in actions:
        task.sim.step(task.spec.action.clipped(action))
        positions.append(task.sim.eef_position())
        quaternions.append(np.roll(task.sim.eef_quaternion(), -1))
    return LoggedEpisode(start_id, np.asarray(actions, np.float32), np.array(positions), np.array(quaternions))


def tracking_error(task: TabletopTask, dynamics: Dynamics, logs: Sequence[LoggedEpisode]) -> TrackingError:
    """How far the simulation's end effector is from the logged one along the same actions.

    The angle between two rotations is 2 arcsin(||R - R'||_F / (2 sqrt 2)), twice the paper's measure.
    """
    position, rotation = _differences(task, dynamics, logs)
    return TrackingError(float(np.linalg.norm(position, axis=1).mean()), float(np.linalg.norm(rotation, axis=1).mean()))


def identify(
    task: TabletopTask,
    logs: Sequence[LoggedEpisode],
    report: Callable[[int], None] = lambda replays: None,
    delays: Sequence[int] = tuple(range(MOST_DELAY_STEPS + 1)),
) -> Identified:
    """Servo stiffness and damping, the bearings' damping, friction and delay that make the simulation follow the logs.

    Args:
        task: whose own dynamics are where the search starts. They are put back at the end.
        report: takes how often all episodes were replayed so far.
        delays: control steps that are tried.

    Raises:
        UserError: no logs, or the simulation cannot follow them at all.
    """
    if not logs:
        raise UserError(expected="at least one logged episode", found="none", remedy="log some with `log_episode`")
    from mujoco.minimize import least_squares  # after embodied.sim.opengl has loaded mujoco

    neutral, replays = task.dynamics, 0

    def residual(delay: int, log_scales: np.ndarray) -> np.ndarray:
        nonlocal replays
        position, rotation = _differences(task, _dynamics(log_scales, delay), logs)
        replays += 1
        report(replays)
        error = np.concatenate([(position / POSITION_M).ravel(), (rotation / ROTATION_RAD).ravel()])
        return np.concatenate([error / np.sqrt(len(position)), PRIOR * log_scales])

    limit = np.log(RANGE) * np.ones(len(SCALES))
    best: tuple[float, Dynamics] | None = None
    try:
        before = tracking_error(task, neutral, logs)
        for delay in delays:
            scales, trace = least_squares(
                np.zeros(len(SCALES)),
                lambda points, delay=delay: np.stack([residual(delay, point) for point in points.T], axis=1),
                bounds=[-limit, limit],
                eps=_EPSILON,
                xtol=1e-4,
                gtol=1e-4,
                max_iter=12,
                verbose=0,
            )
            objective = float(trace[-1].objective)
            if best is None or objective < best[0]:
                best = objective, _dynamics(scales, delay)
        assert best is not None
        return Identified(best[1], before, tracking_error(task, best[1], logs), replays)
    finally:
        task.set_dynamics(neutral)


class TabletopIdentification:
    """What `embodied bench agreement` finds by a task's family."""

    log = staticmethod(log_episode)
    fit = staticmethod(identify)


def _dynamics(log_scales: np.ndarray, delay: int) -> Dynamics:
    values = dict(zip(SCALES, (float(value) for value in np.exp(log_scales)), strict=True))
    return Dynamics(
        stiffness=(values["stiffness"],),
        damping=(values["damping"],),
        joint_damping=values["joint_damping"],
        friction=values["friction"],
        delay_steps=delay,
    )


def _differences(
    task: TabletopTask, dynamics: Dynamics, logs: Sequence[LoggedEpisode]
) -> tuple[np.ndarray, np.ndarray]:
    """Displacements (m) and rotation vectors (rad) from the logged to the simulated poses, float64 [steps 3] each."""
    task.set_dynamics(dynamics)
    replayed = [log_episode(task, log.start_id, log.actions) for log in logs]
    position = np.concatenate([ours.position - log.position for ours, log in zip(replayed, logs, strict=True)])
    turns = [
        (Rotation.from_quat(ours.quaternion) * Rotation.from_quat(log.quaternion).inv()).as_rotvec()
        for ours, log in zip(replayed, logs, strict=True)
    ]
    return position, np.concatenate(turns)
