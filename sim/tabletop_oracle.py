"""What the tabletop tasks' oracles share: a plan of named sub-goals for the present state, and the way to the next.

An oracle is a function of the simulator's state alone, without memory or elapsed time. Its plan lists all sub-goals of
the task in their order, each with whether the present state has it done; the action goes for the first that is not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.sim.grasping import Funnel, TopGrasp, downward, grip_strength, gripper_yaw, turn_to, wrapped, yaw_of
from embodied.sim.tabletop_control import POSITION_SCALE_M, ROTATION_SCALE_RAD
from embodied.sim.tabletop_objects import Item
from embodied.sim.tabletop_simulation import TabletopSimulation
from embodied.sim.tabletop_world import TabletopTask

_WIDEST_M = 0.066  # what the fingers are sent around
_BELOW_TOP_M = 0.022  # how deep they reach down a tall thing: the hand ends 3 cm above the grip site
_LOWEST_M = 0.014  # of the grip site above the table: the fingertips are 1.1 cm below it
_LEAVE_FREE_M = 0.018  # wider than the thing: the fingers have let go


@dataclass(frozen=True)
class SubGoal:
    """One step of a plan: where the tool shall be, and whether that is done."""

    name: str
    position: np.ndarray  # of the grip site, in the world's frame, float64 [3], m
    rotation: Rotation  # of the grip site
    close: bool  # the fingers
    done: bool
    waypoint: np.ndarray  # where to go now so as to get there without touching what is in the way, float64 [3], m


class Grasp(NamedTuple):
    """How to take a thing from above, and how far that has come."""

    point: np.ndarray  # where the grip site belongs, float64 [3], m
    turn: np.ndarray  # what is left to turn to the nearest way of taking it, rotation vector, rad
    width: float  # of the thing between the fingers, m
    around: bool  # it is between the fingers, which may close
    held: bool


class TabletopExpert(ABC):
    """Executes its plan from any state."""

    def __init__(self, task: TabletopTask) -> None:
        """
        Args:
            task: read, never changed.
        """
        self._task = task

    @abstractmethod
    def plan(self) -> list[SubGoal]:
        """All sub-goals of the task in their order, as the present state has them."""

    def infer_memory(self) -> None:
        """None: the state says it all."""
        return None

    def act(self, memory: None) -> tuple[np.ndarray, None]:
        """The clean action, float32 [7] within the bounds, for the task's present state."""
        plan = self.plan()
        goal = next((goal for goal in plan if not goal.done), plan[-1])
        position, quaternion = self._sim.commanded_pose()
        displacement = (goal.waypoint - position) / POSITION_SCALE_M
        turn = turn_to(goal.rotation, Rotation.from_quat(np.roll(quaternion, -1))) / ROTATION_SCALE_RAD
        # Cut short as a whole, so that the way keeps its direction.
        displacement /= max(1.0, float(np.max(np.abs(displacement))))
        turn /= max(1.0, float(np.max(np.abs(turn))))
        action = np.concatenate([displacement, turn, [1.0 if goal.close else -1.0]])
        return np.clip(action, -1.0, 1.0).astype(np.float32), None

    @property
    def _sim(self) -> TabletopSimulation:
        return self._task.sim

    def _tool(self) -> tuple[np.ndarray, Rotation]:
        """Where the grip site is."""
        return self._sim.eef_position(), Rotation.from_quat(np.roll(self._sim.eef_quaternion(), -1))


def top_grasp(width: float) -> TopGrasp:
    """How to come down on a thing so wide between the fingers, m."""
    spare = max(0.006, 0.036 - width / 2)
    return TopGrasp(
        funnel=Funnel(radius_m=min(0.012, 0.8 * spare), slope=4.0, top_m=0.09),
        fit_m=(spare, 0.012, 0.012),
        loose_fit_m=(0.03, 0.022, 0.022),
    )


def grasp_of(
    sim: TabletopSimulation, item: Item, position: np.ndarray, rotation: Rotation, crowd: np.ndarray | None = None
) -> Grasp:
    """How the tool at a pose takes an item that lies somewhere.

    Args:
        position, rotation: of the grip site.
        crowd: horizontal direction in which something stands close by, so that the fingers had better not be there:
            float64 [2], its length from 0, all free, to 1; None: nothing is near.
    """
    point = _grip_point(sim, item)
    directions, width = _closing_directions(sim, item)
    yaws = np.concatenate([directions - np.pi / 2, directions + np.pi / 2])
    cost = np.abs(wrapped(yaws - gripper_yaw(rotation))) + 0.3 * np.abs(wrapped(yaws))
    if crowd is not None:
        closing = np.stack([-np.sin(yaws), np.cos(yaws)], axis=1)  # of a gripper turned by so much
        cost = cost + 3.0 * np.abs(closing @ crowd)
    yaw = float(yaws[np.argmin(cost)])
    turn = turn_to(downward(yaw), rotation)
    opening = sim.opening()
    around = top_grasp(width).is_around(rotation.inv().apply(point - position), turn, opening)
    held = around and (sim.grasped(item.name) or grip_strength(opening, width) >= 1.0)
    return Grasp(point, turn, width, around, held)


