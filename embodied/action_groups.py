"""The groups of an action's elements that are one quantity: their arithmetic, and whether a spec states them rightly.

For a position, x - y is a subtraction along the task's fixed axes. For a rotation, x - y is y^T x: the turn about y's
own axes, which multiplies y from the right, x = y (x - y). On that side a change of what a difference is taken from is
a linear map of the difference's columns, and so of its 6-D representation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from embodied.catalog import nearest
from embodied.errors import UserError
from embodied.rotations import (
    axis_angle_from_matrix,
    matrix_from_axis_angle,
    matrix_from_quaternion,
    matrix_from_rotation_6d,
    rotation_6d_from_matrix,
)
from embodied.types import ActionGroup, TaskSpec

ROTATION_SIZES = {"axis_angle": 3, "rotation_6d": 6}
QUATERNION = "quaternion xyzw"


@dataclass(frozen=True)
class Part(ABC):
    """One group: where it stands in recorded actions, learned actions and the flat state, and how to calculate with it.

    Its values are float64 tensors; their axes behind time are those of the subclass.
    """

    scale: float
    recorded: tuple[int, ...]
    learned: tuple[int, ...]
    state: slice | None  # None where no state vector shows it

    @property
    @abstractmethod
    def time_axis(self) -> int:
        """Of the values of a chunk, counted from the end."""

    @abstractmethod
    def read(self, elements: Tensor) -> Tensor:
        """Elements of an action, [... d], to values."""

    @abstractmethod
    def write(self, values: Tensor, size: int) -> Tensor:
        """The inverse of `read`: [... size]."""

    @abstractmethod
    def anchor(self, state: Tensor) -> Tensor:
        """The present value that flat states [... S] show."""

    @abstractmethod
    def difference(self, value: Tensor, base: Tensor) -> Tensor:
        """value - base"""

    @abstractmethod
    def compose(self, base: Tensor, difference: Tensor) -> Tensor:
        """base + difference"""

    @abstractmethod
    def change_of_base(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """Matrix [l l] and shift [l] that take the learned elements of x - old to those of x - new."""


class Position(Part):
    """Values [... d], in the action's units."""

    @property
    def time_axis(self) -> int:
        return -2

    def read(self, elements: Tensor) -> Tensor:
        return elements.double()

    def write(self, values: Tensor, size: int) -> Tensor:
        return values

    def anchor(self, state: Tensor) -> Tensor:
        return state[..., self.state].double() / self.scale

    def difference(self, value: Tensor, base: Tensor) -> Tensor:
        return value - base

    def compose(self, base: Tensor, difference: Tensor) -> Tensor:
        return base + difference

    def change_of_base(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        return torch.eye(len(self.learned), dtype=torch.float64), old - new


class Rotation(Part):
    """Values are matrices [... 3 3]; the number of elements tells axis-angle (3) from 6-D (6)."""

    @property
    def time_axis(self) -> int:
        return -3

    def read(self, elements: Tensor) -> Tensor:
        if elements.shape[-1] == ROTATION_SIZES["axis_angle"]:
            return matrix_from_axis_angle(elements.double() * self.scale)
        return matrix_from_rotation_6d(elements)

    def write(self, values: Tensor, size: int) -> Tensor:
        if size == ROTATION_SIZES["axis_angle"]:
            return axis_angle_from_matrix(values) / self.scale
        return rotation_6d_from_matrix(values)

    def anchor(self, state: Tensor) -> Tensor:
        return matrix_from_quaternion(state[..., self.state])

    def difference(self, value: Tensor, base: Tensor) -> Tensor:
        return base.mT @ value

    def compose(self, base: Tensor, difference: Tensor) -> Tensor:
        return base @ difference

    def change_of_base(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """new^T x = (new^T old) (old^T x), column by column. Only for 6-D: axis-angle has no such matrix."""
        turn = self.difference(old, new)
        return torch.block_diag(turn, turn), torch.zeros(len(self.learned), dtype=torch.float64)


@dataclass(frozen=True)
class Layout:
    """Where everything stands.

    Learned actions keep the recorded order, but a group stands together, where its first element stood.
    """

    parts: tuple[Part, ...]
    commands: tuple[tuple[int, int], ...]  # recorded and learned place of each element without a group
    size: int  # of a learned action

    @staticmethod
    def of(spec: TaskSpec, rotation: str) -> Layout:
        """For learned actions whose rotations are `rotation` (of those that `check_groups` lets pass)."""
        places = {name: index for index, name in enumerate(spec.action.elements)}
        group_of = {name: group for group in spec.action.groups or () for name in group.elements}
        parts: dict[ActionGroup, Part] = {}
        commands, size = [], 0
        for name, place in places.items():
            group = group_of.get(name)
            if group is None:
                commands.append((place, size))
                size += 1
            elif group not in parts:
                count = len(group.elements) if group.kind == "position" else ROTATION_SIZES[rotation]
                kind = Position if group.kind == "position" else Rotation
                parts[group] = kind(
                    scale=group.scale,
                    recorded=tuple(places[element] for element in group.elements),
                    learned=tuple(range(size, size + count)),
                    state=_state_slice(spec, group.reference),
                )
                size += count
        return Layout(tuple(parts.values()), tuple(commands), size)


def _state_slice(spec: TaskSpec, name: str | None) -> slice | None:
    begin = 0
    for state in spec.state:
        if state.name == name:
            return slice(begin, begin + state.size)
        begin += state.size
    return None


def check_groups(spec: TaskSpec) -> None:
    """
    Raises:
        UserError: groups of the spec's action that do not fit its elements, its rotation or its state vectors.
    """
    action = spec.action
    free = {name for name, binary in zip(action.elements, action.binary, strict=True) if not binary}
    for group in action.groups or ():
        wrong = [name for index, name in enumerate(group.elements) if name not in free - set(group.elements[:index])]
        if wrong:
            raise _unfit(spec, group, "elements of the action, not binary and in no other group", ", ".join(wrong))
        free -= set(group.elements)
        if group.kind not in ("position", "rotation"):
            raise _unfit(spec, group, "a position or a rotation", f"'{group.kind}'")
        if group.kind == "rotation" and len(group.elements) != ROTATION_SIZES.get(action.rotation):
            raise _unfit(spec, group, f"the elements of a rotation as {action.rotation}", f"{len(group.elements)}")
        if not group.scale > 0:
            raise _unfit(spec, group, "a scale above 0", f"{group.scale:g}")
        if group.reference is not None:
            _check_reference(spec, group, group.reference)


def _check_reference(spec: TaskSpec, group: ActionGroup, name: str) -> None:
    known = {state.name: state for state in spec.state}
    if name not in known:
        raise _unfit(spec, group, "a state vector as reference", f"'{name}' ({nearest(name, known)})")
    state = known[name]
    if group.kind == "position" and state.size != len(group.elements):
        raise _unfit(spec, group, f"a reference of {len(group.elements)} values", f"{state.size} in '{name}'")
    if group.kind == "rotation" and (state.unit != QUATERNION or state.size != 4):
        raise _unfit(spec, group, f"a reference in '{QUATERNION}'", f"{state.size} values in '{state.unit}'")


def _unfit(spec: TaskSpec, group: ActionGroup, expected: str, found: str) -> UserError:
    return UserError(
        expected=f"{expected} in the action group '{group.name}' of task {spec.task}",
        found=found,
        remedy="correct the groups of the task's action spec",
    )
