"""What a robot is allowed to do, whatever a policy says: range, velocity, acceleration, finite numbers. Numpy alone.

A = elements of an action. Everything is decided as w, how far an element moves in one control step: for actions that
are displacements w is the action, for absolute ones its difference from the last command.

    |w| <= velocity dt              |w - last w| <= acceleration dt^2          low <= position + w <= high

Before an end of the range w shrinks early enough that the acceleration suffices to stop there, so that a robot that
begins at rest inside keeps all three at every step. Where it does not suffice (the robot was pushed) the range comes
first, then the velocity. A robot that is outside may come back at the pace that it is allowed, and goes no further out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from embodied.catalog import nearest
from embodied.errors import UserError
from embodied.robot.braking import largest_step
from embodied.types import ActionSpec, Observation

SETTINGS = ("low", "high", "velocity", "acceleration", "workspace")


@dataclass(frozen=True)
class SafetyLimits:
    """Of each element, float64 [A], in the elements' own units; infinity where there is no limit.

    Elements of which only the two ends mean something (a gripper) have a range and nothing else.
    """

    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray  # a second
    acceleration: np.ndarray  # a second squared
    workspace: Mapping[str, tuple[np.ndarray, np.ndarray]]  # state vector -> its lowest and highest values, [d] each

    @staticmethod
    def from_settings(spec: ActionSpec, settings: Mapping[str, Any]) -> SafetyLimits:
        """
        Args:
            spec: of the actions; its bounds hold in any case.
            settings: `low`, `high`, `velocity`, `acceleration`: a number for all elements or a map from elements to
                numbers; `workspace`: a map from the state vector that shows a group of displacements where it is to
                [lowest, highest], each a list of numbers in that vector's unit.

        Raises:
            UserError: an unknown setting or element, no number, a range without room, a velocity or acceleration that
                is not above 0, or a workspace that no group of displacements is in.
        """
        for name in settings:
            if name not in SETTINGS:
                raise UserError(expected="settings of limits", found=f"'{name}'", remedy=nearest(name, SETTINGS))
        low, high = np.array(spec.low, np.float64), np.array(spec.high, np.float64)
        low = np.maximum(low, _values(spec, settings, "low", -np.inf))
        high = np.minimum(high, _values(spec, settings, "high", np.inf))
        for index in np.flatnonzero(~(low <= high)):
            raise UserError(
                expected=f"limits with room for '{spec.elements[index]}', within {spec.low[index]:g} .. "
                f"{spec.high[index]:g}",
                found=f"{low[index]:g} .. {high[index]:g}",
                remedy="correct limits.low and limits.high",
            )
        rates = []
        for name in ("velocity", "acceleration"):
            rate = _values(spec, settings, name, np.inf)
            for index in np.flatnonzero(~(rate > 0)):
                raise UserError(
                    expected=f"limits.{name} above 0 for '{spec.elements[index]}'",
                    found=f"{rate[index]:g}",
                    remedy="correct it",
                )
            rates.append(np.where(spec.binary, np.inf, rate))
        return SafetyLimits(low, high, *rates, workspace=_workspace(spec, settings.get("workspace") or {}))


@dataclass(frozen=True)
class Limited:
    """What may be executed, float32 [A], and why it is not what was asked for: none, some of `REASONS`."""

    action: np.ndarray
    reasons: tuple[str, ...]


REASONS = ("range", "velocity", "acceleration", "workspace")


class SafetyLimiter:
    """Keeps one robot within its limits; knows what it was last told."""

    def __init__(self, spec: ActionSpec, limits: SafetyLimits, dt_s: float) -> None:
        self._spec, self._limits, self._dt_s = spec, limits, dt_s
        self._is_absolute = spec.representation == "absolute"
        self._moving = ~np.asarray(spec.binary, bool)
        self._most = limits.velocity * dt_s
        self._most_change = limits.acceleration * dt_s**2
        self._workspaces = _workspace_of_elements(spec, limits)
        self.reset()

    def reset(self) -> None:
        """The robot stands still, wherever it is."""
        self._last: np.ndarray | None = None  # the last command, of absolute actions
        self._w = np.zeros(self._spec.size)

    @property
    def last(self) -> np.ndarray | None:
        """The last command, float32 [A]; None before the first."""
        return None if self._last is None else self._last.astype(np.float32)

    @property
    def w(self) -> np.ndarray:
        """How far each element moved in the last control step, float64 [A]; 0 for grippers."""
        return self._w.copy()

    def limited(self, action: np.ndarray, observation: Observation) -> Limited:
        """What to execute of `action` [A] in this control step. Called once a step: it is taken to be executed.

        Absolute actions begin from where `observation` shows the robot to be, for groups of positions with a reference;
        elements without one are only held to their range in the first step.

        Raises:
            UserError: the action has another size or is not finite; nothing of it may be executed.
        """
        action = self._checked(action)
        clipped = np.clip(action, self._limits.low, self._limits.high)
        reasons = [] if np.array_equal(clipped, action) else ["range"]
        position = self._position(observation)
        wanted = clipped - position if self._is_absolute else clipped
        moving, unknown = self._moving, np.isnan(wanted)
        w = np.where(unknown, 0.0, wanted)
        w = _noted(reasons, "acceleration", w, np.clip(w, self._w - self._most_change, self._w + self._most_change))
        w = _noted(reasons, "velocity", w, np.clip(w, -self._most, self._most))
        for name, below, above in self._rooms(position, observation):
            lowest = -largest_step(np.maximum(below, 0), self._most_change)
            highest = largest_step(np.maximum(above, 0), self._most_change)
            w = _noted(reasons, name, w, np.clip(w, lowest, highest))
        executed = np.where(moving & ~unknown, position + w if self._is_absolute else w, clipped)
        self._w = np.where(moving & ~unknown, w, 0.0)
        self._last = executed
        return Limited(executed.astype(np.float32), tuple(reasons))

    def _checked(self, action: np.ndarray) -> np.ndarray:
        action = np.asarray(action, np.float64)
        if action.shape != (self._spec.size,):
            raise UserError(
                expected=f"an action of {self._spec.size} values ({', '.join(self._spec.elements)})",
                found=f"shape {list(action.shape)}",
                remedy="send actions as the policy's spec defines them",
            )
        if not np.isfinite(action).all():
            index = int(np.flatnonzero(~np.isfinite(action))[0])
            raise UserError(
                expected="a finite action",
                found=f"{action[index]} in '{self._spec.elements[index]}'",
                remedy="nothing of it is executed; look for NaN or infinity in the observation",
            )
        return action

    def _position(self, observation: Observation) -> np.ndarray:
        """Where absolute commands go on from, [A]; NaN where nobody knows, and of displacements."""
        if not self._is_absolute:
            return np.full(self._spec.size, np.nan)
        if self._last is not None:
            return self._last
        return _shown(self._spec, observation)

    def _rooms(self, position: np.ndarray, observation: Observation) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Room below and above, [A] each, of each kind of range; infinity where there is none or it is not known."""
        infinite = np.full(self._spec.size, np.inf)
        rooms = []
        if self._is_absolute:
            known = self._moving & np.isfinite(position)
            below, above = position - self._limits.low, self._limits.high - position
            rooms.append(("range", np.where(known, below, infinite), np.where(known, above, infinite)))
        for elements, scale, reference, (low, high) in self._workspaces:
            shown = np.asarray(observation.state.get(reference, np.nan), np.float64)
            below, above = infinite.copy(), infinite.copy()
            known = np.isfinite(shown)  # where nobody knows the place there is no room to move
            below[elements] = np.where(known, (shown - low) / scale, 0.0)
            above[elements] = np.where(known, (high - shown) / scale, 0.0)
            rooms.append(("workspace", below, above))
        return rooms