def way_down(grasp: Grasp, position: np.ndarray, opening: float) -> np.ndarray:
    """Where to go to take a thing: down a funnel, the later the more there is left to turn; float64 [3], m."""
    how = top_grasp(grasp.width)
    waypoint = position + how.approach(grasp.point - position, opening)
    wait = how.funnel.top_m * float(np.clip((np.linalg.norm(grasp.turn) - 0.1) / 0.3, 0.0, 1.0))
    waypoint[2] = max(waypoint[2], grasp.point[2] + wait)
    return waypoint


def grasp_goals(grasp: Grasp, position: np.ndarray, rotation: Rotation, opening: float, *, over: bool) -> list[SubGoal]:
    """The sub-goals "reach" and "grasp".

    Args:
        over: both are behind, whatever the fingers do now.
    """
    goal = Rotation.from_rotvec(grasp.turn) * rotation
    way = way_down(grasp, position, opening)
    return [
        SubGoal("reach", grasp.point, goal, close=False, done=over or grasp.around, waypoint=way),
        SubGoal("grasp", grasp.point, goal, close=True, done=over or grasp.held, waypoint=grasp.point),
    ]


def carry_goals(
    to_place: np.ndarray, turn: np.ndarray, position: np.ndarray, rotation: Rotation, funnel: Funnel, *, placed: bool
) -> list[SubGoal]:
    """The sub-goals "lift", "move" and "lower" of something held.

    Args:
        to_place: from where it is to where it belongs, float64 [3], m.
        turn: of the tool on the way, rotation vector, rad.
        position, rotation: of the grip site.
        funnel: that it comes down in above its place.
    """
    clearance = 0.03
    distance = float(np.hypot(to_place[0], to_place[1]))
    top = funnel.height(distance)
    goal, way = Rotation.from_rotvec(turn) * rotation, position + funnel.carry(to_place, clearance)
    above = position + to_place + np.array([0.0, 0.0, funnel.top_m])
    lifted = bool(placed or -to_place[2] > top - clearance)
    moved = bool(placed or (lifted and distance < funnel.radius_m + 0.01))
    up = np.array([position[0], position[1], above[2]])
    return [
        SubGoal("lift", up, rotation, close=True, done=lifted, waypoint=way),
        SubGoal("move", above, goal, close=True, done=moved, waypoint=way),
        SubGoal("lower", position + to_place, goal, close=True, done=placed, waypoint=way),
    ]


def leave_goals(
    grasp: Grasp, position: np.ndarray, rotation: Rotation, opening: float, height_m: float, *, placed: bool
) -> list[SubGoal]:
    """The sub-goals "release" and "retreat", straight up to so far above the thing."""
    free = opening > grasp.width + _LEAVE_FREE_M or opening > 0.07
    away = float(np.linalg.norm(position - grasp.point)) > height_m - 0.01
    up = np.array([position[0], position[1], max(position[2], grasp.point[2] + height_m)])
    return [
        SubGoal("release", position, rotation, close=False, done=placed and (free or away), waypoint=position),
        SubGoal("retreat", up, rotation, close=False, done=placed and away, waypoint=up),
    ]


def crowd(offset: np.ndarray, near_m: float, far_m: float) -> np.ndarray:
    """How something `offset` away (m) crowds the fingers, for `grasp_of`: fully from `near_m`, not from `far_m` on."""
    distance = max(1e-9, float(np.hypot(offset[0], offset[1])))
    return float(np.clip((far_m - distance) / (far_m - near_m), 0.0, 1.0)) * offset[:2] / distance


def _grip_point(sim: TabletopSimulation, item: Item) -> np.ndarray:
    point = sim.position(item.name)
    top = point[2] + float(sim.half_extents(item.name, item.half)[2])
    if item.round == "x":  # its bounding box is higher than it is
        top = point[2] + item.half[2]
    point[2] = max(point[2], top - _BELOW_TOP_M, _LOWEST_M)
    return point


def _closing_directions(sim: TabletopSimulation, item: Item) -> tuple[np.ndarray, float]:
    """Horizontal directions (rad from x, each meant both ways) along which the fingers may close, and its width there.

    Of several directions with different widths, the narrowest ones.
    """
    axes = sim.rotation(item.name).as_matrix()
    if item.round is not None:
        axis = axes[:, "xyz".index(item.round)]
        radius = item.half[1] if item.round == "x" else item.half[0]
        if abs(axis[2]) > 0.8:  # it stands
            return np.pi / 8 * np.arange(8), 2 * radius
        return np.array([yaw_of(axis) + np.pi / 2]), 2 * radius
    level = [place for place in range(3) if place != int(np.argmax(np.abs(axes[2])))]
    widths = {place: 2 * item.half[place] for place in level}
    narrow = [place for place in level if widths[place] <= min(_WIDEST_M, min(widths.values()) + 0.005)]
    fitting = narrow or [min(level, key=lambda place: widths[place])]
    return np.array([yaw_of(axes[:, place]) for place in fitting]), max(widths[place] for place in fitting)
