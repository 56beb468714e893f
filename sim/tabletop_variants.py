"""Variants of the tabletop tasks: the world with one thing otherwise, by SimplerEnv's axes (arXiv 2405.05941).

*Variant aggregation* changes background, light, distractors or texture, one at a time, and takes the plain mean over
its variants, the unchanged world among them. *Visual matching* recolours the robot in a room like the one that is to
be matched. Camera poses and dynamics are axes of their own, outside these means. `stand_in` differs in everything at
once: a world to take for the real one. All but it and the dynamics are changes of the look alone, which leave physics
untouched bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embodied.catalog import nearest
from embodied.errors import UserError
from embodied.sim.tabletop_model import FRONT, OVERVIEW, Light, Ornament, TabletopWorld
from embodied.sim.tabletop_objects import (
    BOTTLE,
    BREAD,
    CEREAL,
    EGGPLANT,
    GREEN_CUBE,
    MILK,
    SPOON,
    YELLOW_CUBE,
    Item,
)

AGGREGATION, MATCHING, CAMERA, DYNAMICS = "variant_aggregation", "visual_matching", "camera", "dynamics"
STAND_IN = "stand_in"
PROTOCOLS = (AGGREGATION, MATCHING, CAMERA, DYNAMICS, STAND_IN)


@dataclass(frozen=True)
class Variant:
    """One world to evaluate in; its id is stable, and goes with every episode."""

    id: str
    axis: str  # what differs: base, background, light, distractors, table, cabinet, robot, camera, dynamics, stand_in
    protocol: str  # one of `PROTOCOLS`
    look: Mapping[str, Any] = field(default_factory=dict)  # fields of `Look`
    dynamics: Mapping[str, Any] = field(default_factory=dict)  # fields of `Dynamics`

    @property
    def counted(self) -> bool:
        """Whether it is in its protocol's plain mean, or reported apart."""
        return self.protocol in (AGGREGATION, MATCHING)

    @property
    def visual_only(self) -> bool:
        """Whether physics are the unchanged world's."""
        return not self.dynamics

    def of(self, world: TabletopWorld) -> TabletopWorld:
        """That world as this variant has it."""
        return dataclasses.replace(
            world,
            look=dataclasses.replace(world.look, **self.look),
            dynamics=dataclasses.replace(world.dynamics, **self.dynamics),
        )


@dataclass(frozen=True)
class Region:
    """Where a task happens, seen from above, m: nothing is put there that does not belong to it."""

    x: tuple[float, float]
    y: tuple[float, float]

    def holds(self, x: float, y: float, margin: float = 0.0) -> bool:
        """Whether a disc of that radius reaches into it."""
        return self.x[0] - margin < x < self.x[1] + margin and self.y[0] - margin < y < self.y[1] + margin


_TABLE = Region((0.31, 0.7), (-0.27, 0.27))
_CABINET = Region((0.28, 1.0), (-0.28, 0.28))
REGIONS = {
    "tabletop/pick_can": _TABLE,
    "tabletop/move_near": _TABLE,
    "tabletop/open_drawer": _CABINET,
    "tabletop/close_drawer": _CABINET,
    "tabletop/put_in_drawer": Region((0.28, 1.0), (-0.38, 0.38)),
    "tabletop/put_on": _TABLE,
    "tabletop/stack": _TABLE,
    "tabletop/put_in_basket": _TABLE,
}
# Where distractors may lie, the first choice first.
_SPOTS = (
    (0.84, -0.08),
    (0.62, -0.38),
    (0.36, -0.42),
    (0.82, 0.2),
    (0.52, -0.52),
    (0.72, -0.5),
    (0.3, -0.56),
    (0.6, 0.46),
    (0.42, 0.44),
)

