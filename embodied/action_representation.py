"""How a policy represents a task's actions: absolute, or as differences; rotations as axis-angle or 6-D.

Letters: B windows, H actions of a chunk, A elements of a task's action, L elements of a learned one, S all state
vectors side by side. Any leading dimensions stand before H. c is the value that an observation shows of a group (its
reference), a the actions of a chunk:

    absolute         a[0]        a[1]        a[2]        ...
    delta            a[0] - c    a[1] - a[0] a[2] - a[1] ...     c: at the chunk's first position
    chunk_relative   a[0] - c    a[1] - c    a[2] - c    ...     c: at the newest observation

What a difference is, `embodied.action_groups` says: of rotations it is the turn that multiplies from the right.
Elements in no group, such as grippers, are never made relative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embodied.action_groups import Layout, Part, Position, Rotation, check_groups
from embodied.catalog import nearest
from embodied.errors import UserError
from embodied.types import ActionSpec, TaskSpec

AS_RECORDED = "as_recorded"
CHOICES = {
    "representation": (AS_RECORDED, "absolute", "delta", "chunk_relative"),
    "rotation": (AS_RECORDED, "axis_angle", "rotation_6d"),
}

# One tensor a group, float64: positions [... d] in the action's units, rotations as matrices [... 3 3].
Anchors = tuple[Tensor, ...]


@dataclass(frozen=True)
class ActionTransform:
    """From recorded actions to those that a policy learns, and back. Made by `from_settings`."""

    representation: str  # of the learned actions: absolute, delta or chunk_relative
    rotation: str  # of the learned actions: axis_angle, rotation_6d or none
    recorded_size: int  # A
    is_relative: bool  # differences that this transform makes, and so undoes with the help of a reference
    _converts_rotations: bool  # from axis-angle into 6-D or back
    _layout: Layout

    @classmethod
    def from_settings(cls, spec: TaskSpec, settings: Mapping[str, Any] | None) -> ActionTransform:
        """
        Args:
            spec: of the task whose actions these are.
            settings: conf/policy's `actions`: `representation` and `rotation`; None is `as_recorded` for both.

        Raises:
            UserError: an unknown setting or value, groups that do not fit the spec, or a representation that cannot
                be made from what the spec says of its actions.
        """
        action = spec.action
        check_groups(spec)
        chosen = _chosen(settings)
        representation = action.representation if chosen["representation"] == AS_RECORDED else chosen["representation"]
        rotation = action.rotation if chosen["rotation"] == AS_RECORDED else chosen["rotation"]
        is_relative = representation != action.representation
        if is_relative:
            _require_references(action, representation)
        if rotation != action.rotation:
            _require_rotation(action, rotation)
        return cls(
            representation=representation,
            rotation=rotation,
            recorded_size=action.size,
            is_relative=is_relative,
            _converts_rotations=rotation != action.rotation,
            _layout=Layout.of(spec, rotation),
        )

    @property
    def is_identity(self) -> bool:
        return not self.is_relative and not self._converts_rotations

    @property
    def size(self) -> int:
        """L"""
        return self._layout.size

    @property
    def suffix(self) -> str:
        """What to add to a policy's label: " chunk_relative", " rotation_6d", both, or nothing."""
        words = [self.representation] if self.is_relative else []
        words += [self.rotation] if self._converts_rotations else []
        return "".join(f" {word}" for word in words)

    @property
    def tied(self) -> tuple[tuple[int, ...], ...]:
        """Learned elements that must share one scale: a 6-D rotation's, so that a turn of its columns stays a turn."""
        if self.is_identity or self.rotation != "rotation_6d":
            return ()
        return tuple(part.learned for part in self._layout.parts if isinstance(part, Rotation))

    @property
    def has_linear_change_of_base(self) -> bool:
        return self.rotation == "rotation_6d" or all(isinstance(part, Position) for part in self._layout.parts)

    def anchors(self, state: Tensor) -> Anchors:
        """What differences are taken from, out of flat states [... S] in their own units; () without differences."""
        return tuple(part.anchor(state) for part in self._layout.parts) if self.is_relative else ()

    def encode(self, actions: Tensor, anchors: Anchors) -> Tensor:
        """Recorded chunks [... H A] to learned ones [... H L], in the same dtype."""
        if self.is_identity:
            return actions
        learned = actions.new_empty(*actions.shape[:-1], self.size)
        for recorded, place in self._layout.commands:
            learned[..., place] = actions[..., recorded]
        for index, part in enumerate(self._layout.parts):
            value = part.read(actions[..., part.recorded])
            if self.is_relative:
                value = part.difference(value, self._bases(part, value, anchors[index]))
            learned[..., part.learned] = part.write(value, len(part.learned)).to(actions.dtype)
        return learned

    def decode(self, learned: Tensor, anchors: Anchors) -> Tensor:
        """The inverse of `encode`; a rotation as axis-angle comes back with an angle from 0 to pi."""
        if self.is_identity:
            return learned
        actions = learned.new_empty(*learned.shape[:-1], self.recorded_size)
        for recorded, place in self._layout.commands:
            actions[..., recorded] = learned[..., place]
        for part, value in zip(self._layout.parts, self._values(learned, anchors), strict=True):
            actions[..., part.recorded] = part.write(value, len(part.recorded)).to(learned.dtype)
        return actions

    def base_at(self, position: int, learned: Tensor, anchors: Anchors) -> Anchors:
        """What the action at `position` of learned chunks [... H L] is a difference from."""
        if self.representation == "chunk_relative" or position == 0:
            return anchors
        values = self._values(learned[..., :position, :], anchors)
        return tuple(value.select(part.time_axis, -1) for part, value in zip(self._layout.parts, values, strict=True))

    def change_of_base(self, old: Anchors, new: Anchors) -> tuple[Tensor, Tensor]:
        """The affine map of learned actions that keeps what they command when `new` takes the place of `old`.

        Args:
            old, new: positions [d] and rotations [3 3], without leading dimensions.

        Returns:
            matrix [L L], orthogonal, and shift [L], float64: learned -> matrix @ learned + shift.

        Raises:
            UserError: rotations as axis-angle, for which there is no such map.
        """
        if not self.has_linear_change_of_base:
            raise UserError(
                expected="rotation_6d, in which a change of the reference is a linear map",
                found=self.rotation,
                remedy="set policy.actions.rotation=rotation_6d",
            )
        matrix, shift = torch.eye(self.size, dtype=torch.float64), torch.zeros(self.size, dtype=torch.float64)
        for part, before, after in zip(self._layout.parts, old, new, strict=True):
            place = torch.tensor(part.learned)
            matrix[place[:, None], place], shift[place] = part.change_of_base(before, after)
        return matrix, shift

    def _bases(self, part: Part, value: Tensor, anchor: Tensor) -> Tensor:
        """What each action of a chunk is a difference from; broadcasts along time."""
        base = anchor.unsqueeze(part.time_axis)
        if self.representation == "chunk_relative":
            return base
        earlier = value.narrow(part.time_axis, 0, value.shape[part.time_axis] - 1)
        return torch.cat([base.expand_as(value.narrow(part.time_axis, 0, 1)), earlier], part.time_axis)

    def _values(self, learned: Tensor, anchors: Anchors) -> list[Tensor]:
        """Each group's absolute values, one an action."""
        values = [part.read(learned[..., part.learned]) for part in self._layout.parts]
        if not self.is_relative:
            return values
        return [
            part.compose(anchor.unsqueeze(part.time_axis), value)
            if self.representation == "chunk_relative"
            else _accumulated(part, anchor, value)
            for part, anchor, value in zip(self._layout.parts, anchors, values, strict=True)
        ]


