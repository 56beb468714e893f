"""Open and close one of the cabinet's drawers: two tasks of the tabletop world, and their oracles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.sim.grasping import Funnel, TopGrasp, downward, turn_to
from embodied.sim.tabletop_cabinet import HANDLE_WIDTH_M, HANDLE_X_M, HEIGHTS, drawer_body, handle_position
from embodied.sim.tabletop_instructions import CLOSE_DRAWER, OPEN_DRAWER
from embodied.sim.tabletop_objects import Item
from embodied.sim.tabletop_oracle import SubGoal, TabletopExpert
from embodied.sim.tabletop_simulation import TabletopSimulation
from embodied.sim.tabletop_starts import Grid, chosen
from embodied.sim.tabletop_world import POSITION, TabletopTask
from embodied.types import StateSpec

OPEN_M, CLOSED_M = 0.15, 0.05  # SimplerEnv's bounds: open from, closed up to
_AJAR_M = 0.01
_STARTS_OPEN_M = 0.2
CABINET_M, CABINET_HALF_M = (0.7, 0.0), (0.045, 0.12)  # of the grid of places: 3 along x, 3 along y

# A gripper tilted forward, its fingers closing along y around a handle's standing bar.
FORWARD = Rotation.from_euler("y", -0.52) * downward(0.0)
# From a frame whose z points to the robot: what is a funnel above a thing becomes one before a handle.
_TOWARDS_ROBOT = Rotation.from_euler("y", -np.pi / 2)
_PULL_AHEAD_M = 0.03  # of the tool, so that the fingers keep their hold
_HANDLE_GRASP = TopGrasp(
    funnel=Funnel(radius_m=0.012, slope=4.0, top_m=0.08),
    fit_m=(0.02, 0.01, 0.012),
    loose_fit_m=(0.035, 0.02, 0.035),
)


@dataclass(frozen=True)
class DrawerStart:
    """Which drawer, and where the cabinet stands."""

    height: str
    x: float  # m
    y: float


class DrawerTask(TabletopTask):
    """A drawer of the cabinet, which stands at one of nine places before the robot."""

    cabinet: ClassVar[bool] = True
    begins_open_m: ClassVar[float] = 0.0

    def __init__(self, *, height: str | None = None, **settings: Any) -> None:
        """
        Args:
            height: one of `HEIGHTS`; None: each in turn.
            settings: of every tabletop task.

        Raises:
            UserError: an unknown height, or what `TabletopTask` refuses.
        """
        self._grid = Grid(chosen("height", height, HEIGHTS), (3, 3))
        super().__init__(**settings)

    def start(self, start_id: int) -> DrawerStart:
        """What an id stands for: 27 starts on the grid, nine places a drawer; then others between them."""
        draw = self._grid.draw(start_id)
        x, y = (middle + half * o for middle, half, o in zip(CABINET_M, CABINET_HALF_M, draw.offsets, strict=True))
        return DrawerStart(draw.kind, x, y)

    @property
    def height(self) -> str:
        """Of the drawer in question at the present start."""
        return self._start.height

    def object_specs(self) -> tuple[StateSpec, ...]:
        return (StateSpec("handle_position", POSITION, "m"), StateSpec("drawer_openings", HEIGHTS, "m"))

    def read_objects(self) -> dict[str, np.ndarray]:
        openings = np.array([self.sim.drawer_opening(height) for height in HEIGHTS])
        return {"handle_position": handle(self.sim, self.height), "drawer_openings": openings}

    def begin(self, start_id: int) -> tuple[Item, ...]:
        self._start = self.start(start_id)
        return ()

    def place(self) -> None:
        self.sim.place_cabinet(self._start.x, self._start.y)
        self.sim.set_drawer(self.height, self.begins_open_m)

    def words(self) -> dict[str, str]:
        return {"height": self.height}


class OpenDrawerTask(DrawerTask):
    """Pull it open, 15 cm at least."""

    name: ClassVar[str] = "tabletop/open_drawer"
    instructions = OPEN_DRAWER
    stage_names: ClassVar[tuple[str, ...]] = ("touched", "ajar")

    def judge(self) -> tuple[dict[str, bool], bool]:
        opening = self.sim.drawer_opening(self.height)
        touched = self.sim.touched(drawer_body(self.height))
        return {"touched": touched, "ajar": opening > _AJAR_M}, opening >= OPEN_M


class CloseDrawerTask(DrawerTask):
    """Push it shut, but for 5 cm at most; it begins 20 cm open."""

    name: ClassVar[str] = "tabletop/close_drawer"
    instructions = CLOSE_DRAWER
    stage_names: ClassVar[tuple[str, ...]] = ("touched", "half_closed")
    begins_open_m: ClassVar[float] = _STARTS_OPEN_M

    def judge(self) -> tuple[dict[str, bool], bool]:
        opening = self.sim.drawer_opening(self.height)
        touched = self.sim.touched(drawer_body(self.height))
        return {"touched": touched, "half_closed": opening < _STARTS_OPEN_M / 2}, opening <= CLOSED_M


def handle(sim: TabletopSimulation, height: str, opening: float | None = None) -> np.ndarray:
    """Of the middle of a drawer's handle as it is, or where it would be at an opening (m), float64 [3], m."""
    opened = sim.drawer_opening(height) if opening is None else opening
    return sim.cabinet_position() + np.array(handle_position(height)) - np.array([opened, 0.0, 0.0])


