"""Move one of three things near another: the tabletop world's move_near, and its oracle."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from embodied.sim.grasping import Funnel, downward, gripper_yaw, turn_to, wrapped, yaw_of
from embodied.sim.tabletop_instructions import MOVE_NEAR
from embodied.sim.tabletop_objects import BOTTLE, BREAD, CAN, CEREAL, LEMON, MILK, Item
from embodied.sim.tabletop_oracle import (
    SubGoal,
    TabletopExpert,
    carry_goals,
    crowd,
    grasp_goals,
    grasp_of,
    leave_goals,
)
from embodied.sim.tabletop_starts import Grid
from embodied.sim.tabletop_world import TabletopTask, pose_specs, read_pose, upright
from embodied.types import StateSpec

TRIPLETS: tuple[tuple[Item, Item, Item], ...] = (
    (CAN, LEMON, BREAD),
    (MILK, CAN, LEMON),
    (BOTTLE, BREAD, CAN),
    (CEREAL, LEMON, MILK),
    (BREAD, BOTTLE, CEREAL),
)
MIDDLE_M, CORNER_M = (0.5, 0.0), 0.15  # of the triangle that they stand in; from its middle to a corner
_LAYOUTS_RAD = (0.0, np.pi / 3)  # directions of the first corner
_NEAR_M, _MOVED_M, _CLOSEST_M = 0.1, 0.03, 0.01
_FELL_M, _FELL_COS = 0.02, np.cos(np.pi / 6)
_HELD_STEPS = 5  # a grasp that lasts


@dataclass(frozen=True)
class MoveNearStart:
    """Which things stand where."""

    items: tuple[Item, Item, Item]  # the one to move, the target, the bystander
    xy: tuple[tuple[float, float], ...]  # m, of each
    yaws: tuple[float, ...]  # rad


class MoveNearTask(TabletopTask):
    """Bring the item near the target: SimplerEnv's rule.

    It has moved over 3 cm, and farther than the others; it is within 10 cm of the target (between the circles around
    their bounding boxes), and nearer to it than to the bystander, give or take 1 cm; nothing has been raised or fell.
    """

    name: ClassVar[str] = "tabletop/move_near"
    instructions = MOVE_NEAR
    stage_names: ClassVar[tuple[str, ...]] = ("grasped", "consecutive_grasp", "moved", "near", "closest")
    memory_names: ClassVar[tuple[str, ...]] = (
        "grasp_steps",
        *(f"start_{axis}{number}" for number in range(3) for axis in "xyz"),
    )

    def __init__(self, **settings: Any) -> None:
        """`settings` are those of every tabletop task."""
        kinds = tuple(
            (layout, triplet, order)
            for layout in _LAYOUTS_RAD
            for order in itertools.permutations(range(3))
            for triplet in TRIPLETS
        )
        self._grid = Grid(kinds, (1, 1, 1))
        super().__init__(**settings)

    def start(self, start_id: int) -> MoveNearStart:
        """What an id stands for: 60 starts on the grid (triplets, who goes where, two triangles), then others near."""
        draw = self._grid.draw(start_id)
        layout, triplet, order = draw.kind
        beyond = start_id >= self._grid.size
        x, y, turn = draw.offsets
        corners = layout + 0.4 * turn + 2 * np.pi / 3 * np.arange(3)
        xy = [
            (MIDDLE_M[0] + 0.03 * x + CORNER_M * np.cos(corner), MIDDLE_M[1] + 0.03 * y + CORNER_M * np.sin(corner))
            for corner in corners
        ]
        yaws = draw.generator.uniform(-0.5, 0.5, 3) if beyond else np.zeros(3)
        items = tuple(triplet[place] for place in order)
        return MoveNearStart(items, tuple((float(x), float(y)) for x, y in xy), tuple(yaws.tolist()))  # type: ignore[arg-type]

    @property
    def items(self) -> tuple[Item, Item, Item]:
        """The one to move, the target and the bystander at the present start."""
        return self._start.items

    def object_specs(self) -> tuple[StateSpec, ...]:
        return (*pose_specs("item"), *pose_specs("target"), *pose_specs("bystander"))

    def read_objects(self) -> dict[str, np.ndarray]:
        poses = {}
        for role, item in zip(("item", "target", "bystander"), self.items, strict=True):
            poses.update(read_pose(self.sim, role, item.name))
        return poses

    def begin(self, start_id: int) -> tuple[Item, ...]:
        self._start = self.start(start_id)
        return tuple(sorted(self.items, key=lambda item: item.name))  # one world for a triplet, whoever is who

    def place(self) -> None:
        for item, xy, yaw in zip(self.items, self._start.xy, self._start.yaws, strict=True):
            self.sim.place(item.name, (*xy, item.half[2]), upright(yaw))

    def remember_start(self) -> None:
        for number, item in enumerate(self.items):
            for axis, value in zip("xyz", self.sim.position(item.name), strict=True):
                self.keep(f"start_{axis}{number}", value)

    def judge(self) -> tuple[dict[str, bool], bool]:
        item, target, _ = self.items
        grasped = self.sim.grasped(item.name)
        self.keep("grasp_steps", self.memory("grasp_steps") + 1 if grasped else 0)
        now = np.array([self.sim.position(one.name) for one in self.items])
        before = np.array([[self.memory(f"start_{axis}{number}") for axis in "xyz"] for number in range(3)])
        ways = np.linalg.norm((now - before)[:, :2], axis=1)
        moved = ways[0] > _MOVED_M and ways[0] >= ways.max()
        to_target, to_bystander = np.linalg.norm(now[1:, :2] - now[0, :2], axis=1)
        near = to_target < item.radius + target.radius + _NEAR_M
        closest = to_target < to_bystander + _CLOSEST_M
        kept = np.all(np.abs(now[:, 2] - before[:, 2]) < _FELL_M) and all(self._stands(one) for one in self.items)
        stages = {
            "grasped": grasped,
            "consecutive_grasp": self.memory("grasp_steps") >= _HELD_STEPS,
            "moved": bool(moved),
            "near": bool(moved and near),
            "closest": bool(moved and near and closest),
        }
        return stages, bool(moved and near and closest and kept)

    def words(self) -> dict[str, str]:
        item, target, _ = self.items
        return {"item": item.words, "target": target.words}

    def _stands(self, item: Item) -> bool:
        """Whether a thing is as upright as it began; what rolls about its long axis always is."""
        return item.round == "x" or self.sim.rotation(item.name).as_matrix()[2, 2] > _FELL_COS


class MoveNearExpert(TabletopExpert):
    """Takes the item from above, its fingers away from the target, and sets it down on the straight way there."""

    _FUNNEL = Funnel(radius_m=0.01, slope=3.0, top_m=0.05)
    _GAP_M = 0.055  # between the circles around item and target
    _PLACED_M = (0.015, 0.006)  # from its place: towards the target or away from it, above
    _RETREAT_M = 0.1

    def __init__(self, task: MoveNearTask) -> None:
        super().__init__(task)
        self._near = task

    def plan(self) -> list[SubGoal]:
        position, rotation = self._tool()
        sim, (item, target, _) = self._sim, self._near.items
        opening = sim.opening()
        to_target = sim.position(target.name) - sim.position(item.name)
        grasp = grasp_of(sim, item, position, rotation, crowd(to_target, 0.15, 0.2))
        to_place = self._to_place(to_target)
        sideways, up = self._PLACED_M
        # On the straight line all that is left is how far; nearer than planned is as good.
        ahead = float(to_place[:2] @ to_target[:2]) / max(1e-9, float(np.hypot(*to_target[:2])))
        placed = ahead < sideways and -to_place[2] < up
        return [
            *grasp_goals(grasp, position, rotation, opening, over=placed),
            *carry_goals(to_place, self._aside(to_target, rotation), position, rotation, self._FUNNEL, placed=placed),
            *leave_goals(grasp, position, rotation, opening, self._RETREAT_M, placed=placed),
        ]

    def _to_place(self, to_target: np.ndarray) -> np.ndarray:
        """From where the item is to where it shall be set down, m."""
        item, target, _ = self._near.items
        distance = float(np.hypot(to_target[0], to_target[1]))
        ahead = max(0.0, distance - item.radius - target.radius - self._GAP_M) / max(1e-9, distance)
        height = item.half[2] + 0.002 - self._sim.position(item.name)[2]
        return np.array([ahead * to_target[0], ahead * to_target[1], height])

    def _aside(self, to_target: np.ndarray, rotation: Any) -> np.ndarray:
        """The turn that gets the fingers out of the line to the target, rotation vector, rad."""
        yaw, line = gripper_yaw(rotation), yaw_of(to_target)
        across = np.array([line, line + np.pi])  # of the tool whose fingers close across the line
        nearest = across[np.argmin(np.abs(wrapped(across - yaw)) + 0.3 * np.abs(wrapped(across)))]
        return turn_to(downward(float(nearest)), rotation)