def _chosen(settings: Mapping[str, Any] | None) -> dict[str, str]:
    if settings is not None and not isinstance(settings, Mapping):
        raise UserError(
            expected=f"policy.actions with {' and '.join(CHOICES)}",
            found=f"'{settings}'",
            remedy=f"set policy.actions.representation={settings}, for example",
        )
    chosen = {name: AS_RECORDED for name in CHOICES} | {
        str(name): str(value) for name, value in (settings or {}).items()
    }
    for name, value in chosen.items():
        if name not in CHOICES:
            raise UserError(expected="a setting of policy.actions", found=f"'{name}'", remedy=nearest(name, CHOICES))
        if value not in CHOICES[name]:
            raise UserError(
                expected=f"a policy.actions.{name}", found=f"'{value}'", remedy=nearest(value, CHOICES[name])
            )
    return chosen


def _require_references(action: ActionSpec, representation: str) -> None:
    if action.representation == "delta":
        raise UserError(
            expected="policy.actions.representation as_recorded or delta for actions that were recorded as deltas",
            found=representation,
            remedy="record absolute targets: a delta commands a motion of which the robot makes a part, so that no sum "
            "of deltas says where it was meant to be",
        )
    if not action.groups:
        raise UserError(
            expected="an action spec that says which elements are a position or a rotation, to make differences",
            found="none",
            remedy="set policy.actions.representation=as_recorded, or state the groups in the task's action spec",
        )
    without = [group.name for group in action.groups if group.reference is None]
    if without:
        raise UserError(
            expected="a state vector with the present value of every position and rotation, to make differences",
            found=f"none for {', '.join(without)}",
            remedy="set policy.actions.representation=as_recorded, or name the references in the task's action spec",
        )


def _require_rotation(action: ActionSpec, rotation: str) -> None:
    if not any(group.kind == "rotation" for group in action.groups or ()):
        raise UserError(
            expected="an action spec that says which elements are a rotation",
            found="none",
            remedy=f"set policy.actions.rotation=as_recorded instead of {rotation}",
        )


def _accumulated(part: Part, anchor: Tensor, differences: Tensor) -> Tensor:
    values: list[Tensor] = []
    for difference in differences.unbind(part.time_axis):
        values.append(part.compose(values[-1] if values else anchor, difference))
    return torch.stack(values, part.time_axis)
