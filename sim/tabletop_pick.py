"""Pick a can that stands or lies on the table: the tabletop world's first task, and its oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

from embodied.sim.tabletop_instructions import PICK
from embodied.sim.tabletop_objects import CAN, Item
from embodied.sim.tabletop_oracle import SubGoal, TabletopExpert, grasp_goals, grasp_of
from embodied.sim.tabletop_starts import Grid, chosen
from embodied.sim.tabletop_world import TabletopTask, pose_specs, read_pose, upright
from embodied.types import StateSpec

ORIENTATIONS = ("standing", "lying_across", "lying_along")  # its axis up, along y, along x
MIDDLE_M, HALF_M = (0.5, 0.0), (0.11, 0.17)  # of the grid of places: 5 along x, 5 along y
_HELD_STEPS = 5  # a grasp that lasts
_LIFTED_M, _HIGH_M, _HIGH_STEPS = 0.01, 0.02, 5


@dataclass(frozen=True)
class PickStart:
    """Where the can is."""

    orientation: str
    x: float  # m
    y: float
    yaw: float  # about the vertical, rad


class PickCanTask(TabletopTask):
    """Lift the can: 1 cm above where it was, held, free of everything else; or 2 cm for 5 steps (SimplerEnv's rule)."""

    name: ClassVar[str] = "tabletop/pick_can"
    instructions = PICK
    stage_names: ClassVar[tuple[str, ...]] = ("grasped", "consecutive_grasp", "lifted")
    memory_names: ClassVar[tuple[str, ...]] = ("rest_height", "grasp_steps", "high_steps")

    def __init__(self, *, orientation: str | None = None, **settings: Any) -> None:
        """
        Args:
            orientation: one of `ORIENTATIONS`; None: each in turn.
            settings: of every tabletop task.

        Raises:
            UserError: an unknown orientation, or what `TabletopTask` refuses.
        """
        self._grid = Grid(chosen("orientation", orientation, ORIENTATIONS), (5, 5))
        super().__init__(**settings)

    def start(self, start_id: int) -> PickStart:
        """What an id stands for: 75 starts on the grid, 25 places an orientation; then others between them."""
        draw = self._grid.draw(start_id)
        x, y = (middle + half * offset for middle, half, offset in zip(MIDDLE_M, HALF_M, draw.offsets, strict=True))
        beyond = start_id >= self._grid.size
        return PickStart(draw.kind, x, y, draw.generator.uniform(-0.5, 0.5) if beyond else 0.0)

    def object_specs(self) -> tuple[StateSpec, ...]:
        return pose_specs("can")

    def read_objects(self) -> dict[str, np.ndarray]:
        return read_pose(self.sim, "can", CAN.name)

    def begin(self, start_id: int) -> tuple[Item, ...]:
        self._start = self.start(start_id)
        return (CAN,)

    def place(self) -> None:
        start = self._start
        lying = Rotation.from_euler("x", np.pi / 2) if start.orientation == "lying_across" else None
        if start.orientation == "lying_along":
            lying = Rotation.from_euler("y", np.pi / 2)
        height = CAN.half[2] if lying is None else CAN.half[0]
        turned = upright(start.yaw) if lying is None else upright(start.yaw) * lying
        self.sim.place(CAN.name, (start.x, start.y, height), turned)

    def remember_start(self) -> None:
        self.keep("rest_height", self.sim.position(CAN.name)[2])

    def judge(self) -> tuple[dict[str, bool], bool]:
        grasped = self.sim.grasped(CAN.name)
        free = not self.sim.touches_other_than(CAN.name)
        rise = self.sim.position(CAN.name)[2] - self.memory("rest_height")
        self.keep("grasp_steps", self.memory("grasp_steps") + 1 if grasped else 0)
        self.keep("high_steps", self.memory("high_steps") + (free and rise > _HIGH_M))
        held = self.memory("grasp_steps") >= _HELD_STEPS
        lifted = free and rise > _LIFTED_M
        success = (grasped and lifted) or self.memory("high_steps") >= _HIGH_STEPS
        return {"grasped": grasped, "consecutive_grasp": held, "lifted": lifted}, bool(success)

    def words(self) -> dict[str, str]:
        return {"item": CAN.words}


class PickCanExpert(TabletopExpert):
    """Comes down on the can, whichever way it lies, closes the fingers and raises it."""

    _LIFT_M = 0.12  # of the can's middle above the table

    def __init__(self, task: PickCanTask) -> None:
        super().__init__(task)

    def plan(self) -> list[SubGoal]:
        position, rotation = self._tool()
        opening = self._sim.opening()
        grasp = grasp_of(self._sim, CAN, position, rotation)
        rise = self._LIFT_M - self._sim.position(CAN.name)[2]
        up = position + np.array([0.0, 0.0, max(0.0, rise)])
        goals = grasp_goals(grasp, position, rotation, opening, over=False)
        return [*goals, SubGoal("lift", up, goals[1].rotation, close=True, done=rise < 0.005, waypoint=up)]
