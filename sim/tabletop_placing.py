"""Put one thing on or in another: the tabletop world's put_on, stack and put_in_basket, and their oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from embodied.sim.grasping import Funnel
from embodied.sim.tabletop_instructions import PUT_IN_BASKET, PUT_ON, STACK
from embodied.sim.tabletop_objects import (
    BASKET,
    BREAD,
    CARROT,
    CLOTH,
    EGGPLANT,
    GREEN_CUBE,
    LEMON,
    PLATE,
    SPOON,
    YELLOW_CUBE,
    Item,
)
from embodied.sim.tabletop_oracle import SubGoal, TabletopExpert, carry_goals, grasp_goals, grasp_of, leave_goals
from embodied.sim.tabletop_starts import Grid, chosen
from embodied.sim.tabletop_world import TabletopTask, pose_specs, read_pose, upright
from embodied.types import StateSpec

_HELD_STEPS = 5  # a grasp that lasts
_MOVED_M = 0.03
_BEYOND_M = 0.003  # past the target's half diagonal
_GAP_M = 0.02  # between the two bounding boxes, at most


@dataclass(frozen=True)
class PlacingStart:
    """What is where."""

    pair: str
    item_xy: tuple[float, float]  # m
    item_yaw: float  # rad
    target_xy: tuple[float, float]


class PlacingTask(TabletopTask):
    """Bring the item over the target, at most a gap above it, free of everything but it and the robot.

    SimplerEnv's rule: seen from above, the item's middle is within half the target's diagonal and 3 mm.
    """

    pairs: ClassVar[dict[str, tuple[Item, Item]]]  # item and target, by a name
    apart_m: ClassVar[tuple[float, float]] = (0.13, 0.12)  # of item and target from the middle line
    stage_names: ClassVar[tuple[str, ...]] = ("grasped", "consecutive_grasp", "moved", "over_target")
    memory_names: ClassVar[tuple[str, ...]] = ("grasp_steps", "start_x", "start_y")

    def __init__(self, *, pair: str | None = None, **settings: Any) -> None:
        """
        Args:
            pair: the name of one of `pairs`; None: each in turn.
            settings: of every tabletop task.

        Raises:
            UserError: an unknown pair, or what `TabletopTask` refuses.
        """
        names = chosen("pair", pair, tuple(self.pairs))
        kinds = tuple((name, side) for side in (1.0, -1.0) for name in names)
        self._grid = Grid(kinds, (2, 2, 2, 2))
        super().__init__(**settings)

    def start(self, start_id: int) -> PlacingStart:
        """What an id stands for: item and target on either side, each at one of four places; later ids lie between."""
        draw = self._grid.draw(start_id)
        pair, side = draw.kind
        item_x, item_y, target_x, target_y = draw.offsets
        item_apart, target_apart = self.apart_m
        return PlacingStart(
            pair,
            (0.5 + 0.12 * item_x, side * (item_apart + 0.05 * item_y)),
            draw.generator.uniform(-0.7, 0.7),
            (0.5 + 0.1 * target_x, -side * (target_apart + 0.05 * target_y)),
        )

    @property
    def item(self) -> Item:
        """What is to be moved at the present start."""
        return self.pairs[self._start.pair][0]

    @property
    def target(self) -> Item:
        """Where it belongs at the present start."""
        return self.pairs[self._start.pair][1]

    def object_specs(self) -> tuple[StateSpec, ...]:
        return (*pose_specs("item"), *pose_specs("target"))

    def read_objects(self) -> dict[str, np.ndarray]:
        return {**read_pose(self.sim, "item", self.item.name), **read_pose(self.sim, "target", self.target.name)}

    def begin(self, start_id: int) -> tuple[Item, ...]:
        self._start = self.start(start_id)
        return (self.item, self.target)

    def place(self) -> None:
        start = self._start
        self.sim.place(self.item.name, (*start.item_xy, self.item.half[2]), upright(start.item_yaw))
        self.sim.place(self.target.name, (*start.target_xy, self.target.half[2]))

    def remember_start(self) -> None:
        x, y, _ = self.sim.position(self.item.name)
        self.keep("start_x", x)
        self.keep("start_y", y)

    def judge(self) -> tuple[dict[str, bool], bool]:
        item, target = self.item, self.target
        grasped = self.sim.grasped(item.name)
        self.keep("grasp_steps", self.memory("grasp_steps") + 1 if grasped else 0)
        position = self.sim.position(item.name)
        way = np.hypot(position[0] - self.memory("start_x"), position[1] - self.memory("start_y"))
        offset = position - self.sim.position(target.name)
        over = self.is_over(offset)
        success = over and self.is_near_above(offset) and not self.sim.touches_other_than(item.name, target.name)
        stages = {
            "grasped": grasped,
            "consecutive_grasp": self.memory("grasp_steps") >= _HELD_STEPS,
            "moved": bool(way > _MOVED_M),
            "over_target": over,
        }
        return stages, bool(success)

    def words(self) -> dict[str, str]:
        return {"item": self.item.words, "target": self.target.words}

    def is_over(self, offset: np.ndarray) -> bool:
        """Whether an item whose middle is `offset` (m) from the target's counts as above it."""
        return bool(np.hypot(offset[0], offset[1]) <= self.target.radius + _BEYOND_M)

    def is_near_above(self, offset: np.ndarray) -> bool:
        """Whether it is higher than the target's middle, and the gap between their bounding boxes small enough."""
        item, target = self.item, self.target
        halves = self.sim.half_extents(item.name, item.half)[2] + self.sim.half_extents(target.name, target.half)[2]
        return bool(0 < offset[2] <= halves + _GAP_M)