def _noted(reasons: list[str], reason: str, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """`after`, with the reason written down where it is another."""
    if reason not in reasons and not np.allclose(before, after, rtol=0.0, atol=1e-12):
        reasons.append(reason)
    return after


def _values(spec: ActionSpec, settings: Mapping[str, Any], name: str, missing: float) -> np.ndarray:
    given = settings.get(name)
    by_element = dict.fromkeys(spec.elements, given) if not isinstance(given, Mapping) else given
    for element, value in by_element.items():
        if element not in spec.elements:
            raise UserError(
                expected=f"elements of an action in limits.{name}",
                found=f"'{element}'",
                remedy=nearest(str(element), spec.elements),
            )
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value != value):
            raise UserError(expected=f"a number in limits.{name}", found=repr(value), remedy="correct it")
    values = [by_element.get(element) for element in spec.elements]
    return np.array([missing if value is None else value for value in values], np.float64)


def _workspace(spec: ActionSpec, settings: Mapping[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    groups = {group.reference: group for group in spec.groups or () if group.kind == "position" and group.reference}
    found = {}
    for name, ends in settings.items():
        if spec.representation != "delta" or name not in groups:
            known = groups if spec.representation == "delta" else ()
            raise UserError(
                expected="the state vector of a group of displacements in limits.workspace"
                + ("" if spec.representation == "delta" else "; absolute actions have limits.low and limits.high"),
                found=f"'{name}'",
                remedy=nearest(str(name), [str(reference) for reference in known]),
            )
        size = len(groups[name].elements)
        try:
            low, high = (np.array(end, np.float64) for end in ends)
        except (TypeError, ValueError):
            low = high = np.zeros(0)
        if low.shape != (size,) or high.shape != (size,) or not (low < high).all():
            raise UserError(
                expected=f"limits.workspace.{name} as [lowest, highest], {size} numbers each, the second ones larger",
                found=repr(ends),
                remedy="correct it",
            )
        found[name] = (low, high)
    return found


def _workspace_of_elements(
    spec: ActionSpec, limits: SafetyLimits
) -> list[tuple[list[int], float, str, tuple[np.ndarray, np.ndarray]]]:
    """Of each workspace: the places of its elements in an action, their scale, the state vector and its ends."""
    place = {name: index for index, name in enumerate(spec.elements)}
    return [
        ([place[name] for name in group.elements], group.scale, group.reference, limits.workspace[group.reference])
        for group in spec.groups or ()
        if group.reference in limits.workspace and group.kind == "position"
    ]


def _shown(spec: ActionSpec, observation: Observation) -> np.ndarray:
    """The present value of the elements whose groups of positions have a reference, [A]; NaN of others."""
    values = np.full(spec.size, np.nan)
    place = {name: index for index, name in enumerate(spec.elements)}
    for group in spec.groups or ():
        if group.kind == "position" and group.reference in observation.state:
            shown = np.asarray(observation.state[group.reference], np.float64) / group.scale
            values[[place[name] for name in group.elements]] = shown
    return values
