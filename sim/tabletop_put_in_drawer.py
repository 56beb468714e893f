"""Open a drawer and put something from the table in it: the tabletop world's longest task, and its oracle."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.sim.grasping import Funnel
from embodied.sim.tabletop_cabinet import HANDLE_X_M, INSIDE_M, drawer_body, room_middle
from embodied.sim.tabletop_drawer import CABINET_HALF_M, CABINET_M, OPEN_M, handle, opening_goals
from embodied.sim.tabletop_instructions import PUT_IN_DRAWER
from embodied.sim.tabletop_objects import CAN, LEMON, Item
from embodied.sim.tabletop_oracle import SubGoal, TabletopExpert, carry_goals, grasp_goals, grasp_of, leave_goals
from embodied.sim.tabletop_starts import Grid, chosen
from embodied.sim.tabletop_world import POSITION, TabletopTask, pose_specs, read_pose, upright
from embodied.types import StateSpec

HEIGHT = "top"  # of the drawer; the lower ones have no room for a hand above them
_ITEMS = {"lemon": LEMON, "can": CAN}
_BESIDE_M = 0.3  # of the item from the middle line, on either side
_HELD_STEPS = 5  # a grasp that lasts


@dataclass(frozen=True)
class PutInDrawerStart:
    """Where the cabinet stands, and what lies beside it."""

    item: str
    x: float  # of the cabinet, m
    y: float
    item_xy: tuple[float, float]


class PutInDrawerTask(TabletopTask):
    """Open the top drawer and let the item down in it: it touches the drawer within its walls, below their rim.

    The drawer begins closed. Success is SimplerEnv's, which asks for the touch alone.
    """

    name: ClassVar[str] = "tabletop/put_in_drawer"
    instructions = PUT_IN_DRAWER
    stage_names: ClassVar[tuple[str, ...]] = ("ajar", "open", "grasped", "consecutive_grasp", "over_drawer")
    memory_names: ClassVar[tuple[str, ...]] = ("grasp_steps",)
    cabinet: ClassVar[bool] = True

    def __init__(self, *, item: str | None = None, **settings: Any) -> None:
        """
        Args:
            item: "lemon" or "can"; None: each in turn.
            settings: of every tabletop task.

        Raises:
            UserError: an unknown item, or what `TabletopTask` refuses.
        """
        names = chosen("item", item, tuple(_ITEMS))
        self._grid = Grid(tuple((name, side) for side in (1.0, -1.0) for name in names), (3, 3, 3))
        super().__init__(**settings)

    def start(self, start_id: int) -> PutInDrawerStart:
        """What an id stands for: nine places of the cabinet, three of the item on either side; then others between."""
        draw = self._grid.draw(start_id)
        name, side = draw.kind
        cabinet_x, cabinet_y, along = draw.offsets
        x = CABINET_M[0] + CABINET_HALF_M[0] * cabinet_x
        y = CABINET_M[1] + 0.5 * CABINET_HALF_M[1] * cabinet_y
        return PutInDrawerStart(name, x, y, (0.45 + 0.06 * along, side * _BESIDE_M))

    @property
    def item(self) -> Item:
        """What is to be put away at the present start."""
        return _ITEMS[self._start.item]

    def object_specs(self) -> tuple[StateSpec, ...]:
        return (
            *pose_specs("item"),
            StateSpec("handle_position", POSITION, "m"),
            StateSpec("drawer_opening", (HEIGHT,), "m"),
        )

    def read_objects(self) -> dict[str, np.ndarray]:
        return {
            **read_pose(self.sim, "item", self.item.name),
            "handle_position": handle(self.sim, HEIGHT),
            "drawer_opening": np.array([self.sim.drawer_opening(HEIGHT)]),
        }

    def begin(self, start_id: int) -> tuple[Item, ...]:
        self._start = self.start(start_id)
        return (self.item,)

    def place(self) -> None:
        self.sim.place_cabinet(self._start.x, self._start.y)
        self.sim.place(self.item.name, (*self._start.item_xy, self.item.half[2]), upright(0.0))

    def judge(self) -> tuple[dict[str, bool], bool]:
        sim, item = self.sim, self.item.name
        grasped = sim.grasped(item)
        self.keep("grasp_steps", self.memory("grasp_steps") + 1 if grasped else 0)
        inside = sim.position(item) - self.room()
        over = bool(np.all(np.abs(inside[:2]) < INSIDE_M[:2]) and inside[2] > -INSIDE_M[2])
        opening = sim.drawer_opening(HEIGHT)
        success = over and inside[2] < INSIDE_M[2] and sim.touches(item, drawer_body(HEIGHT))
        stages = {
            "ajar": opening > 0.01,
            "open": opening >= OPEN_M,
            "grasped": grasped,
            "consecutive_grasp": self.memory("grasp_steps") >= _HELD_STEPS,
            "over_drawer": over,
        }
        return stages, success

    def words(self) -> dict[str, str]:
        return {"item": self.item.words, "height": HEIGHT}

    def room(self) -> np.ndarray:
        """The middle of the room in the drawer, float64 [3], m."""
        return self.sim.position(drawer_body(HEIGHT)) + np.array(room_middle(HEIGHT))


class PutInDrawerExpert(TabletopExpert):
    """Opens the drawer, leaves its handle, takes the item from above and lets it down where the drawer is open."""

    _FUNNEL = Funnel(radius_m=0.012, slope=3.0, top_m=0.1)  # of the item's middle above where it is let go
    _PLACED_M = (0.03, 0.008)
    _BESIDE_M, _BELOW_M = 0.24, 0.11  # of the drawer's middle and of its handle: there the hand passes it
    _AWAY_M = 0.1  # of the handle, before the hand goes elsewhere
    _RETREAT_M = 0.12

    def __init__(self, task: PutInDrawerTask) -> None:
        super().__init__(task)
        self._putting = task

    def plan(self) -> list[SubGoal]:
        position, rotation = self._tool()
        sim, item = self._sim, self._putting.item
        fingers = sim.opening()
        grasp = grasp_of(sim, item, position, rotation)
        to_place = self._place() - sim.position(item.name)
        sideways, up = self._PLACED_M
        placed = bool(np.hypot(to_place[0], to_place[1]) < sideways and to_place[2] > -up)
        taken = grasp.around or placed
        opening = [
            SubGoal(goal.name, goal.position, goal.rotation, goal.close, goal.done or taken, goal.waypoint)
            for goal in opening_goals(sim, HEIGHT, position, rotation)
        ]
        return [
            *opening,
            self._leave_handle(position, rotation, done=taken),
            *self._around_drawer(grasp_goals(grasp, position, rotation, fingers, over=placed), position),
            *carry_goals(to_place, np.zeros(3), position, rotation, self._FUNNEL, placed=placed),
            *leave_goals(grasp, position, rotation, fingers, self._RETREAT_M, placed=placed),
        ]

    def _place(self) -> np.ndarray:
        """Where the item's middle is let go: above the open part of the drawer, as low as the hand clears its front."""
        sim, item = self._sim, self._putting.item
        place = self._putting.room()
        opened = sim.drawer_opening(HEIGHT)
        place[0] = handle(sim, HEIGHT)[0] - HANDLE_X_M + 0.018 + (opened - 0.018) / 2
        place[2] += INSIDE_M[2] + sim.half_extents(item.name, item.half)[2] - 0.025
        return place

    def _around_drawer(self, goals: list[SubGoal], position: np.ndarray) -> list[SubGoal]:
        """The same sub-goals; the hand goes aside before the open drawer, and comes down only beside it."""
        front = handle(self._sim, HEIGHT)
        beside = abs(position[1] - front[1]) > self._BESIDE_M
        below = position[2] < front[2] - self._BELOW_M
        way = goals[0].waypoint.copy()
        if beside or below or way[0] < front[0] - self._AWAY_M + 0.02:
            return goals
        way[0], way[2] = min(way[0], front[0] - self._AWAY_M + 0.02), max(way[2], 0.2)
        return [dataclasses.replace(goals[0], waypoint=way), *goals[1:]]

    def _leave_handle(self, position: np.ndarray, rotation: Rotation, *, done: bool) -> SubGoal:
        """Open fingers and back, before the drawer's front and then up."""
        away = position - handle(self._sim, HEIGHT)
        back = position + np.array([-self._AWAY_M, 0.0, 0.02])
        free = self._sim.opening() > 0.05
        left = done or float(np.linalg.norm(away)) > self._AWAY_M - 0.01 or away[2] < -0.1
        return SubGoal("leave handle", back, rotation, close=False, done=left, waypoint=back if free else position)
