"""The variant in which somebody moves an object while the robot is at work: once an episode, addressed by the start."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from embodied.catalog import TaskAsItIs
from embodied.errors import UserError
from embodied.protocols import Variant

BASE, MOVED = "base", "moved"
# Tasks that offer it: what is moved is the block, cube B (on which A is to be put), and the nut.
OFFERING = ("pusht/keypoints", "pusht/pixels", "pusht/state", "robosuite/stack", "robosuite/square")
EARLIEST, LATEST = 0.1, 0.25  # when, as shares of the horizon: most robots are on their way to the object then
NEAREST, FARTHEST = 0.6, 1.0  # how far, as shares of the most that a task allows
_STREAM = 2  # of random numbers beside the start id


@dataclass(frozen=True)
class MovedVariant:
    """`moved`, as evaluations know it."""

    id: str = MOVED
    axis: str = "disturbance"
    protocol: str = ""
    counted: bool = False


@dataclass(frozen=True)
class Move:
    """What happens to the object before the action of `step`: a shift in the plane and a turn about its own axis."""

    step: int
    shift: tuple[float, float]  # x, y, in the task's unit of length
    turn: float  # rad


def variants(task: str) -> tuple[Variant, ...]:
    """Those of a task; the task as it is first."""
    return (TaskAsItIs(), MovedVariant()) if task in OFFERING else (TaskAsItIs(),)


def check_variant(task: str, variant: str) -> None:
    """
    Raises:
        UserError: not a variant of this task.
    """
    known = [one.id for one in variants(task)]
    if variant not in known:
        raise UserError(expected=f"a variant of {task}", found=f"'{variant}'", remedy=f"known: {', '.join(known)}")


def planned_move(variant: str, start_id: int, horizon: int, farthest: float, largest_turn: float) -> Move | None:
    """The episode's move, a pure function of the start; None in the task as it is.

    Args:
        farthest: most that the object is shifted, in the task's unit of length.
        largest_turn: rad, to either side.
    """
    if variant != MOVED:
        return None
    generator = np.random.default_rng([_STREAM, start_id])
    step = int(generator.uniform(EARLIEST, LATEST) * horizon)
    distance, angle = generator.uniform(NEAREST, FARTHEST) * farthest, generator.uniform(-math.pi, math.pi)
    turn = generator.uniform(-largest_turn, largest_turn)
    return Move(step, (distance * math.cos(angle), distance * math.sin(angle)), turn)
