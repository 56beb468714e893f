"""What scripted experts with the Panda's gripper share: commands, the way down to an object, the test of a grasp."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.errors import UserError
from embodied.sim.arm_task import DOWN, ArmTask


class Motion(NamedTuple):
    """What is left to do, in the world's frame."""

    displacement: np.ndarray  # of the grip site, float64 [3], m
    turn: np.ndarray  # rotation vector, float64 [3], rad
    close: bool  # the fingers


class PandaExpert(ABC):
    """An expert that is a function of the simulator's state alone, without memory or time."""

    POSITION_GAIN = 1.2  # commanded displacement over the remaining one
    ROTATION_GAIN = 1.0  # commanded turn over the remaining one

    def __init__(self, task: ArmTask) -> None:
        """
        Args:
            task: read, never changed.

        Raises:
            UserError: the task's robot is not the Panda.
        """
        if task.robot != "Panda":
            raise UserError(
                expected="the Panda, whose gripper this expert knows",
                found=f"task.robot={task.robot}",
                remedy="use task.robot=Panda, or demonstrations from elsewhere",
            )
        self._arm = task
        self._step_m, self._step_rad = task.controller_scale()

    def infer_memory(self) -> None:
        """None: the state says it all."""
        return None

    def act(self, memory: None) -> tuple[np.ndarray, None]:
        """The clean action, float32 [7] within the bounds, for the task's present state."""
        displacement, turn, close = self.motion()
        action = np.concatenate(
            [
                self.POSITION_GAIN * displacement / self._step_m,
                self.ROTATION_GAIN * turn / self._step_rad,
                [1.0 if close else -1.0],
            ]
        )
        return np.clip(action, -1.0, 1.0).astype(np.float32), None

    @abstractmethod
    def motion(self) -> Motion:
        """What is left to do from the task's present state."""

    def opening(self) -> float:
        """Between the fingers, m."""
        return float(np.ptp(self._arm.gripper_positions()))


@dataclass(frozen=True)
class Funnel:
    """Above a place: the nearer to its vertical, the lower one may be."""

    radius_m: float  # of the spout, in which one may come all the way down
    slope: float  # height over distance from the vertical
    top_m: float  # above the place: the funnel's upper end

    def height(self, distance_m: float) -> float:
        """How far above the place to stay at a distance from its vertical, m."""
        return float(np.clip(self.slope * (distance_m - self.radius_m), 0.0, self.top_m))

    def carry(self, offset: np.ndarray, clearance_m: float) -> np.ndarray:
        """Displacement of something held that must come down on a place `offset` away, float64 [3], m."""
        return over_obstacles(offset, self.height(float(np.hypot(offset[0], offset[1]))), clearance_m)


def over_obstacles(offset: np.ndarray, height_m: float, clearance_m: float) -> np.ndarray:
    """Displacement to `height_m` above a place `offset` away, float64 [3], m.

    It goes sideways only as far as it is high enough: not at all from `clearance_m` below that height on.
    """
    rise = offset[2] + height_m
    aside = np.clip(1.0 - rise / clearance_m, 0.0, 1.0)
    return np.array([aside * offset[0], aside * offset[1], rise])


@dataclass(frozen=True)
class TopGrasp:
    """How the gripper takes an object from above: open down a funnel, closing when the object fits between the fingers.

    Fits are half ranges of the object's place in the grip site's frame: along the closing axis, across, out.
    """

    funnel: Funnel
    fit_m: tuple[float, float, float]  # to close
    loose_fit_m: tuple[float, float, float]  # to go on closing, so that noise does not make the fingers waver
    open_m: float = 0.072  # between the fingers, before they come down around the object
    aligned_rad: float = 0.35  # left to turn, before the fingers may close
    clearance_m: float = np.inf  # so far below the funnel the gripper does not go sideways, where there are walls

    def is_around(self, offset: np.ndarray, turn: np.ndarray, opening: float) -> bool:
        """Whether to close.

        Args:
            offset: the object's place in the grip site's frame, float64 [3], m.
            turn: what is left to turn, rotation vector, rad.
            opening: between the fingers, m.
        """
        begun = opening < self.open_m
        fit = self.loose_fit_m if begun else self.fit_m
        return bool(np.all(np.abs(offset) < fit) and (begun or np.linalg.norm(turn) < self.aligned_rad))

    def approach(self, offset: np.ndarray, opening: float) -> np.ndarray:
        """Displacement to an object `offset` away in the world's frame, m; half closed fingers wait above it."""
        height = self.funnel.height(float(np.hypot(offset[0], offset[1])))
        still_to_open = self.funnel.top_m * min(1.0, (self.open_m - opening) / 0.02)
        return over_obstacles(offset, max(height, still_to_open), self.clearance_m)


def grip_strength(opening: float, width: float, slack_m: float = 0.004) -> float:
    """From 0, the fingers are still closing, to 1, they hold something `width` wide (m)."""
    return float(np.clip((width + slack_m - opening) / 0.002, 0.0, 1.0))


def downward(yaw: float) -> Rotation:
    """A gripper that points straight down, turned by `yaw` (rad) from the start's closing axis, the world's y."""
    return Rotation.from_euler("z", yaw) * DOWN


def turn_to(goal: Rotation, rotation: Rotation) -> np.ndarray:
    """The rotation vector from `rotation` to `goal` in the world's frame, rad."""
    return (goal * rotation.inv()).as_rotvec()


def gripper_yaw(rotation: Rotation) -> float:
    """How far the gripper is turned about the vertical from the start's closing axis, rad."""
    return yaw_of((rotation * DOWN.inv()).as_matrix()[:, 0])


def yaw_of(vector: np.ndarray) -> float:
    """The direction of a vector [3] seen from above, from the world's x axis, rad."""
    return float(np.arctan2(vector[1], vector[0]))


def wrapped(angle: np.ndarray) -> np.ndarray:
    """The same angle in -pi .. pi, rad."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def level_axis_yaw(rotation: Rotation) -> float:
    """The yaw of the body's most level axis, rad: a side of a cube, whichever face it lies on."""
    axes = rotation.as_matrix()
    return yaw_of(axes[:, np.argmin(np.abs(axes[2]))])


def cheapest_yaw(candidates: np.ndarray, yaw: float) -> float:
    """Of the gripper yaws in question, the one that costs the least turning from `yaw`, rad.

    A slight preference for the start's yaw keeps the wrist away from its limits over many recoveries.
    """
    cost = np.abs(wrapped(candidates - yaw)) + 0.3 * np.abs(wrapped(candidates))
    return float(candidates[np.argmin(cost)])


def retreat(offset: np.ndarray, opening: float, width: float, height_m: float) -> np.ndarray:
    """Displacement that leaves an object `offset` away (m), straight up to `height_m` above it, as the fingers open.

    Still at first: it sets in as the fingers leave the object's `width` (m), and lasts until they are 2 cm wider.
    """
    free = np.clip((opening - width - 0.006) / 0.02, 0.0, 1.0)
    return np.array([0.0, 0.0, free * max(0.0, offset[2] + height_m)])