class PutOnTask(PlacingTask):
    """A spoon or bread on a cloth, a carrot or a lemon on a plate."""

    name: ClassVar[str] = "tabletop/put_on"
    instructions = PUT_ON
    pairs: ClassVar[dict[str, tuple[Item, Item]]] = {
        "carrot_on_plate": (CARROT, PLATE),
        "spoon_on_cloth": (SPOON, CLOTH),
        "lemon_on_plate": (LEMON, PLATE),
        "bread_on_cloth": (BREAD, CLOTH),
    }


class StackTask(PlacingTask):
    """The green cube on the yellow cube."""

    name: ClassVar[str] = "tabletop/stack"
    instructions = STACK
    pairs: ClassVar[dict[str, tuple[Item, Item]]] = {"green_on_yellow": (GREEN_CUBE, YELLOW_CUBE)}


class PutInBasketTask(PlacingTask):
    """An eggplant or a lemon in the basket: between its walls, its underside below their rim."""

    name: ClassVar[str] = "tabletop/put_in_basket"
    instructions = PUT_IN_BASKET
    apart_m: ClassVar[tuple[float, float]] = (0.15, 0.14)
    pairs: ClassVar[dict[str, tuple[Item, Item]]] = {
        "eggplant_in_basket": (EGGPLANT, BASKET),
        "lemon_in_basket": (LEMON, BASKET),
    }

    def is_over(self, offset: np.ndarray) -> bool:
        """Between the walls."""
        inside = self.sim.rotation(BASKET.name).inv().apply(offset)
        return bool(np.all(np.abs(inside[:2]) < BASKET.half[:2]))

    def is_near_above(self, offset: np.ndarray) -> bool:
        """Above the floor, its underside below the rim."""
        underside = offset[2] - self.sim.half_extents(self.item.name, self.item.half)[2]
        return bool(-BASKET.half[2] < underside <= BASKET.half[2])


class PlacingExpert(TabletopExpert):
    """Takes the item from above, carries it down a funnel above its place, lets go and leaves upwards."""

    _FUNNEL = Funnel(radius_m=0.006, slope=3.0, top_m=0.08)  # of the item's middle above its place
    _PLACED_M = (0.012, 0.006)  # from its place: sideways, above
    _RETREAT_M = 0.1
    _DROP_M: ClassVar[float] = 0.002  # above where it comes to rest

    def __init__(self, task: PlacingTask) -> None:
        super().__init__(task)
        self._placing = task

    def plan(self) -> list[SubGoal]:
        position, rotation = self._tool()
        sim, item = self._sim, self._placing.item
        opening = sim.opening()
        to_place = self._place() - sim.position(item.name)
        grasp = grasp_of(sim, item, position, rotation)
        sideways, up = self._PLACED_M
        placed = bool(np.hypot(to_place[0], to_place[1]) < sideways and to_place[2] > -up)
        return [
            *grasp_goals(grasp, position, rotation, opening, over=placed),
            *carry_goals(to_place, grasp.turn, position, rotation, self._FUNNEL, placed=placed),
            *leave_goals(grasp, position, rotation, opening, self._RETREAT_M, placed=placed),
        ]

    def _place(self) -> np.ndarray:
        """Where the item's middle is let go, m."""
        sim, item, target = self._sim, self._placing.item, self._placing.target
        height = sim.half_extents(item.name, item.half)[2] + sim.half_extents(target.name, target.half)[2]
        if item.round == "x":  # its bounding box is higher than it is
            height = item.half[2] + target.half[2]
        return sim.position(target.name) + np.array([0.0, 0.0, height + self._DROP_M])


class BasketExpert(PlacingExpert):
    """Lets go above the basket's floor, where the hand still clears its walls."""

    _PLACED_M = (0.02, 0.006)
    _DROP_M: ClassVar[float] = -0.022  # as much lower than the rim