def opening_goals(sim: TabletopSimulation, height: str, position: np.ndarray, rotation: Rotation) -> list[SubGoal]:
    """The sub-goals "reach handle", "grasp handle" and "pull" for the tool at a pose."""
    offset, fingers = handle(sim, height) - position, sim.opening()
    turn = turn_to(FORWARD, rotation)
    in_tool = rotation.inv().apply(offset)
    around = _HANDLE_GRASP.is_around(in_tool, turn, fingers)
    held = around and fingers < HANDLE_WIDTH_M + 0.006
    # Far enough, with some to spare as long as the fingers are there anyway.
    opened = sim.drawer_opening(height) > OPEN_M + (0.03 if around else 0.01)
    before = _TOWARDS_ROBOT.apply(_HANDLE_GRASP.approach(_TOWARDS_ROBOT.inv().apply(offset), fingers))
    wait = 0.08 * float(np.clip((np.linalg.norm(turn) - 0.1) / 0.3, 0.0, 1.0))
    way = position + before
    way[0] = min(way[0], handle(sim, height)[0] - wait)
    there = position + offset
    pulled = there.copy()  # as far as the drawer has to go, wherever along the handle the fingers are
    pulled[0] = position[0] + sim.drawer_opening(height) - OPEN_M - 0.05
    slowly = position + np.clip(pulled - position, -_PULL_AHEAD_M, _PULL_AHEAD_M)
    return [
        SubGoal("reach handle", there, FORWARD, close=False, done=opened or around, waypoint=way),
        SubGoal("grasp handle", there, FORWARD, close=True, done=opened or held, waypoint=there),
        SubGoal("pull", pulled, FORWARD, close=True, done=opened, waypoint=slowly),
    ]


class OpenDrawerExpert(TabletopExpert):
    """Comes at the handle from before it, closes the fingers around its bar and pulls."""

    def __init__(self, task: OpenDrawerTask) -> None:
        super().__init__(task)
        self._drawer = task

    def plan(self) -> list[SubGoal]:
        return opening_goals(self._sim, self._drawer.height, *self._tool())


class CloseDrawerExpert(TabletopExpert):
    """Pushes with closed fingers against the front, far enough beside the handles that the hand passes them."""

    _BESIDE_M = 0.118  # of the handle
    _BEFORE_M = 0.07  # where to line up
    _FINGER_M = 0.012  # from the grip site to the fingers' foremost point

    def __init__(self, task: CloseDrawerTask) -> None:
        super().__init__(task)
        self._drawer = task

    def plan(self) -> list[SubGoal]:
        position, rotation = self._tool()
        sim, height = self._sim, self._drawer.height
        closed = sim.drawer_opening(height) < CLOSED_M - 0.03
        front = handle(sim, height) - np.array([HANDLE_X_M + self._FINGER_M, 0.0, 0.0])
        front[1] += self._BESIDE_M
        offset = front - position
        lined_up = bool(np.hypot(offset[1], offset[2]) < 0.03 and offset[0] < self._BEFORE_M + 0.02)
        turned = float(np.linalg.norm(turn_to(FORWARD, rotation))) < 0.2
        before = front - np.array([self._BEFORE_M, 0.0, 0.0])
        # Where it is not in line yet it goes back before it goes aside.
        way = before if abs(offset[0]) > 0.03 else np.array([before[0], position[1], position[2]])
        pushed = handle(sim, height, 0.0) - np.array([HANDLE_X_M + self._FINGER_M - 0.02, 0.0, 0.0])
        pushed[1:] = front[1:]
        return [
            SubGoal("reach", before, FORWARD, close=True, done=closed or (lined_up and turned), waypoint=way),
            SubGoal("push", pushed, FORWARD, close=True, done=closed, waypoint=pushed),
        ]