_BACKGROUNDS = {
    "bricks": {"wall": "white-bricks.png", "floor": "wood-tiles.png"},
    "panels": {"wall": "wood-varnished-panels.png", "floor": "gray-felt.png"},
}
_LIGHTS = {
    "dim": Light(ambient=0.22, diffuse=0.3),
    "low_sun": Light(ambient=0.4, diffuse=0.75, direction=(-0.5, -0.9, -0.5), colour=(1.0, 0.93, 0.8)),
}
_TABLES = {"dark_wood": "dark-wood.png", "ceramic": "ceramic.png"}
_CABINETS = {"red_wood": "red-wood.png", "varnished": "wood-varnished-panels.png"}
_DISTRACTORS: dict[str, tuple[Item, ...]] = {
    "kitchen": (MILK, EGGPLANT, YELLOW_CUBE),
    "breakfast": (CEREAL, BREAD, BOTTLE, SPOON),
}
# What no start of the task has, so that nobody can say that the wrong one was meant.
_NEAR_DISTRACTORS: dict[str, tuple[Item, ...]] = {"kitchen": (EGGPLANT, GREEN_CUBE, SPOON)}
_PLACING_DISTRACTORS: dict[str, tuple[Item, ...]] = {"kitchen": (MILK,), "breakfast": (CEREAL, BOTTLE)}
_MATCHED = {"wall": "gray-plaster.png", "floor": "dark-wood.png", "table": "wood-tiles.png"}
_TINTS = {
    "white": (1.0, 1.0, 1.0),
    "gray": (0.62, 0.62, 0.64),
    "warm": (0.95, 0.78, 0.6),
    "blue": (0.55, 0.7, 0.95),
}
_CAMERAS = {
    "left": (dataclasses.replace(OVERVIEW, position=(0.05, 0.95, 0.7)), FRONT),
    "high": (
        dataclasses.replace(OVERVIEW, position=(-0.2, 0.55, 0.98)),
        dataclasses.replace(FRONT, position=(1.3, 0.2, 0.8)),
    ),
}
_DYNAMICS: dict[str, dict[str, Any]] = {
    "soft_servos": {"stiffness": (0.5,), "damping": (0.7,)},
    "stiff_servos": {"stiffness": (2.0,), "damping": (1.4,)},
    "friction_double": {"friction": 2.0},
    "friction_half": {"friction": 0.5},
    "friction_quarter": {"friction": 0.25},
}
_STAND_IN_LOOK = {
    "wall": "white-bricks.png",
    "floor": "wood-tiles.png",
    "table": "dark-wood.png",
    "light": Light(ambient=0.35, diffuse=0.6, direction=(-0.4, 0.5, -0.8), colour=(1.0, 0.95, 0.88)),
    "cameras": (
        dataclasses.replace(OVERVIEW, position=(-0.16, 0.77, 0.76)),
        dataclasses.replace(FRONT, position=(1.4, 0.07, 0.66)),
    ),
}
_STAND_IN_DYNAMICS = {
    "stiffness": (0.6,),
    "damping": (1.3,),
    "joint_damping": 1.5,
    "friction": 0.6,
    "delay_steps": 2,
}


@functools.cache
def variants(task: str) -> tuple[Variant, ...]:
    """All variants of a tabletop task, by its catalogue name; "base" first.

    Raises:
        UserError: no such task.
    """
    if task not in REGIONS:
        raise UserError(expected="the name of a tabletop task", found=f"'{task}'", remedy=nearest(task, REGIONS))
    found = [Variant("base", "base", AGGREGATION)]
    found += [Variant(f"background/{name}", "background", AGGREGATION, look) for name, look in _BACKGROUNDS.items()]
    found += [Variant(f"light/{name}", "light", AGGREGATION, {"light": light}) for name, light in _LIGHTS.items()]
    if REGIONS[task] is _TABLE:
        found += [
            Variant(f"distractors/{name}", "distractors", AGGREGATION, {"ornaments": _scattered(items, REGIONS[task])})
            for name, items in _distractors(task).items()
        ]
        found += [Variant(f"table/{name}", "table", AGGREGATION, {"table": file}) for name, file in _TABLES.items()]
    else:
        found += [
            Variant(f"cabinet/{name}", "cabinet", AGGREGATION, {"cabinet": file}) for name, file in _CABINETS.items()
        ]
    found += [
        Variant(f"robot/{name}", "robot", MATCHING, {**_MATCHED, "robot_tint": tint}) for name, tint in _TINTS.items()
    ]
    found += [Variant(f"camera/{name}", "camera", CAMERA, {"cameras": cameras}) for name, cameras in _CAMERAS.items()]
    found += [
        Variant(f"dynamics/{name}", "dynamics", DYNAMICS, dynamics=changes) for name, changes in _DYNAMICS.items()
    ]
    found.append(Variant("stand_in", "stand_in", STAND_IN, _STAND_IN_LOOK, _STAND_IN_DYNAMICS))
    return tuple(found)


def variant(task: str, wanted: str) -> Variant:
    """One variant of a task by its id.

    Raises:
        UserError: an unknown task or id; lists the known ones and the nearest.
    """
    known = {variant.id: variant for variant in variants(task)}
    if wanted not in known:
        raise UserError(
            expected=f"the id of a variant of {task} for task.variant",
            found=f"'{wanted}'",
            remedy=nearest(str(wanted), known),
        )
    return known[wanted]


def _distractors(task: str) -> dict[str, tuple[Item, ...]]:
    if task == "tabletop/move_near":
        return _NEAR_DISTRACTORS
    return _DISTRACTORS if task == "tabletop/pick_can" else _PLACING_DISTRACTORS


def _scattered(items: Sequence[Item], region: Region) -> tuple[Ornament, ...]:
    """Each item at the next spot that leaves the task's region free.

    Raises:
        ValueError: more items than such spots.
    """
    free = [spot for spot in _SPOTS if not region.holds(*spot, margin=max(item.radius for item in items))]
    if len(free) < len(items):
        raise ValueError(f"{len(items)} distractors for {len(free)} spots outside {region}")
    return tuple(
        Ornament(item, x, y, yaw=0.7 * number) for number, (item, (x, y)) in enumerate(zip(items, free, strict=False))
    )
