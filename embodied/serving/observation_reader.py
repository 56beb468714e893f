"""A robot's message to an observation of the policy's spec, or a sentence that says what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from embodied.catalog import nearest
from embodied.errors import UserError
from embodied.types import CameraSpec, Json, Observation, StateSpec, TaskSpec

WHOLE_STATE = "state"  # all state vectors side by side, in the spec's order
INSTRUCTION = "instruction"
LONGEST_INSTRUCTION = 4096  # letters
LONGEST_FOUND = 160  # letters of what an error shows of a message
_ABSENT = object()


class UnusableValues(UserError):
    """An observation as the spec has it, with values that no policy may see: a sensor that failed for a moment."""


class ObservationReader:
    """Reads what a policy sees, by the names that the robot uses. Everything else in a message is ignored.

    A name may be a key of the message ("observation/image") or a path through nested maps ("observation", then
    "image").
    """

    def __init__(
        self,
        spec: TaskSpec,
        keys: Mapping[str, str] | None = None,
        *,
        inputs: TaskSpec | None = None,
        statistics: Mapping[str, Json] | None = None,
        range_margin: float | None = None,
    ) -> None:
        """
        Args:
            spec: of the policy's task.
            keys: our name -> the robot's, such as {"images/front": "observation/image"}; names that are not given
                stay as they are. Ours are `state/<name>`, `images/<camera>`, `instruction` ("prompt" on the wire) and
                `state`.
            inputs: what of the spec the policy is given; None: all.
            statistics: of the training data, by "state/<name>".
            range_margin: how many times the training data's range a value may lie outside of it; None: not checked.
                Wrong units (degrees, mm) lie further.

        Raises:
            UserError: a key that the spec does not have.
        """
        self.spec, self.inputs = spec, inputs or spec
        known = {f"state/{vector.name}": f"state/{vector.name}" for vector in spec.state}
        known |= {f"images/{camera.name}": f"images/{camera.name}" for camera in spec.cameras}
        known |= {INSTRUCTION: "prompt", WHOLE_STATE: WHOLE_STATE}
        for name in keys or {}:
            if name not in known:
                raise UserError(
                    expected=f"a part of the observations of {spec.task} in observation_keys",
                    found=f"'{name}'",
                    remedy=nearest(name, known),
                )
        self.keys = {**known, **(keys or {})}
        self.limits = range_limits(self.inputs, statistics or {}, range_margin)  # a swapped checkpoint brings its own
        self._paths = {key: tuple(key.split("/")) for key in self.keys.values() if "/" in key}

    def read(self, message: Mapping[Any, Any]) -> Observation:
        """
        Raises:
            UserError: something is missing, or has another shape or type than the spec says.
            UnusableValues: something is not finite, or lies far outside of the training data.
        """
        whole = None
        state = {}
        for vector in self.inputs.state:
            value = self._find(message, self.keys[f"state/{vector.name}"])
            if value is _ABSENT:
                whole = self._whole_state(message, vector) if whole is None else whole
                value = whole[vector.name]
            state[vector.name] = self._vector(vector, value)
        images = {camera.name: self._image(camera, message) for camera in self.inputs.cameras}
        return Observation(state, images, self._instruction(message))

    def _find(self, message: Mapping[Any, Any], key: str) -> Any:
        value = message.get(key, _ABSENT)
        if value is not _ABSENT or key not in self._paths:
            return value
        place: Any = message
        for part in self._paths[key]:
            place = place.get(part, _ABSENT) if isinstance(place, Mapping) else _ABSENT
        return place

    def _whole_state(self, message: Mapping[Any, Any], wanted: StateSpec) -> dict[str, Any]:
        """The state vectors of one that holds all of them."""
        value = self._find(message, self.keys[WHOLE_STATE])
        if value is _ABSENT or isinstance(value, Mapping):
            raise self._missing(f"state/{wanted.name}", message)
        array = _numbers(value, f"'{self.keys[WHOLE_STATE]}'", (self.spec.state_size,), "all state vectors")
        parts, begin = {}, 0
        for vector in self.spec.state:
            parts[vector.name] = array[begin : begin + vector.size]
            begin += vector.size
        return parts

    def _vector(self, vector: StateSpec, value: Any) -> np.ndarray:
        key = self.keys[f"state/{vector.name}"]
        array = _numbers(value, f"'{key}'", (vector.size,), f"{', '.join(vector.elements)} in {vector.unit}")
        if not np.isfinite(array).all():
            raise UnusableValues(
                expected=f"finite values in '{key}'",
                found=str(array.tolist())[:LONGEST_FOUND],
                remedy="check the robot's sensors",
            )
        limits = self.limits.get(vector.name)
        if limits is not None and not ((limits[0] <= array) & (array <= limits[1])).all():
            raise self._out_of_range(vector, array, *limits)
        return array

    def _out_of_range(self, vector: StateSpec, array: np.ndarray, low: np.ndarray, high: np.ndarray) -> UnusableValues:
        index = int(np.argmax((array < low) | (array > high)))
        return UnusableValues(
            expected=f"{vector.elements[index]} of '{self.keys[f'state/{vector.name}']}' between {low[index]:.4g} and "
            f"{high[index]:.4g} ({vector.unit}), as in training with a wide margin",
            found=f"{array[index]:.4g}",
            remedy="check its unit and the order of the elements, or start the server with a larger range_margin",
        )

    def _image(self, camera: CameraSpec, message: Mapping[Any, Any]) -> np.ndarray:
        key = self.keys[f"images/{camera.name}"]
        value = self._find(message, key)
        if value is _ABSENT:
            raise self._missing(f"images/{camera.name}", message)
        shape = (camera.height, camera.width, 3)
        if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype != np.uint8:
            raise UserError(
                expected=f"'{key}' as uint8 {list(shape)}",
                found=_described(value),
                remedy="send the camera's image in the size that the policy was trained with, colour last",
            )
        return value

    def _instruction(self, message: Mapping[Any, Any]) -> str:
        value = self._find(message, self.keys[INSTRUCTION])
        if value is _ABSENT:
            return ""
        if not isinstance(value, str) or len(value) > LONGEST_INSTRUCTION:
            raise UserError(
                expected=f"'{self.keys[INSTRUCTION]}' as a text of at most {LONGEST_INSTRUCTION} letters",
                found=_described(value),
                remedy="send the instruction as a text",
            )
        return value

    def _missing(self, name: str, message: Mapping[Any, Any]) -> UserError:
        keys = sorted(str(key)[:40] for key in message)
        return UserError(
            expected=f"'{self.keys[name]}' in every observation",
            found=("the keys " + ", ".join(keys) if keys else "no keys")[:LONGEST_FOUND],
            remedy=f"send it, or say how the robot calls it: observation_keys={{{name}: ...}}",
        )


def range_limits(
    spec: TaskSpec, statistics: Mapping[str, Json], margin: float | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Lowest and highest values by state vector, float32 [d]; elements that never changed are not limited.

    Args:
        spec: what the policy is given.
        statistics: of the training data, by "state/<name>".
        margin: times the training data's range, on either side; None: no limits.
    """
    if margin is None:
        return {}
    limits = {}
    for vector in spec.state:
        seen = statistics.get(f"state/{vector.name}")
        if seen is None:
            continue
        low, high = np.asarray(seen["minimum"], np.float64), np.asarray(seen["maximum"], np.float64)
        room = np.where(high > low, margin * np.where(high > low, high - low, 1.0), np.inf)  # margin may be inf
        limits[vector.name] = ((low - room).astype(np.float32), (high + room).astype(np.float32))
    return limits


def _numbers(value: Any, name: str, shape: tuple[int, ...], meaning: str) -> np.ndarray:
    """As float32 of this shape."""
    if isinstance(value, list) and len(value) == shape[0] and all(type(entry) in (int, float) for entry in value):
        value = np.asarray(value, np.float64)
    if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype.kind not in "fiu":
        raise UserError(
            expected=f"{name} as {shape[0]} numbers ({meaning})",
            found=_described(value),
            remedy="send it as /spec says",
        )
    if value.dtype == np.float32:
        return value
    with np.errstate(over="ignore"):  # too large a number is infinite then, and named as that
        return value.astype(np.float32)


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name} {list(value.shape)}"
    return f"{type(value).__name__} {str(value)[:60]!r}"
